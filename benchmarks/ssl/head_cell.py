"""One budget and seed of the heads regime, and the steps that its methods are made of.

What several methods need (teachers, their soft labels, out-of-fold predictions) is computed once per `Cell`; the passes
still count all of it for every method that builds on it. A pass is one embedding forward and backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ssl.faces import Rows, cut_rows
from benchmarks.ssl.features import DEPTHS, Features
from ray_fer.evaluation.calibration import fit_temperature
from ray_fer.heads.examples import Examples, draw_weights
from ray_fer.heads.net import moments
from ray_fer.heads.recipe import STUDENT, TEACHER
from ray_fer.heads.rounds import CrossFit, cross_fit, folds_of, labelled_examples, soft_labels, train_heads
from ray_fer.heads.train import HeadSettings, predict

K = 7
ONE = ((0, 2304),)
FOUR = tuple((each.start, each.stop) for each in DEPTHS.values())
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Soft:
    """Soft labels of all faces, (N, K), and what they cost."""

    probs: NDArray[Any]
    passes: int


class Taken:
    """Some rows of embeddings, of which only those that are drawn are copied."""

    def __init__(self, embeddings: Any, rows: Any) -> None:
        self.embeddings, self.rows = embeddings, rows

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return Taken(self.embeddings[key], self.rows)
        return self.embeddings[self.rows[key]]


class Cell:
    """One cut of the features.

    Args:
        features: the cache.
        budget: share of the labels.
        seed: of the cut and of all heads.
    """

    def __init__(self, features: Features, budget: float, seed: int) -> None:
        self.features, self.seed = features, seed
        self.rows: Rows = cut_rows(features.labels, features.roles, features.groups, budget, seed)
        self.labels = features.labels[self.rows.labeled]
        self.memory: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, computed once."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def labeled(self, view: str, settings: HeadSettings) -> Examples:
        """The labelled rows of a view."""
        return labelled_examples(self.embeddings(view)[self.rows.labeled], self.labels, K, settings.draw_power)

    def embeddings(self, view: str) -> NDArray[Any]:
        """float16 (N, D) of views whose names are joined by a plus sign."""
        embeddings: NDArray[Any] = joined(self.features, view)[0]
        return embeddings

    def statistics(self, view: str) -> Any:
        """Mean and standard deviation of all faces that are trained on."""
        return joined(self.features, view)[1]


@functools.lru_cache(8)
def joined(features: Features, view: str) -> Any:
    """The embeddings of the views side by side, and their moments over labelled and unlabeled faces."""
    together = np.concatenate([features.views[name] for name in view.split("+")], axis=1)
    trained = np.flatnonzero((features.roles == "labeled") | (features.roles == "unlabeled"))
    return together, moments(together[trained[at : at + 4096]] for at in range(0, len(trained), 4096))


def taught(cell: Cell, view: str, columns: Any, settings: HeadSettings = TEACHER) -> Soft:
    """Labels only: what one head, or several on other columns, says of all faces."""

    def make() -> Soft:
        model = train_heads(
            cell.labeled(view, settings), settings, columns, cell.seed, statistics=cell.statistics(view)
        )
        return Soft(predict(model, cell.embeddings(view)), len(columns) * settings.steps * settings.batch)

    soft: Soft = cell.once(("taught", view, columns, settings), make)
    return soft


def crossed(cell: Cell, view: str, columns: Any, settings: HeadSettings = TEACHER) -> tuple[Soft, CrossFit]:
    """What the heads of all folds say of all faces, calibrated, and of the labelled faces out of fold.

    Near-duplicates are in one fold. The temperature is that of one fold's heads.
    """

    def make() -> tuple[Soft, CrossFit]:
        groups = [cell.features.groups[row] for row in cell.rows.labeled]
        folds = folds_of(cell.labels, FOLDS, groups, cell.seed)
        labeled = cell.labeled(view, settings)
        fit = cross_fit(labeled, settings, columns, folds, cell.seed, statistics=cell.statistics(view))
        probs = soft_labels(predict(fit.model, cell.embeddings(view)), fit.temperature)
        return Soft(probs, FOLDS * len(columns) * settings.steps * settings.batch), fit

    both: tuple[Soft, CrossFit] = cell.once(("crossed", view, columns, settings), make)
    return both


def outside(cell: Cell) -> Soft:
    """The net that others trained, at the temperature of the labelled faces, which it has not learnt from."""
    logits = cell.embeddings("outside_logits").astype(np.float64)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    return Soft(soft_labels(probs, fit_temperature(probs[cell.rows.labeled], cell.labels)), 0)


def with_labels(cell: Cell) -> Soft:
    """One head on the labels of the unlabeled faces too: no method, the roof."""
    labels = cell.features.labels
    known = np.concatenate([cell.rows.labeled, cell.rows.unlabeled[labels[cell.rows.unlabeled] >= 0]])
    settings = STUDENT
    examples = labelled_examples(cell.embeddings("whole")[known], labels[known], K, settings.draw_power)
    model = train_heads(examples, settings, ONE, cell.seed, statistics=cell.statistics("whole"))
    return Soft(predict(model, cell.embeddings("whole")), settings.steps * settings.batch)


def feedback_half(cell: Cell) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and labels of the half of ``val`` that feedback may use."""
    rows = cell.rows.val[cell.rows.feedback_rows]
    return rows, cell.features.labels[rows]


def accepted_by(probs: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[np.float64]:
    """1 for rows (N, K) whose confidence is that of their class or more, 0 for others."""
    accepted: NDArray[np.float64] = (probs.max(axis=1) >= thresholds[probs.argmax(axis=1)]).astype(np.float64)
    return accepted


def mean_of(*parts: Soft) -> Soft:
    """The mean of several teachers' probabilities."""
    return Soft(np.mean([part.probs for part in parts], axis=0), sum(part.passes for part in parts))


def student(
    cell: Cell,
    teacher: Soft,
    view: str = "whole",
    columns: Any = ONE,
    settings: HeadSettings = STUDENT,
    weights: Any = 1.0,
    power: float = 1.0,
    noise: Any = None,
) -> Soft:
    """Heads that learn from the labels and from a teacher's soft labels of all unlabeled faces.

    Args:
        cell: the cut.
        teacher: its soft labels.
        view: what the student sees.
        columns: of each head.
        settings: of each head.
        weights: (N,) factors of the draws of the unlabeled faces; 0 rejects one.
        power: of the draws of the unlabeled faces, see `draw_weights`.
        noise: see `train_head`.
    """
    rows = cell.rows.unlabeled
    targets = teacher.probs[rows].astype(np.float32)
    draws = draw_weights(targets, power) * weights
    model = train_heads(
        cell.labeled(view, settings),
        settings,
        columns,
        cell.seed,
        statistics=cell.statistics(view),
        pseudo=Examples(Taken(cell.embeddings(view), rows), targets, draws),
        transition=noise,
    )
    spent = round(len(columns) * settings.steps * settings.batch * (1 + settings.ratio))
    return Soft(predict(model, cell.embeddings(view)), teacher.passes + spent)
