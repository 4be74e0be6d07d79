from __future__ import annotations

import math
from typing import Any

import numpy as np

from ray_fer.selection import SelectionContext
from ray_fer.selection.thresholds import AdaCM, Threshold
from tests.selection.arrays import Make, both, close

PROBS = [[0.9, 0.1], [0.7, 0.3], [0.45, 0.55], [0.2, 0.8], [0.6, 0.4], [0.95, 0.05]]


@both
def test_threshold_is_per_class(make: Make) -> None:
    accepted = Threshold().accept(make(PROBS), {}, SelectionContext(np.array([0.8, 0.5])))
    assert accepted.weights.tolist() == [1, 0, 1, 1, 0, 1]
    assert accepted.labels.tolist() == [0, 0, 1, 1, 0, 0]
    close(accepted.targets, PROBS)


@both
def test_what_is_as_confident_as_the_threshold_is_accepted(make: Make) -> None:
    """In single precision, in which 0.7 is less than 0.7."""
    for tau in (0.6, 0.7, 0.8, 0.95):
        probs = make([[tau, 1 - tau]])
        assert Threshold().accept(probs, {}, SelectionContext(np.array([tau, 1.0]))).weights.tolist() == [1]


@both
def test_threshold_accepts_nothing_gracefully(make: Make) -> None:
    assert Threshold().accept(make(PROBS), {}, SelectionContext(np.ones(2))).weights.tolist() == [0] * 6


def margins(make: Make, confidence: Any, epoch: float, thresholds: Any = (0.8, 0.8, 0.8)) -> Any:
    known = SelectionContext(np.array(thresholds), labelled_confidence=confidence, epoch=epoch)
    return AdaCM().margins(make([[1.0, 0.0, 0.0]]), known)


@both
def test_margins_grow_with_the_epoch_to_their_ceiling(make: Make) -> None:
    """0.97 / (1 + e^−1) is .709, so that the first epoch has the floor whatever the confidence; then .854, .924, …"""
    confidence = np.array([1.0, 0.95, 0.5])
    close(margins(make, confidence, 1), [0.8, 0.8, 0.8])
    close(margins(make, confidence, 2), [0.8543732, 0.8116545, 0.8])
    close(margins(make, confidence, 3), [0.9239969, 0.8777971, 0.8])
    close(margins(make, confidence, math.inf), [0.97, 0.9215, 0.8])


@both
def test_a_class_without_a_correct_face_has_the_floor(make: Make) -> None:
    close(margins(make, np.array([np.nan, 0.9, 1.0]), math.inf), [0.8, 0.873, 0.97])
    close(margins(make, None, math.inf), [0.8] * 3)


@both
def test_the_feedback_can_lower_the_floor_of_a_weak_class(make: Make) -> None:
    """The released floor of .8 cannot relax for one; here it is the class's own threshold."""
    close(margins(make, np.array([0.6, 0.6, 0.6]), math.inf, (0.8, 0.5, 0.6)), [0.8, 0.582, 0.6])


@both
def test_margins_decide(make: Make) -> None:
    known = SelectionContext(np.array([0.8, 0.8]), labelled_confidence=np.array([0.95, 0.7]))
    accepted = AdaCM().accept(make(PROBS), {}, known)  # margins 0.9215, 0.8
    assert accepted.weights.tolist() == [0, 0, 0, 1, 0, 1]
