"""Draws, and streams of embeddings on disk."""

import numpy as np
import pytest

from ray_fer.errors import UserError
from ray_fer.heads.examples import draw, draw_weights, one_hot, spool

LABELS = np.repeat([0, 1], [90, 10])


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.1), (0.5, 10**0.5 / (90**0.5 + 10**0.5)), (0.0, 0.5)])
def test_a_class_is_drawn_as_the_power_of_its_count(power: float, share: float) -> None:
    weights = draw_weights(one_hot(LABELS, 3), power)
    assert weights[LABELS == 1].sum() == pytest.approx(share)
    drawn = LABELS[draw(weights, (100, 100), np.random.default_rng(0))]
    assert (drawn == 1).mean() == pytest.approx(share, abs=0.02)


def test_a_face_that_may_be_of_a_rare_class_is_drawn_more_and_none_is_left_out() -> None:
    targets = np.array([[0.9, 0.1]] * 50 + [[0.5, 0.5]] * 2)
    weights = draw_weights(targets, 0.5)
    assert weights.min() > 0
    assert weights[-1] > 1.3 * weights[0]


def test_a_row_without_weight_is_never_drawn() -> None:
    rows = draw(np.array([0.0, 1.0, 0.0, 2.0, 0.0]), (50, 50), np.random.default_rng(0))
    assert set(np.unique(rows)) == {1, 3}


def test_a_spooled_stream_reads_as_one_array(tmp_path) -> None:
    whole = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float16)
    mapped = spool((whole[start : start + 32] for start in range(0, 70, 32)), tmp_path / "rows")
    np.testing.assert_array_equal(mapped[[69, 0, 33]], whole[[69, 0, 33]])
    assert len(mapped) == 70


def test_a_stream_of_two_models_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="5 and of 6"):
        spool([np.zeros((2, 5)), np.zeros((2, 6))], tmp_path / "rows")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_the_row_that_is_not_finite_is_named(tmp_path, bad: float) -> None:
    block = np.zeros((4, 3))
    block[1, 2] = bad
    with pytest.raises(UserError, match="row 5 is not finite"):
        spool([np.zeros((4, 3)), block], tmp_path / "rows")


def test_an_empty_stream_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no embeddings"):
        spool([], tmp_path / "rows")
