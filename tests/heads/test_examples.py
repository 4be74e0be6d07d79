"""How often rows are drawn."""

import numpy as np
import pytest

from ray_fer.heads.examples import draw, draw_weights, one_hot

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
