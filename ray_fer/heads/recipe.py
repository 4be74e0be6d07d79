"""From embeddings and labels to the head that is published: folds, teachers, and students over rounds.

1. Heads of every fold of the labelled rows, on the embeddings side by side. What they say of the rows of the other
   folds gives the temperature that calibrates them; their mean is a teacher.
2. Of several backbones, one head on the embeddings of each is a teacher too.
3. The mean of the teachers' calibrated probabilities, and of those of outside models, are soft labels of every
   unlabeled row. One head learns from them and from the labels, and labels the next round.
4. The best on the choice half of the validation set counts, where the first of equals wins; a round that is no better
   than all before ends it. Classes of which it has fewer than 30 faces do not choose, where there are others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import fit_temperature
from ray_fer.evaluation.metrics import confusion_matrix, macro_f1, macro_f1_of_frequent
from ray_fer.heads.examples import blocks_of
from ray_fer.heads.net import MeanOfHeads, moments
from ray_fer.heads.rounds import (
    Columns,
    cross_fit,
    folds_of,
    labelled_examples,
    pseudo_examples,
    soft_labels,
    train_heads,
)
from ray_fer.heads.train import HeadSettings, predict

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
TEACHER = HeadSettings(steps=400, dropout=0.6, bfloat16=True)
STUDENT = HeadSettings(steps=400, ratio=3, bfloat16=True)


@dataclass(frozen=True)
class RecipeSettings:
    """What a user may choose of the recipe.

    Attributes:
        rounds: Students at most; 0 for the teachers alone.
        folds: Parts of the labelled rows; fewer where there are fewer rows of the most frequent class.
        steps: Of the optimiser, for each head.
        pseudo_power: Of the draws of unlabeled rows; see `draw_weights`.
        seed: Of folds, weights and draws.
    """

    rounds: int = 3
    folds: int = 5
    steps: int = 400
    pseudo_power: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Data:
    """What a head learns from and is chosen by; D is the width of the embeddings side by side.

    Attributes:
        labeled: Embeddings (L, D).
        labels: int64 (L,).
        groups: Rows of one group share a fold; None where every row is its own.
        unlabeled: Embeddings (N, D), float16, of which blocks or drawn rows are read.
        val: Embeddings (V, D).
        val_labels: int64 (V,).
        feedback_rows: Which of these fit temperatures, bool (V,); the others choose.
        columns: [first, last) of each backbone.
        outside: Calibrated probabilities (N, K) of each outside model for the unlabeled rows.
        n_classes: K.
    """

    labeled: Any
    labels: NDArray[np.int64]
    groups: Sequence[str] | None
    unlabeled: Any
    val: Any
    val_labels: NDArray[np.int64]
    feedback_rows: NDArray[np.bool_]
    columns: Columns
    n_classes: int
    outside: Sequence[Floats] = field(default_factory=tuple)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that may be published.

    Attributes:
        model: The heads.
        probs: Of the validation rows, float32 (V, K), uncalibrated.
        score: By which it is chosen: `macro_f1_of_frequent` on the choice half, or macro-F1 where that is not defined.
    """

    model: MeanOfHeads
    probs: Floats
    score: float


@dataclass(frozen=True, eq=False)
class Learnt:
    """What `learn` gives.

    Attributes:
        best: The candidate that counts.
        round: Its round; 0 for the teachers.
        candidates: Of every round that was run, from round 0 on.
        temperature: Of the heads of the folds.
        soft: Soft labels float32 (N, K) that the last student learnt from; None without rounds.
    """

    best: Candidate
    round: int
    candidates: list[Candidate]
    temperature: float
    soft: Floats | None


def learn(data: Data, settings: RecipeSettings) -> Learnt:
    """Runs the recipe; a function of its arguments alone.

    Raises:
        UserError: If the labelled rows are all of one class or of one group.
    """
    teacher, student = (replace(each, steps=settings.steps) for each in (TEACHER, STUDENT))
    labeled = labelled_examples(data.labeled, data.labels, data.n_classes, teacher.draw_power)
    statistics = moments([np.asarray(data.labeled), *blocks_of(data.unlabeled)])
    whole = ((0, data.labeled.shape[1]),)
    folds = folds_of(data.labels, _n_folds(data, settings.folds), data.groups, settings.seed)
    if len(np.unique(folds)) < 2:
        raise UserError(f"the {len(folds)} labelled faces are all of one group, of which none can be left out")
    fit = cross_fit(labeled, teacher, whole, folds, settings.seed, statistics=statistics)
    parts = [fit.model]
    if len(data.columns) > 1:
        parts.append(train_heads(labeled, teacher, data.columns, settings.seed, statistics=statistics))
    candidates = [_candidate(_joined(parts), data)]
    log.info("heads of %d folds: %.4f on the choice half", folds.max() + 1, candidates[0].score)
    temperature = fit.temperature
    soft: Floats | None = None
    for number in range(1, settings.rounds + 1):
        own = soft_labels(predict(candidates[-1].model, data.unlabeled), temperature)
        soft = np.asarray(np.mean([own, *data.outside], axis=0), np.float32)
        pseudo = pseudo_examples(data.unlabeled, soft, settings.pseudo_power)
        model = train_heads(labeled, student, whole, settings.seed + number, statistics=statistics, pseudo=pseudo)
        candidates.append(_candidate(model, data))
        log.info("round %d: %.4f on the choice half", number, candidates[-1].score)
        if candidates[-1].score <= max(each.score for each in candidates[:-1]):
            break
        # What it has learnt from says nothing of its confidence.
        temperature = fit_temperature(candidates[-1].probs[data.feedback_rows], data.val_labels[data.feedback_rows])
    best = max(range(len(candidates)), key=lambda number: candidates[number].score)
    return Learnt(candidates[best], best, candidates, fit.temperature, soft)


def _candidate(model: MeanOfHeads, data: Data) -> Candidate:
    probs, choice = predict(model, data.val), ~data.feedback_rows
    confusion = confusion_matrix(data.val_labels[choice], probs[choice].argmax(axis=1), data.n_classes)
    score = macro_f1_of_frequent(confusion)
    return Candidate(model, probs, macro_f1(confusion) if math.isnan(score) else score)


def _joined(parts: Sequence[MeanOfHeads]) -> MeanOfHeads:
    heads = [head for part in parts for head in part.heads]
    return MeanOfHeads(heads, [columns for part in parts for columns in part.columns])


def _n_folds(data: Data, wanted: int) -> int:
    return int(np.clip(np.bincount(data.labels).max(), 2, wanted))
