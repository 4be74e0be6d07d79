from __future__ import annotations

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.reports.evaluation import Report, evaluation_figures, evaluation_report
from ray_fer.reports.plots import rounds_plot

HOSTILE = "<script>alert(\"1\")</script> & 'x' $\\frac$"
CLASSES = ["neutral", HOSTILE, "contempt"]
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


def example(n: int = 60) -> tuple[dict[str, object], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([4, 1, 0.001], n).astype(np.float32)
    labels = rng.integers(-1, 2, n)
    return evaluate_probs(probs, labels, CLASSES), probs, labels


def test_an_evaluation_is_one_self_contained_page() -> None:
    metrics, probs, labels = example()
    figures = evaluation_figures(metrics, probs, labels)
    assert list(figures) == ["confusion_matrix", "per_class_f1", "reliability", "class_mix", "coverage"]
    page = evaluation_report(metrics, title=HOSTILE, model=HOSTILE, data="s3://b/v.csv", figures=figures)
    assert len(page) < 2_000_000
    assert "http" not in page
    seen = Page(page)
    assert {tag for tag, _ in seen.tags}.isdisjoint({"script", "link", "iframe", "a"})
    sources = [attributes["src"] for tag, attributes in seen.tags if tag == "img"]
    pictures = [base64.b64decode(str(source).removeprefix("data:image/png;base64,")) for source in sources]
    assert pictures == list(figures.values())
    for picture in pictures:
        Image.open(io.BytesIO(picture)).verify()
    assert HOSTILE in seen.words, "names are shown as they are"
    assert not re.search(r"url\(|@import|\bnan\b", page, re.IGNORECASE)


def test_a_page_of_metrics_alone_draws_what_they_allow() -> None:
    metrics, _, _ = example()
    page = Page(evaluation_report(metrics, title="t", model="m", data="d"))
    assert sum(tag == "img" for tag, _ in page.tags) == 3


def test_a_page_of_nothing_says_so() -> None:
    probs, labels = np.empty((0, 3)), np.empty(0)
    metrics = evaluate_probs(probs, labels, CLASSES)
    page = Page(
        evaluation_report(metrics, title="t", model="m", data="d", figures=evaluation_figures(metrics, probs, labels))
    )
    assert page.words.count("n/a") == 5 + 3 * 3


def test_the_most_frequent_confusions_come_first() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 2]
    predictions = [0, 1, 1, 2, 0, 1, 1, 2]
    metrics = evaluate_probs(np.eye(3)[predictions], labels, ["a", "b", "c"])
    page = evaluation_report(metrics, title="t", model="m", data="d")
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index("Most frequent confusions") :])
    cells = [re.findall(r">([^<]+)</t[dh]>", row) for row in rows]
    assert cells[1:] == [["a", "b", "2", "0.500"], ["a", "c", "1", "0.250"], ["b", "a", "1", "0.333"]]


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
