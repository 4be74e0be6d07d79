from __future__ import annotations

import numpy as np
import pytest

from ray_fer.models.outputs import Outputs
from ray_fer.models.softmax import softmax

RAW = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 3


def test_the_net_s_own_outputs_are_left_alone() -> None:
    assert Outputs((0, 1, 2)).trivial
    assert not Outputs((1, 0, 2)).trivial
    assert not Outputs((0, 1), temperature=2.0).trivial
    assert not Outputs((0, 1), probabilities=True).trivial
    np.testing.assert_array_equal(Outputs((0, 1, 2, 3, 4))(RAW), RAW)


def test_another_order() -> None:
    np.testing.assert_array_equal(Outputs((2, 0, 1))(RAW[:, :3])[:, (2, 0, 1)], RAW[:, :3])


@pytest.mark.parametrize("probabilities", [False, True])
def test_dropped_classes_leave_their_probability_to_the_others(probabilities: bool) -> None:
    p = softmax(RAW).astype(np.float64)
    ours = softmax(Outputs((1, -1, 0, -1, 2), probabilities)(softmax(RAW) if probabilities else RAW))
    wanted = p[:, [2, 0, 4]] / p[:, [2, 0, 4]].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


@pytest.mark.parametrize("probabilities", [False, True])
def test_merged_classes_add_their_probabilities(probabilities: bool) -> None:
    p = softmax(RAW).astype(np.float64)
    ours = softmax(Outputs((0, 1, 1, -1, 0), probabilities)(softmax(RAW) if probabilities else RAW))
    wanted = np.stack([p[:, 0] + p[:, 4], p[:, 1] + p[:, 2]], axis=1)
    np.testing.assert_allclose(ours, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_class_dropped_with_near_certainty_leaves_numbers() -> None:
    raw = np.array([[200.0, -3.0, -1.0, -2.0]], np.float32)
    np.testing.assert_allclose(softmax(Outputs((-1, 0, 1, 1))(raw)).sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(softmax(Outputs((-1, 0, 1))(raw[:, :3])), softmax(raw[:, 1:3]), rtol=1e-6)
    assert np.isfinite(Outputs((-1, 0, 1), probabilities=True)(np.array([[1.0, 0.0, 0.0]], np.float32))).all()


def test_the_temperature_divides_logits_whatever_the_net_puts_out() -> None:
    wanted = softmax(RAW / 2.5)
    np.testing.assert_allclose(softmax(Outputs((0, 1, 2, 3, 4), temperature=2.5)(RAW)), wanted, rtol=1e-5)
    as_probabilities = Outputs((0, 1, 2, 3, 4), probabilities=True, temperature=2.5)
    np.testing.assert_allclose(softmax(as_probabilities(softmax(RAW))), wanted, rtol=1e-4)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("columns", [(0, 1, 2), (2, 0, 1), (0, 1, -1), (0, 1, 1), (0, 0, 1)])
@pytest.mark.parametrize("bad", [[NAN, 1, 2], [1, 2, NAN], [INF, 1, 2], [1, 2, INF], [-INF, -INF, -INF]])
def test_what_is_not_finite_stays_so_whatever_becomes_of_its_class(columns: tuple[int, ...], bad: list[float]) -> None:
    raw = np.array([[1, 2, 3], bad, [3, 2, 1]], np.float32)
    for probabilities in (False, True):
        found = softmax(Outputs(columns, probabilities, temperature=2.0)(raw))
        np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, False])
        assert np.isfinite(found[[0, 2]]).all()


def test_masked_classes_are_of_no_probability() -> None:
    raw = np.array([[-INF, 0, np.log(3)]], np.float32)
    np.testing.assert_allclose(softmax(Outputs((0, 1, 2), temperature=0.5)(raw)), [[0, 0.1, 0.9]], atol=1e-6)
    np.testing.assert_allclose(softmax(Outputs((0, 1, 1))(raw)), [[0, 1]], atol=1e-6)
    np.testing.assert_allclose(softmax(Outputs((0, 0, 1))(raw)), [[0.25, 0.75]], atol=1e-6)


def test_logits_may_be_larger_than_float32_after_the_temperature() -> None:
    raw = np.array([[3e38, 3e38, -3e38]], np.float32)
    np.testing.assert_allclose(softmax(Outputs((0, 1, 2), temperature=1e-3)(raw)), [[0.5, 0.5, 0]])
    np.testing.assert_allclose(softmax(Outputs((0, 1, 1), temperature=1e-3)(raw)), [[0.5, 0.5]])


def test_probabilities_in_eight_bits_are_renormalised() -> None:
    exact = softmax(RAW)
    rounded = np.round(exact * 255) / 255
    assert np.abs(rounded.sum(axis=1) - 1).max() > 1e-3
    ours = softmax(Outputs((0, 1, 2, 3, 4), probabilities=True)(rounded))
    np.testing.assert_allclose(ours, rounded / rounded.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-9)


def test_probabilities_that_are_all_zero_are_none() -> None:
    assert np.isnan(softmax(Outputs((0, 1, 2), probabilities=True)(np.zeros((1, 3), np.float32)))).all()
