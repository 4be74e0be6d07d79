from __future__ import annotations

import html.parser
import io

import numpy as np
import pytest
from PIL import Image

from ray_fer.reports.page import Report
from ray_fer.reports.plots import rounds_plot

PNG = rounds_plot({"a": [0.1, 0.2]})


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_numbers_are_shown_one_way() -> None:
    values = [None, float("nan"), np.float32("nan"), 1234567, np.int64(1234), 0.12345, np.float32(0.5), True, "x"]
    page = Page(Report("t").key_numbers({str(k): value for k, value in enumerate(values)}).html())
    shown = [word for k, word in enumerate(page.words) if page.words[k - 1] == str(page.words[k - 1]) and word.strip()]
    wanted = ["n/a", "n/a", "n/a", "1,234,567", "1,234", "0.123", "0.500", "True", "x"]
    start = shown.index("0")
    assert shown[start : start + 18 : 2] == [str(k) for k in range(9)]
    assert shown[start + 1 : start + 18 : 2] == wanted


def test_columns_of_numbers_are_aligned_right() -> None:
    page = Report("t").table(["name", "n"], [["a", 1], ["b", None]], "<caption>").html()
    assert '<th>name</th><th class="number">n</th>' in page
    assert '<td>b</td><td class="number">n/a</td>' in page
    assert "<caption>&lt;caption&gt;</caption>" in page


@pytest.mark.parametrize("row", [["a"], ["a", 1, 2], []])
def test_a_row_that_does_not_fit_is_refused(row: list[object]) -> None:
    with pytest.raises(ValueError, match=rf"a row of {len(row)} values in a table of 2 columns"):
        Report("t").table(["name", "n"], [["a", 1], row])


def test_figures_in_a_row_share_a_line_and_a_scale() -> None:
    page = Page(Report("t").figure(PNG, 'a "b"').figure(PNG).text("x").figure(PNG).html())
    assert [attributes for tag, attributes in page.tags if attributes.get("class") == "figures"] == [
        {"class": "figures"}
    ] * 2
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    with Image.open(io.BytesIO(PNG)) as image:
        assert figures == [{"style": f"width: {round(image.width * 82 / 130)}px"}] * 3
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ['a "b"', "", ""]


def test_a_page_can_go_on_after_it_was_shown() -> None:
    report = Report("t", "s").section("one", "text")
    first = report.html()
    assert report.html() == first
    assert "two" in report.section("two").html()
