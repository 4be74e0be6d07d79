from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fer.evaluation.calibration import (
    apply_temperature,
    brier_score,
    confidence_of_correct,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)


def random_predictions(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(k), n), rng.integers(0, k, n)


def test_bins_are_open_below_and_closed_above() -> None:
    probs = [[0.5, 0.5], [0.75, 0.25], [0.25, 0.75], [1.0, 0.0]]
    bins = reliability_bins(probs, [0, 0, 0, 0], n_bins=4)
    assert bins.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert bins.count.tolist() == [0, 1, 2, 1]
    np.testing.assert_allclose(bins.confidence, [np.nan, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(bins.accuracy, [np.nan, 1.0, 0.5, 1.0])
    assert expected_calibration_error(bins) == pytest.approx((1 * 0.5 + 2 * 0.25 + 1 * 0) / 4)


def test_calibrated_predictions_have_no_error() -> None:
    probs = np.tile([0.8, 0.2], (10, 1))
    assert expected_calibration_error(reliability_bins(probs, [0] * 8 + [1] * 2)) == pytest.approx(0)
    assert expected_calibration_error(reliability_bins(probs, [1] * 10)) == pytest.approx(0.8)


def test_hand_computed_losses() -> None:
    probs = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1, 0, 0]]
    labels = [0, 2, -1]
    assert negative_log_likelihood(probs, labels) == pytest.approx(-(math.log(0.5) + math.log(0.7)) / 2)
    first, second = 0.25 + 0.0625 * 2, 0.01 + 0.04 + 0.09
    assert brier_score(probs, labels) == pytest.approx((first + second) / 2)


def test_a_certain_mistake_has_the_highest_finite_loss() -> None:
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-math.log(1e-12))
    assert brier_score([[1.0, 0.0]], [1]) == 2


def test_confidence_of_what_is_right() -> None:
    probs = [[0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.4, 0.6, 0.0], [0.1, 0.8, 0.1], [0.0, 0.9, 0.1], [0.5, 0.3, 0.2]]
    # Of class 0 two are right, of class 1 one, of class 2 none; the last has no label.
    assert confidence_of_correct(probs, [0, 0, 0, 1, 2, -1]) == [pytest.approx(0.8), pytest.approx(0.8), None]
    assert confidence_of_correct(np.empty((0, 2)), []) == [None, None]


def test_no_examples_are_undefined() -> None:
    probs = np.empty((0, 3))
    assert math.isnan(negative_log_likelihood(probs, []))
    assert math.isnan(brier_score(probs, []))
    assert math.isnan(expected_calibration_error(reliability_bins(probs, [])))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(2, 6))
def test_calibration_numbers_do_not_depend_on_the_order(seed: int, n: int, k: int) -> None:
    probs, labels = random_predictions(seed, n, k)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(n), rng.permutation(k)
    permuted, permuted_labels = probs[rows][:, columns], np.argsort(columns)[labels[rows]]
    for metric in (negative_log_likelihood, brier_score):
        assert metric(permuted, permuted_labels) == pytest.approx(metric(probs, labels))
    before, after = (reliability_bins(p, y) for p, y in ((probs, labels), (permuted, permuted_labels)))
    assert before.count.tolist() == after.count.tolist()
    assert before.count.sum() == n
    assert expected_calibration_error(after) == pytest.approx(expected_calibration_error(before))


# --- temperature ---


def sharpened(temperature: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions whose calibrated form is known: labels are drawn from what `temperature` makes of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    calibrated = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (calibrated.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return apply_temperature(calibrated, 1 / temperature), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found(temperature: float) -> None:
    n = 20_000
    found = fit_temperature(*sharpened(temperature, n))
    assert found ** ((n + 500) / n) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_minimises_the_loss() -> None:
    n = 5000
    probs, labels = sharpened(2.0, n)
    best = fit_temperature(probs, labels) ** ((n + 500) / n)
    losses = [negative_log_likelihood(apply_temperature(probs, best * f), labels) for f in (0.95, 1.0, 1.05)]
    assert losses[1] == min(losses)


def test_few_examples_move_no_threshold() -> None:
    probs, labels = sharpened(3.0, 200)
    assert fit_temperature(probs[:199], labels[:199]) == 1.0
    assert fit_temperature(probs, np.where(np.arange(200) < 199, labels, -1)) == 1.0
    at_200, unshrunk = fit_temperature(probs, labels), 3.0
    assert 1 < at_200 < unshrunk


def test_the_temperature_is_bounded() -> None:
    always_wrong = np.tile([1.0, 0.0], (10_000, 1))
    assert fit_temperature(always_wrong, np.ones(10_000, int)) <= 10
    always_right = np.tile([0.51, 0.49], (10_000, 1))
    assert fit_temperature(always_right, np.zeros(10_000, int)) >= 0.25


@settings(max_examples=50, deadline=None)
@given(st.floats(0.25, 10), st.integers(0, 100))
def test_a_temperature_keeps_the_ranking(temperature: float, seed: int) -> None:
    probs, _ = random_predictions(seed, 10, 5)
    cooled = apply_temperature(probs, temperature)
    np.testing.assert_allclose(cooled.sum(axis=1), 1)
    assert (np.argsort(cooled, axis=1) == np.argsort(probs, axis=1)).all()
    np.testing.assert_allclose(apply_temperature(probs, 1.0), probs)
