"""The methods of the heads regime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.ssl.corrections import (
    class_mix,
    corrected_posteriors,
    macro_f1_offsets,
    precision_thresholds,
    transition,
    with_offsets,
)
from benchmarks.ssl.head_cell import (
    FOUR,
    ONE,
    Cell,
    K,
    Soft,
    accepted_by,
    crossed,
    feedback_half,
    mean_of,
    outside,
    student,
    taught,
    with_labels,
)
from ray_fer.heads.rounds import CrossFit
from ray_fer.selection import harden

BOTH = "whole+centre"
BESIDE = "whole+outside"


def labels_only(cell: Cell, view: str = "whole", columns: Any = ONE) -> Soft:
    """One head, or the mean of several."""
    return taught(cell, view, columns)


def folds_only(cell: Cell, view: str = "whole", columns: Any = ONE) -> Soft:
    """The mean of the heads of five folds, without a student."""
    return crossed(cell, view, columns)[0]


def crops(cell: Cell) -> Soft:
    """Three heads: on each of two crops that the same net has seen, and on both side by side."""
    side_by_side = taught(cell, BOTH, ((0, 4608),))
    return mean_of(taught(cell, "whole", ONE), taught(cell, "centre", ONE), side_by_side)


def ours(cell: Cell, teacher: Callable[[Cell], Soft] = crops, rounds: int = 1, **settings: Any) -> Soft:
    """Teachers whose soft labels of all unlabeled faces teach one head; in further rounds that one teaches the next."""
    soft = teacher(cell)
    for _ in range(rounds):
        soft = student(cell, soft, **settings)
    return soft


def with_outside(cell: Cell) -> Soft:
    """Our three heads and the net that others trained, half and half."""
    return mean_of(crops(cell), outside(cell))


def hard(cell: Cell, threshold: float = 0.5) -> Soft:
    """Ours with hard labels of a confidence of .5 and more."""
    teacher = crops(cell)
    firm = Soft(harden(teacher.probs.argmax(1), K), teacher.passes)
    kept = teacher.probs[cell.rows.unlabeled].max(1) >= threshold
    return student(cell, firm, weights=kept.astype(float))


def told(kind: str, cell: Cell, probs: Any, labels: Any) -> tuple[Any, Any]:
    """The evidence as it is, or with its classes named wrongly (``shuffled``)."""
    if kind == "shuffled":
        names = np.roll(np.random.default_rng(cell.seed).permutation(K), 1)
        return probs[:, names], np.argsort(names)[labels]
    return probs, labels


def evidence(cell: Cell) -> tuple[Soft, CrossFit]:
    """Our teachers, with the passes of the folds added, and what the folds say of the labelled faces."""
    folds, fit = crossed(cell, "whole", ONE)
    teacher = crops(cell)
    return replace(teacher, passes=teacher.passes + folds.passes), fit


def corrected(cell: Cell, kind: str = "measured") -> Soft:
    """Ours from posteriors that the out-of-fold noise corrects."""
    teacher, fit = evidence(cell)
    probs, labels = told(kind, cell, fit.probs, cell.labels)
    noise = transition(probs, labels)
    rows = cell.rows.unlabeled
    better = corrected_posteriors(teacher.probs, noise, class_mix(teacher.probs[rows], noise))
    return student(cell, replace(teacher, probs=better))


def forward(cell: Cell, kind: str = "measured") -> Soft:
    """Ours with a loss that sees the student through the out-of-fold noise."""
    teacher, fit = evidence(cell)
    return student(cell, teacher, noise=transition(*told(kind, cell, fit.probs, cell.labels)).astype(np.float32))


def offset_targets(cell: Cell, kind: str = "measured") -> Soft:
    """Ours from soft labels with offsets that raise the out-of-fold macro-F1."""
    teacher, fit = evidence(cell)
    offsets = macro_f1_offsets(*told(kind, cell, fit.probs, cell.labels))
    return student(cell, replace(teacher, probs=with_offsets(teacher.probs, offsets)))


def offset_student(cell: Cell, kind: str = "measured") -> Soft:
    """Ours with offsets on its own output that raise macro-F1 on the feedback half of ``val``."""
    soft, (rows, labels) = ours(cell), feedback_half(cell)
    offsets = macro_f1_offsets(*told(kind, cell, soft.probs[rows], labels))
    return replace(soft, probs=with_offsets(soft.probs, offsets))


def thresholds(cell: Cell, kind: str = "measured", target: float = 0.6) -> Soft:
    """Ours with the unlabeled faces whose class is right often enough at their confidence."""
    teacher, fit = evidence(cell)
    bars = precision_thresholds(*told(kind, cell, fit.probs, cell.labels), target)
    return student(cell, teacher, weights=accepted_by(teacher.probs[cell.rows.unlabeled], bars))


FEEDBACKS: dict[str, Callable[..., Soft]] = {
    "corrected posteriors": corrected,
    "forward-corrected loss": forward,
    "offsets of the targets": offset_targets,
    "offsets of the student": offset_student,
    "precision thresholds": thresholds,
}
_partial = functools.partial
METHODS: dict[str, Callable[[Cell], Soft]] = {
    "labels only": labels_only,
    "labels only, four depths": _partial(labels_only, columns=FOUR),
    "labels only, five folds": folds_only,
    "labels only, two crops side by side": _partial(labels_only, view=BOTH, columns=((0, 4608),)),
    "labels only, two crops, three heads": crops,
    "ours": ours,
    "ours, rare classes drawn more": _partial(ours, power=0.5),
    "ours, two rounds": _partial(ours, rounds=2),
    "ours, hard labels": hard,
    "ours, own soft labels": _partial(ours, teacher=labels_only),
    "ours, four depths": _partial(ours, teacher=_partial(labels_only, columns=FOUR)),
    "ours, five folds": _partial(ours, teacher=folds_only),
    "outside teacher alone": outside,
    "labels only, outside features side by side": _partial(labels_only, view=BESIDE, columns=((0, 2304 + 256),)),
    "labels only, three heads and the outside teacher": with_outside,
    "ours, outside teacher": _partial(ours, teacher=with_outside),
    "all labels": with_labels,
    **{
        f"ours + {name}" + ("" if kind == "measured" else f", {kind}"): _partial(function, kind=kind)
        for name, function in FEEDBACKS.items()
        for kind in ("measured", "shuffled")
    },
}
