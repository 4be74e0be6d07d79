from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.reports.figures import class_mix, confusion_matrix, coverage, per_class_f1, reliability
from tests.reports.test_plots import CLASSES, HOSTILE, size_of

COUNTS = np.array([[30, 10, 0], [5, 50_000, 0], [0, 0, 0]])
PROBS = np.random.default_rng(0).dirichlet(np.ones(3), 100)
LABELS = np.random.default_rng(1).integers(0, 3, 100)
NOTHING = np.empty((0, 3)), np.empty(0, np.int64)


def of(counts: np.ndarray, names: list[str]) -> dict[str, Any]:
    return {"confusion_matrix": counts.tolist(), "classes": names}


PICTURES: dict[str, Callable[[list[str]], bytes]] = {
    "confusion": lambda names: confusion_matrix.draw(of(COUNTS, names)),
    "confusion of nothing": lambda names: confusion_matrix.draw(of(np.zeros((3, 3)), names)),
    "scores": lambda names: per_class_f1.draw(of(COUNTS, names)),
    "scores of nothing": lambda names: per_class_f1.draw(of(np.zeros((3, 3)), names)),
    "reliability": lambda names: reliability.draw(evaluate_probs(PROBS, LABELS, names)),
    "reliability of nothing": lambda names: reliability.draw(evaluate_probs(*NOTHING, names)),
    "coverage": lambda names: coverage.draw({"classes": names}, PROBS, LABELS),
    "coverage of nothing": lambda names: coverage.draw({"classes": names}, *NOTHING),
    "class mix": lambda names: class_mix.draw({"classes": names}, PROBS, LABELS),
    "class mix of nothing": lambda names: class_mix.draw({"classes": names}, *NOTHING),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_a_picture_whatever_the_names(name: str) -> None:
    size_of(PICTURES[name](HOSTILE))


def test_the_same_data_gives_the_same_bytes() -> None:
    assert PICTURES["scores"](CLASSES) == PICTURES["scores"](CLASSES)


def test_more_classes_make_a_larger_matrix() -> None:
    few, many = (size_of(confusion_matrix.draw(of(np.eye(k), [f"class {i}" for i in range(k)]))) for k in (2, 8))
    assert many[0] > few[0]
    assert many[1] > few[1]
