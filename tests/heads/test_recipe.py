"""The recipe on points in a plane of many columns: what is chosen, what teaches, and when it stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ray_fer.errors import UserError
from ray_fer.evaluation.metrics import confusion_matrix, macro_f1
from ray_fer.heads import recipe
from ray_fer.heads.recipe import Data, RecipeSettings, learn
from ray_fer.heads.train import predict

QUICK = RecipeSettings(steps=40, folds=2)


def points(count: int, seed: int, spread: float = 1.0) -> tuple[Any, Any]:
    """Embeddings (N, 6) and labels (N,) of three classes, each far along two columns of its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    embeddings = rng.normal(0, spread, (count, 6))
    embeddings[np.arange(count), 2 * labels] += 3
    return embeddings.astype(np.float16), labels


def data(labeled: int = 12, **given: Any) -> Data:
    (embeddings, labels), (unlabeled, _), (val, val_labels) = points(labeled, 1), points(300, 2), points(120, 3)
    feedback_rows = np.arange(120) % 2 == 0
    columns = ((0, 6),)
    made = Data(embeddings, labels, None, unlabeled, val, val_labels, feedback_rows, columns, n_classes=3)
    return replace(made, **given)


def test_it_is_a_function_of_its_arguments() -> None:
    first, again, other = learn(data(), QUICK), learn(data(), QUICK), learn(data(), replace(QUICK, seed=1))
    assert np.array_equal(first.best.probs, again.best.probs)
    assert not np.array_equal(first.best.probs, other.best.probs)
    assert first.best.score > 0.8


def test_the_best_on_the_choice_half_counts_and_a_round_that_is_no_better_ends_it() -> None:
    given = data()
    found = learn(given, replace(QUICK, rounds=6))
    scores = [
        macro_f1(confusion_matrix(given.val_labels[1::2], each.probs[1::2].argmax(1), 3)) for each in found.candidates
    ]
    assert scores == [each.score for each in found.candidates]
    assert found.best is found.candidates[found.round]
    assert found.round == scores.index(max(scores))
    assert len(scores) < 7, "no score rises seven times in a row"
    assert scores[-1] <= max(scores[:-1])
    assert all(scores[number] > max(scores[:number]) for number in range(1, len(scores) - 1))
    assert np.allclose(predict(found.best.model, given.val), found.best.probs)


def test_outside_models_teach_a_class_that_the_labels_lack() -> None:
    embeddings, labels = points(30, 1)
    kept = labels != 2
    _, truth = points(300, 2)
    blind = replace(data(), labeled=embeddings[kept], labels=labels[kept])
    knowing = replace(blind, outside=[np.eye(3, dtype=np.float32)[truth]])
    assert 2 not in learn(blind, QUICK).best.probs.argmax(axis=1)
    best = learn(knowing, QUICK).best
    assert (best.probs.argmax(axis=1) == blind.val_labels).mean() > 0.8


def test_every_backbone_has_a_head_of_its_own_among_the_teachers() -> None:
    found = learn(data(columns=((0, 4), (4, 6))), replace(QUICK, rounds=1))
    teachers, student = (each.model for each in found.candidates)
    assert teachers.columns == ((0, 6), (0, 6), (0, 4), (4, 6))
    assert student.columns == ((0, 6),)


def test_without_rounds_the_teachers_count() -> None:
    found = learn(data(), replace(QUICK, rounds=0))
    assert (found.round, len(found.candidates), found.soft) == (0, 1, None)


def test_labelled_faces_of_one_group_have_no_folds() -> None:
    with pytest.raises(UserError, match="the 12 labelled faces are all of one group"):
        learn(data(groups=["a"] * 12), QUICK)


def test_few_faces_have_few_folds() -> None:
    assert [recipe._n_folds(data(labeled=count), 5) for count in (3, 9, 60)] == [2, 3, 5]
