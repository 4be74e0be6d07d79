"""Folds, and what heads say of rows that they have not learnt from."""

import dataclasses

import numpy as np
import pytest

from ray_fer.errors import UserError
from ray_fer.heads.rounds import cross_fit, folds_of, labelled_examples, train_heads
from ray_fer.heads.train import HeadSettings, predict

QUICK = HeadSettings(hidden=16, steps=40, batch=32, learning_rate=1e-2)


def test_folds_share_the_classes_and_keep_groups_together() -> None:
    labels = np.repeat([0, 1, 2], [40, 10, 2])
    groups = [str(row // 2) for row in range(52)]
    folds = folds_of(labels, 5, groups, 0)
    assert (folds[::2] == folds[1::2]).all()
    assert (np.bincount(folds[labels == 0]) == 8).all()
    assert (np.bincount(folds[labels == 1]) == 2).all()
    assert np.bincount(folds, minlength=5).max() - np.bincount(folds, minlength=5).min() <= 2


def test_no_row_is_predicted_by_a_head_that_has_learnt_from_it() -> None:
    generator = np.random.default_rng(0)
    embeddings, labels = generator.normal(size=(60, 40)), generator.integers(2, size=60)
    labeled = labelled_examples(embeddings, labels, 2, 0.5)
    settings = dataclasses.replace(QUICK, dropout=0.0, steps=150)
    fit = cross_fit(labeled, settings, [(0, 40)], folds_of(labels, 5, None, 0), 0)
    seen = predict(train_heads(labeled, settings, [(0, 40)], 0), embeddings)
    assert (seen.argmax(1) == labels).mean() > 0.95  # of random labels: learnt by heart
    assert (fit.probs.argmax(1) == labels).mean() < 0.75
    np.testing.assert_allclose(fit.probs.sum(1), 1, rtol=1e-5)


def test_over_confident_heads_get_a_temperature_above_one() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=400)
    embeddings = generator.normal(size=(400, 30)) + 0.3 * labels[:, None]
    labeled = labelled_examples(embeddings, labels, 2, 0.5)
    settings = dataclasses.replace(QUICK, dropout=0.0, steps=150)
    assert cross_fit(labeled, settings, [(0, 30)], folds_of(labels, 4, None, 0), 0).temperature > 1.2


def test_each_head_has_its_columns_of_labels_and_pseudo_labels() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=100)
    embeddings = generator.normal(size=(100, 6)).astype(np.float16)
    embeddings[:, 5] += 6 * labels
    labeled = labelled_examples(embeddings, labels, 2, 0.5)
    model = train_heads(labeled, QUICK, [(0, 3), (3, 6)], 0, pseudo=labeled)
    assert [len(head.mean) for head in model.heads] == [3, 3]
    assert (predict(model.heads[1], embeddings[:, 3:]).argmax(1) == labels).mean() > 0.95


def test_labels_of_one_class_are_refused() -> None:
    with pytest.raises(UserError, match="the 10 labelled faces are all of one class"):
        labelled_examples(np.zeros((10, 2)), np.ones(10, dtype=int), 7, 0.5)
