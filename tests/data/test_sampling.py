"""sampling: exact counts, no repetition before exhaustion, the same rows for the same (seed, epoch, step)."""

import json

import numpy as np
import pytest

from ray_fer.data.sampling import ClassUniformSampler, weighted_indices

LABELS = np.array([0] * 100 + [1] * 30 + [2] * 5 + [-1] * 20)


def test_classes_are_uniform_and_unlabelled_rows_never_drawn() -> None:
    drawn = ClassUniformSampler(LABELS, 3, 64, steps=300).epoch(0)
    assert drawn.shape == (300, 64)
    shares = np.bincount(LABELS[drawn.ravel()], minlength=3) / drawn.size
    np.testing.assert_allclose(shares, 1 / 3, atol=0.012)  # 3.5 standard deviations of the multinomial
    assert LABELS[drawn].min() == 0


def test_order_of_classes_is_random() -> None:
    classes = LABELS[ClassUniformSampler(LABELS, 3, 64, steps=300).epoch(0)].ravel()
    same = (classes[1:] == classes[:-1]).mean()
    assert abs(same - 1 / 3) < 0.02


def test_an_instance_returns_only_after_all_others_of_its_class_across_epochs() -> None:
    sampler = ClassUniformSampler(LABELS, 3, 16, steps=10)
    drawn = np.concatenate([sampler.epoch(epoch).ravel() for epoch in range(6)])
    for index in range(3):
        stream = drawn[LABELS[drawn] == index]
        size = int((index == LABELS).sum())
        for start in range(0, len(stream) - size + 1, size):
            assert sorted(stream[start : start + size]) == np.flatnonzero(index == LABELS).tolist()
        rest = stream[len(stream) // size * size :]
        assert len(set(rest.tolist())) == len(rest)


def test_shuffles_differ() -> None:
    sampler = ClassUniformSampler(np.zeros(50, np.int64), 1, 50, steps=2)
    first, second = sampler.epoch(0)
    assert sorted(first) == sorted(second)
    assert (first != second).any()


def test_pure_in_seed_epoch_and_step() -> None:
    one, two = (ClassUniformSampler(LABELS, 3, 8, steps=5, seed=3) for _ in range(2))
    two.epoch(0)
    for epoch in (4, 0):
        np.testing.assert_array_equal(one.epoch(epoch), two.epoch(epoch))
        np.testing.assert_array_equal(one.epoch(epoch)[3], two.epoch(epoch)[3])
    assert (one.epoch(0) != one.epoch(1)).any()
    assert (one.epoch(0) != ClassUniformSampler(LABELS, 3, 8, steps=5, seed=4).epoch(0)).any()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_cut_up_the_order_of_one_worker(world_size: int) -> None:
    alone = ClassUniformSampler(LABELS, 3, 4 * world_size, steps=7, seed=1).epoch(2)
    ranks = [
        ClassUniformSampler(LABELS, 3, 4, steps=7, seed=1, rank=rank, world_size=world_size).epoch(2)
        for rank in range(world_size)
    ]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1), alone)


def test_default_epoch_draws_as_many_rows_as_are_labelled() -> None:
    assert ClassUniformSampler(LABELS, 3, 8, world_size=2).steps == 9  # ceil(135 / 16)


def test_class_probs_and_absent_classes() -> None:
    sampler = ClassUniformSampler(LABELS, 4, 50, steps=100, class_probs=[1, 1, 0, 6])
    np.testing.assert_array_equal(sampler.class_probs(0), [0.5, 0.5, 0, 0])
    assert set(LABELS[sampler.epoch(0)].ravel().tolist()) == {0, 1}
    np.testing.assert_array_equal(ClassUniformSampler(LABELS, 4, 8).class_probs(3), [1 / 3, 1 / 3, 1 / 3, 0])


def test_other_probabilities_from_an_epoch_on() -> None:
    plain, sampler = (ClassUniformSampler(LABELS, 3, 16, steps=10) for _ in range(2))
    sampler.reweight(2, np.array([0.1, 0.1, 0.8]))
    sampler.reweight(4, np.array([0.8, 0.2, 0.0]))
    drawn = [sampler.epoch(epoch) for epoch in range(5)]
    for epoch in range(2):
        np.testing.assert_array_equal(drawn[epoch], plain.epoch(epoch))
    assert (LABELS[drawn[2]] == 2).mean() > 0.6
    assert not (LABELS[drawn[4]] == 2).any()
    # Still each instance once before any comes back, for the streams know what earlier epochs really took.
    stream = np.concatenate([rows.ravel() for rows in drawn])
    stream = stream[LABELS[stream] == 1]
    assert sorted(stream[:30]) == np.flatnonzero(LABELS == 1).tolist()
    again = ClassUniformSampler(LABELS, 3, 16, steps=10)
    again.schedule = json.loads(json.dumps(sampler.schedule))
    np.testing.assert_array_equal(again.epoch(4), drawn[4])


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no class can be drawn"):
        ClassUniformSampler(np.array([-1, -1]), 3, 8)
    with pytest.raises(ValueError, match="no class can be drawn"):
        ClassUniformSampler(LABELS, 3, 8, class_probs=[0, 0, 0])


def test_weighted_indices_come_in_exact_proportion() -> None:
    weights = np.array([0, 1, 2, 0.5, 0, 4.5, 0])
    drawn = weighted_indices(weights, 80, seed=1)
    assert np.bincount(drawn, minlength=7).tolist() == [0, 10, 20, 5, 0, 45, 0]
    assert (np.diff(drawn) < 0).any()


def test_weighted_counts_are_floor_or_ceil_and_unbiased() -> None:
    weights = np.random.default_rng(0).random(20)
    expected = 50 * weights / weights.sum()
    counts = np.array([np.bincount(weighted_indices(weights, 50, epoch=e), minlength=20) for e in range(400)])
    assert (np.abs(counts - expected) < 1).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.1)


def test_weighted_indices_are_pure() -> None:
    weights = np.ones(10)
    np.testing.assert_array_equal(weighted_indices(weights, 10, seed=1), weighted_indices(weights, 10, seed=1))
    assert sorted(weighted_indices(weights, 10, seed=1)) == list(range(10))
    assert (weighted_indices(weights, 10, seed=1) != weighted_indices(weights, 10, seed=1, epoch=1)).any()


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf")]])
def test_senseless_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        weighted_indices(weights, 3)
