"""Heads on separable and on half-labelled rows."""

import dataclasses
from typing import Any

import numpy as np
import torch

from ray_fer.heads.examples import Examples, draw_weights, one_hot
from ray_fer.heads.net import Head, MeanOfHeads, moments
from ray_fer.heads.train import HeadSettings, predict, train_head

QUICK = HeadSettings(hidden=16, steps=60, batch=32, learning_rate=1e-2)


def rows(n: int, seed: int, spread: float = 0.5) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=n)
    centres = 40 * np.eye(3, 6) + 100
    return (centres[labels] + 20 * spread * generator.normal(size=(n, 6))).astype(np.float16), labels


def examples(embeddings: Any, labels: Any) -> Examples:
    targets = one_hot(labels, 3)
    return Examples(embeddings, targets, draw_weights(targets, 0.5))


def test_a_head_learns_from_features_of_any_scale() -> None:
    train, labels = rows(200, 0)
    test, truth = rows(300, 1)
    probs = predict(train_head(examples(train, labels), QUICK, 0), test)
    assert (probs.argmax(1) == truth).mean() > 0.95
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)


def test_a_seed_gives_the_same_head_and_leaves_torch_alone() -> None:
    data = examples(*rows(60, 0))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, other = (predict(train_head(data, QUICK, seed), data.embeddings) for seed in (3, 3, 4))
    assert torch.rand(1) == expected
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_pseudo_labels_teach_a_class_that_has_no_label() -> None:
    few, labels = rows(60, 0)
    known = labels < 2
    unlabeled, truth = rows(300, 1)
    test, expected = rows(300, 2)
    labeled = examples(few[known], labels[known])
    without = predict(train_head(labeled, QUICK, 0), test).argmax(1)
    taught = predict(train_head(labeled, QUICK, 0, pseudo=examples(unlabeled, truth)), test).argmax(1)
    assert not (without == 2).any()
    assert (taught == expected).mean() > 0.95


def test_a_loss_through_the_noise_undoes_it() -> None:
    few, labels = rows(30, 0, spread=1.0)
    unlabeled, truth = rows(2000, 1, spread=1.0)
    test, expected = rows(500, 2, spread=1.0)
    noise = np.array([[0.4, 0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    named = np.where((truth == 0) & (np.random.default_rng(3).random(2000) < 0.6), 1, truth)
    settings = dataclasses.replace(QUICK, steps=150, ratio=8)
    labeled, pseudo = examples(few, labels), examples(unlabeled, named)
    plain = predict(train_head(labeled, settings, 0, pseudo=pseudo), test).argmax(1)
    through = predict(train_head(labeled, settings, 0, pseudo=pseudo, transition=noise), test).argmax(1)
    zero = expected == 0
    assert (through == expected)[zero].mean() > (plain == expected)[zero].mean() + 0.2


def test_moments_of_blocks_are_those_of_all_rows() -> None:
    data = np.random.default_rng(0).normal(3, 2, size=(100, 4))
    mean, scale = moments([data[:30], data[30:]])
    np.testing.assert_allclose(mean, data.mean(0))
    np.testing.assert_allclose(scale, data.std(0))


def test_a_new_head_is_even_and_survives_constant_and_extreme_columns() -> None:
    head = Head(np.zeros(3), np.array([1.0, 0.0, 2.0]), 4, hidden=8, dropout=0.0)
    extreme = torch.tensor([[0.0, 0.0, 6e4], [1.0, 1e-9, -6e4]])
    torch.testing.assert_close(head(extreme).softmax(1), torch.full((2, 4), 0.25))
    assert head.standardised(extreme).abs().max() == 5


def test_the_mean_of_heads_is_that_of_their_probabilities_on_their_columns() -> None:
    embeddings, labels = rows(60, 0)
    left = train_head(examples(embeddings[:, :3], labels), QUICK, 0)
    right = train_head(examples(embeddings[:, 2:], labels), QUICK, 1)
    both = predict(MeanOfHeads([left, right], [(0, 3), (2, 6)]), embeddings)
    expected = (predict(left, embeddings[:, :3]) + predict(right, embeddings[:, 2:])) / 2
    np.testing.assert_allclose(both, expected, atol=1e-6)
