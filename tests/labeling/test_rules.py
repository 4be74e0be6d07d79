import numpy as np
import pytest

from ray_fer.config import SelectionConfig, load_config
from ray_fer.labeling.rules import debias, threshold, top_k

PROBS = np.array([[0.9, 0.1], [0.7, 0.3], [0.45, 0.55], [0.2, 0.8], [0.6, 0.4], [0.95, 0.05]])
ONES = np.ones(2)


def config(**keys: object) -> SelectionConfig:
    given = [f"selection.{key}={value}" for key, value in keys.items()]
    job = load_config("select_pseudo_labels", ["table=t", "teacher=t", "out=o", *given])
    assert isinstance(job.selection, SelectionConfig)
    return job.selection


def test_threshold_is_per_class() -> None:
    accepted = threshold(PROBS, np.array([0.8, 0.5]), np.array([1.0, 2.0]), config())
    assert accepted.rows.tolist() == [0, 2, 3, 5]
    assert accepted.labels.tolist() == [0, 1, 1, 0]
    assert accepted.weights.tolist() == [1, 2, 2, 1]


def test_threshold_accepts_nothing_gracefully() -> None:
    assert len(threshold(PROBS, np.ones(2), ONES, config()).rows) == 0


def test_top_k_cuts_the_abundant_and_repeats_the_scarce() -> None:
    accepted = top_k(PROBS, np.array([0.8, 0.8]), ONES, config(per_class=3))
    assert accepted.rows.tolist() == [0, 1, 2, 3, 5]  # 4 has the least confidence of class 0
    assert accepted.weights.tolist() == pytest.approx([1, 1, 1.5, 1.5, 1])


def test_top_k_never_repeats_more_than_max_copies() -> None:
    accepted = top_k(PROBS, np.array([0.8, 0.8]), ONES, config(per_class=100, max_copies=2))
    assert set(accepted.weights.tolist()) == {2.0}


def test_top_k_wants_a_kth_of_what_passes() -> None:
    accepted = top_k(PROBS, np.array([0.8, 0.8]), ONES, config())  # three pass, so one of each
    assert accepted.rows.tolist() == [3, 5]


def test_debias_without_prior_is_identity_and_with_one_shifts_logits() -> None:
    assert debias(PROBS, None) == pytest.approx(PROBS)
    assert debias(PROBS, np.log([0.5, 0.5])) == pytest.approx(PROBS)
    shifted = debias(np.array([[0.6, 0.4]]), np.log([0.8, 0.2]))
    assert shifted == pytest.approx(np.array([[0.75, 2.0]]) / 2.75, rel=1e-6)
