from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from PIL import Image

from ray_fer.reports import plot_style, plots
from ray_fer.reports.faces import contact_sheet
from ray_fer.reports.figures import per_class_f1
from ray_fer.reports.plot_style import EXPRESSION_COLOURS, class_colours, plain, short, spread
from ray_fer.reports.plots import (
    class_histogram,
    confidence_histogram,
    expression_timeline,
    feedback_plot,
    rounds_plot,
    throughput_plot,
)

CLASSES = ["neutral", "anger", "own class"]
HOSTILE = ["$", r"$\frac$", r"a_b^{c} $\x$ \$"]
NAN = float("nan")


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        image.load()
        assert len(np.unique(np.asarray(image))) > 2, "an empty picture"
        width, height = image.size
    assert 100 < width < 3000
    assert 100 < height < 3000
    return width, height


PICTURES: dict[str, Callable[[list[str]], bytes]] = {
    "histogram": lambda names: class_histogram({names[0]: [1, 2, 3], "b": [0, 0, 0]}, names, title=names[1]),
    "no groups": lambda names: class_histogram({}, names),
    "rounds": lambda names: rounds_plot({names[1]: [0.1, NAN, 0.3]}, title=names[0]),
    "rounds, none known": lambda names: rounds_plot({names[0]: [NAN, NAN]}),
    "no rounds": lambda names: rounds_plot({}),
    "feedback": lambda names: feedback_plot(np.ones((4, 3)), names, neutral=1.0, bounds=(0.5, 2.0)),
    "feedback, no version": lambda names: feedback_plot(np.ones((0, 3)), names, neutral=1.0),
    "throughput": lambda _: throughput_plot([(0.0, 0), (70.0, 64), (70.01, 128), (200.0, 10_000)]),
    "throughput, one point": lambda _: throughput_plot([(0.0, 0)]),
    "throughput, no time": lambda _: throughput_plot([(0.0, 0), (0.0, 5)]),
    "confidence": lambda names: confidence_histogram(np.ones((3, 10)), names, threshold=0.8),
    "confidence, none": lambda names: confidence_histogram(np.zeros((3, 10)), names, threshold=0.5),
    "timeline": lambda names: expression_timeline(
        [0, 0, 1, -1, 2], [0.5, 0.6, NAN, NAN, 1], names, fps=25, title=names[2]
    ),
    "timeline, one frame": lambda names: expression_timeline([1], [0.5], names, fps=25),
    "timeline, no frame": lambda names: expression_timeline([], [], names, fps=25),
    "faces": lambda names: contact_sheet(
        np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8), names, columns=2
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_a_picture_whatever_the_names(name: str) -> None:
    size_of(PICTURES[name](HOSTILE))


def test_the_same_data_gives_the_same_bytes() -> None:
    assert PICTURES["timeline"](CLASSES) == PICTURES["timeline"](CLASSES)


def test_a_sheet_without_faces() -> None:
    with Image.open(io.BytesIO(contact_sheet(np.empty((0, 32, 32, 3), np.uint8), [], columns=8))) as image:
        assert image.format == "PNG"


def test_more_faces_make_a_larger_sheet() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    one_row = size_of(contact_sheet(faces, [""] * 9, columns=9))
    three_rows = size_of(contact_sheet(faces, [""] * 9, columns=3))
    assert one_row[0] > 2 * three_rows[0]
    assert three_rows[1] > 2 * one_row[1]


def test_confidence_lasts_to_the_end_of_the_last_frame() -> None:
    """A single frame of certainty fills the strip below the lanes."""
    low, high = (
        np.asarray(Image.open(io.BytesIO(expression_timeline([0], [c], CLASSES, fps=1))).convert("L"))
        for c in (0.0, 1.0)
    )
    assert (low != high).mean() > 0.1


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn, in the place of its bytes."""
    drawn: list[Figure] = []
    for module in (plots, per_class_f1):
        monkeypatch.setattr(module, "png", lambda figure: drawn.append(figure) or b"")
    return drawn


def overlapping(texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Pairs of texts on a figure that was laid out, one over the other."""
    shown = [text for text in texts if text.get_text()]
    assert len(shown) > 1
    boxes = [text.get_window_extent().shrunk(0.98, 0.9) for text in shown]
    pairs = itertools.combinations(range(len(shown)), 2)
    return [(shown[i].get_text(), shown[j].get_text()) for i, j in pairs if boxes[i].overlaps(boxes[j])]


@pytest.mark.parametrize("ends", [(0.651, 0.651), (0.651, 0.650), (0.651, 0.6505, 0.65), (0.9, 0.2), (0.2, 0.9, 0.2)])
def test_the_values_at_the_ends_of_lines_do_not_overlap(ends: tuple[float, ...], figures: list[Figure]) -> None:
    """A student that becomes the teacher has its very value."""
    rounds_plot({f"line {number}": [0.6, 0.62, end] for number, end in enumerate(ends)})
    figures[0].draw_without_rendering()
    labels = figures[0].axes[0].texts
    assert [label.get_text() for label in labels] == [f"{end:.3f}" for end in ends]
    assert not overlapping(labels)


COMPOUND = ["happily surprised", "sadly disgusted", "angrily", "fearfully surprised"]


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
@pytest.mark.parametrize("names", [CLASSES, COMPOUND])
def test_names_and_counts_of_a_class_mix_do_not_overlap(names: list[str], groups: int, figures: list[Figure]) -> None:
    class_histogram({f"g{number}": np.full(len(names), 98_765) for number in range(groups)}, names)
    figures[0].draw_without_rendering()
    axes = figures[0].axes[0]
    assert not overlapping(axes.texts)
    slanted = {label.get_rotation() for label in axes.get_xticklabels()} == {35}
    assert slanted == (names is COMPOUND and groups < 4)
    if not slanted:
        assert not overlapping(axes.get_xticklabels())


def test_compound_names_are_slanted_below_scores(figures: list[Figure]) -> None:
    for names in (COMPOUND, ["neutral", "anger", "happiness", "surprise"]):
        per_class_f1.draw({"confusion_matrix": np.eye(4), "classes": names})
    assert [figure.axes[0].get_xticklabels()[0].get_rotation() for figure in figures] == [35, 0]


def test_ticks_say_where_they_are(figures: list[Figure]) -> None:
    class_histogram({"a": [104, 82, 98, 92, 110, 99, 114, 1]}, [f"c{k}" for k in range(8)])
    figures[0].draw_without_rendering()
    shown = {label.get_text(): tick for label, tick in zip(*ticks(figures[0]), strict=True)}
    assert {"2.5%", "7.5%", "12.5%"} <= set(shown)
    assert all(float(text[:-1]) / 100 == pytest.approx(tick, rel=1e-5, abs=1e-9) for text, tick in shown.items())


def ticks(figure: Figure) -> tuple[list[Text], list[float]]:
    axis = figure.axes[0].yaxis
    return axis.get_ticklabels(), axis.get_ticklocs().tolist()


def test_spread_by_hand() -> None:
    assert spread([], 1.0) == []
    assert spread([3.0, 0.0], 1.0) == [3.0, 0.0]
    assert spread([2.0, 2.0], 1.0) == [1.5, 2.5]
    assert spread([5.0, 2.2, 2.0], 1.0) == pytest.approx([5.0, 2.6, 1.6])
    # The two around 2.1 push the third, and all three lie around their mean, 2.5.
    assert spread([2.0, 2.2, 3.3], 1.0) == pytest.approx([1.5, 2.5, 3.5])


def test_letters_that_no_font_has_are_code_points(caplog: pytest.LogCaptureFixture) -> None:
    plot_style._warn_once.cache_clear()
    assert plain("\ue0f0 \ud800a") == r"\ue0f0 \ud800a"
    assert plain("joy\n\t") == "joy\n?"
    assert plain("\ue0f1") != plain("\ue0f2")
    assert len(caplog.records) == 1, "said once"
    assert "no font on this machine has all letters" in caplog.text
    assert plain("añ é ß Ж ω ✗") == "añ é ß Ж ω ✗"


def test_another_font_has_what_the_usual_one_lacks(figures: list[Figure]) -> None:
    """As a font with Chinese letters would, where there is one."""
    usual, other = (get_font(findfont(name)) for name in ("DejaVu Sans", "STIXGeneral"))
    only_there = sorted(set(other.get_charmap()) - set(usual.get_charmap()))
    name = next(chr(each) for each in only_there if chr(each).isprintable() and plain(chr(each)) == chr(each))
    family = plot_style._font_with(name)
    assert family not in (None, "DejaVu Sans")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        rounds_plot({f"{name} x": [0.1]})
        plot_style.png(figures[0])
    (label,) = figures[0].axes[0].get_legend().get_texts()
    assert label.get_text() == f"{name} x"
    assert label.get_fontfamily() == ["DejaVu Sans", family]


@pytest.mark.parametrize("name", PICTURES)
def test_no_picture_has_boxes_for_letters(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size_of(PICTURES[name](["喜び", "怒り", "انزعاج \ue0f0"]))


def test_an_expression_keeps_its_colour() -> None:
    assert class_colours(["anger", "x"])[0] == class_colours(["x", "anger"])[1] == EXPRESSION_COLOURS["anger"]
    assert len(set(EXPRESSION_COLOURS.values())) == len(EXPRESSION_COLOURS)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (9999, "9,999"), (10_000, "10k"), (12_345, "12.3k"), (123_456, "123k"), (999_499, "999k"),
        (999_500, "1M"), (999_999, "1M"), (1_234_567, "1.23M"), (999_999_999, "1G"), (10**9, "1G"), (10**12, "1000G"),
    ],
)  # fmt: skip
def test_counts_are_short(count: int, text: str) -> None:
    assert short(count) == text


@settings(deadline=None)
@given(st.integers(0, 10**13))
def test_short_counts_are_right_to_half_a_percent(count: int) -> None:
    text = short(count).replace(",", "")
    unit = {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1], 1)
    assert abs(float(text.rstrip("kMG")) * unit - count) <= 0.005 * count


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("a$\\^_{} "), max_size=12))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    from matplotlib.cbook import is_math_text

    assert not is_math_text(plain(text))
    assert plain(text).replace(r"\$", "$") == text
