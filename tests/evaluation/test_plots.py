from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_fer.evaluation.plot_style import EXPRESSION_COLOURS, class_colours, plain, short
from ray_fer.evaluation.plots import (
    class_histogram,
    confidence_histogram,
    contact_sheet,
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
    "histogram, log": lambda names: class_histogram({"a": [1, 200, 0]}, names, log=True),
    "no groups": lambda names: class_histogram({}, names),
    "rounds": lambda names: rounds_plot({names[1]: [0.1, NAN, 0.3]}, {names[1]: [0.01, 0.02, NAN]}, ylabel="x"),
    "rounds, none known": lambda names: rounds_plot({names[0]: [NAN, NAN]}),
    "no rounds": lambda names: rounds_plot({}),
    "feedback": lambda names: feedback_plot(np.ones((4, 3)), names, neutral=1.0, bounds=(0.5, 2.0)),
    "feedback, no version": lambda names: feedback_plot(np.ones((0, 3)), names, neutral=1.0),
    "throughput": lambda names: throughput_plot([(0.0, 0), (70.0, 64), (70.01, 128), (200.0, 10_000)], title=names[0]),
    "throughput, one point": lambda names: throughput_plot([(0.0, 0)], title=names[1]),
    "throughput, no time": lambda names: throughput_plot([(0.0, 0), (0.0, 5)], title=names[2]),
    "confidence": lambda names: confidence_histogram(np.ones((3, 10)), names, threshold=0.8),
    "confidence, none": lambda names: confidence_histogram(np.zeros((3, 10)), names, title=names[1]),
    "timeline": lambda names: expression_timeline(
        [0, 0, 1, -1, 2], names, fps=25, confidence=[0.5, 0.6, NAN, NAN, 1], truth=[0, 0, 1, -1, -1]
    ),
    "timeline, one frame": lambda names: expression_timeline([1], names, fps=25, confidence=[0.5]),
    "timeline, no frame": lambda names: expression_timeline([], names, fps=25, confidence=[]),
    "faces": lambda names: contact_sheet(
        np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8),
        names,
        wrong=[True, False, False],
        title=names[2],
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_a_picture_whatever_the_names(name: str) -> None:
    size_of(PICTURES[name](HOSTILE))


def test_the_same_data_gives_the_same_bytes() -> None:
    assert PICTURES["timeline"](CLASSES) == PICTURES["timeline"](CLASSES)


def test_a_sheet_without_faces() -> None:
    with Image.open(io.BytesIO(contact_sheet(np.empty((0, 32, 32, 3), np.uint8), []))) as image:
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
        np.asarray(Image.open(io.BytesIO(expression_timeline([0], CLASSES, fps=1, confidence=[c]))).convert("L"))
        for c in (0.0, 1.0)
    )
    assert (low != high).mean() > 0.1


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
