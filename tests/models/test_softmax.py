from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from ray_fer.models.softmax import softmax, why_not_finite


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (3, 5), elements={"min_value": -10000, "max_value": 10000}))
def test_softmax(logits: np.ndarray) -> None:
    kept = logits.copy()
    probs = softmax(logits)
    assert probs.dtype == np.float32
    assert (logits == kept).all()
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(softmax(logits.astype(np.float64) - 7), probs, atol=1e-6)
    assert (np.take_along_axis(probs, logits.argmax(axis=1)[:, None], axis=1)[:, 0] == probs.max(axis=1)).all()


def test_softmax_by_hand() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]], rtol=1e-6)
    assert softmax(np.empty((0, 3), np.float32)).shape == (0, 3)


INF, NAN = float("inf"), float("nan")


def test_minus_infinity_is_a_probability_of_zero() -> None:
    np.testing.assert_allclose(softmax(np.array([[-INF, 0.0, np.log(3.0)]])), [[0, 0.25, 0.75]], rtol=1e-6)
    np.testing.assert_array_equal(softmax(np.array([[-INF, 5.0, -INF]])), [[0, 1, 0]])


def test_large_logits_do_not_overflow() -> None:
    np.testing.assert_array_equal(softmax(np.array([[3e38, -3e38, 1e38]], np.float32)), [[1, 0, 0]])
    np.testing.assert_array_equal(softmax(np.array([[65504, -65504]], np.float16)), [[1, 0]])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([NAN, 1, 2], "NaN for sad"),
        ([1, NAN, NAN], "NaN for happy, angry"),
        ([INF, NAN, 1], "NaN for happy"),
        ([1, INF, 2], "infinity for happy"),
        ([NAN, NAN, NAN], "NaN for every class"),
        ([-INF, -INF, -INF], "minus infinity for every class"),
    ],
)
def test_a_row_without_probabilities_is_nan_and_leaves_the_others_alone(row: list[float], reason: str) -> None:
    logits = np.array([[0, 0, 0], row, [0, 0, 0]], np.float32)
    probs = softmax(logits)
    assert np.isnan(probs[1]).all()
    np.testing.assert_allclose(probs[[0, 2]], 1 / 3, rtol=1e-6)
    assert why_not_finite(logits[1], ["sad", "happy", "angry"]) == f"the model puts out {reason}"
