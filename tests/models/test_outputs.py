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
