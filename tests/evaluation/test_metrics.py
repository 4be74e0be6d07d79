from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ray_fer.evaluation.calibration import (
    negative_log_likelihood,
)
from ray_fer.evaluation.metrics import (
    accuracy,
    bootstrap_macro_f1_se,
    class_scores,
    confusion_matrix,
    evaluate_probs,
    macro_f1,
    macro_f1_of_frequent,
)

# Rows true, columns predicted.
HAND = [[3, 1, 0], [2, 4, 0], [0, 0, 0]]

square = st.integers(1, 6).flatmap(lambda k: hnp.arrays(np.int64, (k, k), elements=st.integers(0, 1000)))


def random_predictions(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(k), n), rng.integers(0, k, n)


# --- counting ---


def test_pairs_are_counted_true_by_predicted() -> None:
    counts = confusion_matrix([0, 0, 1, 2, -1], [0, 1, 1, 0, 2], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert counts.dtype == np.int64


def test_no_pairs() -> None:
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]
    assert confusion_matrix([-1, -1], [0, 9], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0], "2 labels but 1 predictions"),
        ([0, 3], [0, 1], r"label 0\.\.3 is outside the 3 classes"),
        ([0, -2], [0, 1], r"label -2\.\.0 is outside the 3 classes"),
        ([0, 1], [0, -1], r"prediction -1\.\.0 is outside the 3 classes"),
    ],
)
def test_wrong_indices_are_named(labels: list[int], predictions: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(labels, predictions, 3)


# --- scores ---


def test_hand_computed_scores() -> None:
    scores = class_scores(HAND)
    np.testing.assert_allclose(scores.precision, [3 / 5, 4 / 5, np.nan])
    np.testing.assert_allclose(scores.recall, [3 / 4, 4 / 6, np.nan])
    np.testing.assert_allclose(scores.f1, [6 / 9, 8 / 11, np.nan])
    assert scores.support.tolist() == [4, 6, 0]
    assert accuracy(HAND) == pytest.approx(0.7)


def test_an_absent_class_does_not_count() -> None:
    assert macro_f1(HAND) == pytest.approx((6 / 9 + 8 / 11) / 2)


def test_a_class_that_is_only_true_or_only_predicted_counts_as_zero() -> None:
    assert macro_f1([[2, 0], [1, 0]]) == pytest.approx((4 / 5 + 0) / 2)
    assert macro_f1([[2, 1], [0, 0]]) == pytest.approx((4 / 5 + 0) / 2)


def test_nothing_is_undefined_not_zero() -> None:
    nothing = np.zeros((3, 3))
    assert math.isnan(macro_f1(nothing))
    assert math.isnan(accuracy(nothing))
    assert math.isnan(bootstrap_macro_f1_se(nothing))
    assert math.isnan(macro_f1_of_frequent(HAND, min_support=7))


def test_rare_classes_are_left_out_of_the_steadier_score() -> None:
    assert macro_f1_of_frequent(HAND, min_support=6) == pytest.approx(8 / 11)
    assert macro_f1_of_frequent(HAND, min_support=4) == pytest.approx((6 / 9 + 8 / 11) / 2)


@settings(max_examples=30, deadline=None)
@given(square, st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(counts: np.ndarray, random: object) -> None:
    order = list(range(len(counts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = counts[np.ix_(order, order)]
    np.testing.assert_allclose(macro_f1(permuted), macro_f1(counts))
    np.testing.assert_allclose(class_scores(permuted).f1, class_scores(counts).f1[order])
    np.testing.assert_allclose(accuracy(permuted), accuracy(counts))


@settings(max_examples=50, deadline=None)
@given(square)
def test_scores_are_shares(counts: np.ndarray) -> None:
    scores = class_scores(counts)
    for values in (scores.precision, scores.recall, scores.f1):
        known = values[~np.isnan(values)]
        assert ((known >= 0) & (known <= 1)).all()
    assert macro_f1(np.diag(np.diagonal(counts) + 1)) == 1.0


# --- bootstrap ---


def test_the_bootstrap_agrees_with_drawing_the_examples() -> None:
    counts = np.array([[30, 10], [5, 55]])
    pairs = np.repeat(np.arange(4), counts.ravel())
    rng = np.random.default_rng(1)
    draws = [macro_f1(np.bincount(rng.choice(pairs, pairs.size), minlength=4).reshape(2, 2)) for _ in range(2000)]
    assert bootstrap_macro_f1_se(counts, n_draws=2000) == pytest.approx(np.std(draws), rel=0.1)


def test_the_bootstrap_is_reproducible_and_shrinks_with_the_root_of_n() -> None:
    counts = np.array([[30, 10], [5, 55]])
    assert bootstrap_macro_f1_se(counts) == bootstrap_macro_f1_se(counts)
    assert bootstrap_macro_f1_se(counts) != bootstrap_macro_f1_se(counts, seed=1)
    assert bootstrap_macro_f1_se(counts) / bootstrap_macro_f1_se(counts * 100) == pytest.approx(10, rel=0.2)
    assert bootstrap_macro_f1_se([[7, 0], [0, 9]]) == 0


# --- all of it ---


def test_everything_is_ready_for_json() -> None:
    probs, labels = random_predictions(0, 50, 3)
    labels[:5] = -1
    classes = ["neutral", "anger", "contempt"]
    labels[labels == 2] = 0
    probs[:, 2] = 0
    numbers = evaluate_probs(probs.astype(np.float32), labels, classes)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["n"] == 45
    assert numbers["classes"] == classes
    assert numbers["per_class"]["contempt"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert np.sum(numbers["confusion_matrix"]) == 45
    known = labels != -1
    expected = confusion_matrix(labels[known], probs[known].argmax(axis=1), 3)
    assert numbers["confusion_matrix"] == expected.tolist()
    assert numbers["macro_f1"] == pytest.approx(macro_f1(expected))
    assert numbers["nll"] == pytest.approx(negative_log_likelihood(probs, labels), rel=1e-5)
    assert len(numbers["reliability"]["edges"]) == len(numbers["reliability"]["count"]) + 1


def test_a_set_without_labels_has_numbers_of_nothing() -> None:
    numbers = evaluate_probs(np.full((2, 2), 0.5), [-1, -1], ["a", "b"])
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["n"] == 0
    assert [numbers[key] for key in ("macro_f1", "macro_f1_se", "accuracy", "ece", "nll", "brier")] == [None] * 6


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="probs have 2 columns but there are 3 classes"):
        evaluate_probs(np.full((1, 2), 0.5), [0], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"probs \(2, 2\) and labels \(1,\) are not"):
        evaluate_probs(np.full((2, 2), 0.5), [0], ["a", "b"])
