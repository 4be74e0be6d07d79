from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ray_fer.evaluation.metrics import class_scores, reliability_bins
from ray_fer.reports.metric_plots import class_score_bars, confusion_plot, coverage_plot, reliability_plot
from tests.reports.test_plots import CLASSES, HOSTILE, size_of

COUNTS = np.array([[30, 10, 0], [5, 50_000, 0], [0, 0, 0]])
PROBS = np.random.default_rng(0).dirichlet(np.ones(3), 100)
LABELS = np.random.default_rng(1).integers(0, 3, 100)
RIGHT = PROBS.argmax(axis=1) == LABELS

PICTURES: dict[str, Callable[[list[str]], bytes]] = {
    "confusion": lambda names: confusion_plot(COUNTS, names),
    "confusion of nothing": lambda names: confusion_plot(np.zeros((3, 3)), names),
    "scores": lambda names: class_score_bars(class_scores(COUNTS), names),
    "scores of nothing": lambda names: class_score_bars(class_scores(np.zeros((3, 3))), names),
    "reliability": lambda _: reliability_plot(reliability_bins(PROBS, LABELS)),
    "reliability of nothing": lambda _: reliability_plot(reliability_bins(np.empty((0, 3)), [])),
    "coverage": lambda _: coverage_plot(PROBS.max(axis=1), RIGHT),
    "coverage of nothing": lambda _: coverage_plot([], []),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_a_picture_whatever_the_names(name: str) -> None:
    size_of(PICTURES[name](HOSTILE))


def test_the_same_data_gives_the_same_bytes() -> None:
    assert PICTURES["scores"](CLASSES) == PICTURES["scores"](CLASSES)


def test_more_classes_make_a_larger_matrix() -> None:
    few, many = (size_of(confusion_plot(np.eye(k, dtype=int), [f"class {i}" for i in range(k)])) for k in (2, 8))
    assert many[0] > few[0]
    assert many[1] > few[1]
