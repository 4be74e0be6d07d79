"""Soft pseudo-labels over rounds: teachers label every unlabeled row, and students learn from labels and from those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import apply_temperature, fit_temperature
from ray_fer.heads.examples import Examples, Indices, draw_weights, one_hot
from ray_fer.heads.net import MeanOfHeads
from ray_fer.heads.train import HeadSettings, predict, train_head

Columns = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class CrossFit:
    """What heads say of rows that they have not learnt from.

    Attributes:
        probs: float32 (N, K), of the labelled rows.
        temperature: by which `apply_temperature` calibrates them, see `fit_temperature`.
        model: the mean of the heads of all folds, on the embeddings side by side.
    """

    probs: NDArray[np.float32]
    temperature: float
    model: MeanOfHeads


def folds_of(labels: Indices, n_folds: int, groups: Sequence[str] | None, seed: int) -> Indices:
    """A fold for each row, (N,), with as equal numbers of each class as there can be.

    Args:
        labels: (N,).
        n_folds: two or more.
        groups: rows of one group share a fold; None: every row is its own.
        seed: of the order.
    """
    names = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _, first = np.unique(names, return_index=True)
    folds_of_groups = np.zeros(len(first), dtype=np.int64)
    generator, turn = np.random.default_rng(seed), 0
    for label in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels[first] == label))
        folds_of_groups[mine] = (turn + np.arange(len(mine))) % n_folds
        turn += len(mine)  # so that the rare classes do not all begin at fold 0
    return folds_of_groups[names]


def labelled_examples(embeddings: Any, labels: Indices, n_classes: int, power: float) -> Examples:
    """Labelled rows, drawn by class.

    Raises:
        UserError: if there are fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise UserError(f"the {len(labels)} labelled faces are all of one class")
    targets = one_hot(labels, n_classes)
    return Examples(embeddings, targets, draw_weights(targets, power))


def train_heads(labeled: Examples, settings: HeadSettings, columns: Columns, seed: int, **given: Any) -> MeanOfHeads:
    """One head on each range of columns; see `train_head` for what may be given."""
    statistics, pseudo = given.pop("statistics", None), given.pop("pseudo", None)
    heads = []
    for place, (first, last) in enumerate(columns):
        mine = None if statistics is None else tuple(each[first:last] for each in statistics)
        heads.append(
            train_head(
                _narrowed(labeled, first, last),
                settings,
                seed + 1000 * place,
                pseudo=pseudo and _narrowed(pseudo, first, last),
                statistics=mine,
                **given,
            )
        )
    return MeanOfHeads(heads, columns)


def cross_fit(
    labeled: Examples,
    settings: HeadSettings,
    columns: Columns,
    folds: Indices,
    seed: int,
    *,
    statistics: tuple[Any, Any] | None = None,
) -> CrossFit:
    """Heads for each fold, each on the rows of the other folds.

    Args:
        labeled: rows with one-hot targets.
        settings: of every head.
        columns: of the heads, which are averaged.
        folds: (N,), see `folds_of`.
        seed: of the heads.
        statistics: of the embeddings, (D,) each.
    """
    probs = np.zeros(labeled.targets.shape, dtype=np.float32)
    heads: list[nn.Module] = []
    for fold in np.unique(folds):
        away = np.flatnonzero(folds == fold)
        model = train_heads(
            _rows(labeled, np.flatnonzero(folds != fold), settings.draw_power),
            settings,
            columns,
            seed + 100 * int(fold),
            statistics=statistics,
        )
        probs[away] = predict(model, labeled.embeddings[away])
        heads += list(model.heads)
    temperature = fit_temperature(probs, labeled.targets.argmax(axis=1))
    return CrossFit(probs, temperature, MeanOfHeads(heads, list(columns) * len(np.unique(folds))))


def soft_labels(probs: Any, temperature: float = 1.0) -> NDArray[np.float32]:
    """Calibrated distributions, float32 (N, K), of probabilities (N, K)."""
    return apply_temperature(probs, temperature).astype(np.float32)


def pseudo_examples(embeddings: Any, targets: NDArray[np.float32], power: float) -> Examples:
    """All rows with their soft labels, drawn so that rare classes do not lose; see `draw_weights`."""
    return Examples(embeddings, targets, draw_weights(targets, power))


def _rows(examples: Examples, rows: Indices, power: float) -> Examples:
    targets = examples.targets[rows]
    return replace(examples, embeddings=examples.embeddings[rows], targets=targets, draws=draw_weights(targets, power))


def _narrowed(examples: Examples, first: int, last: int) -> Examples:
    return replace(examples, embeddings=examples.embeddings[:, first:last])
