"""The methods of the benchmark: what each is, in the project's own terms."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.ssl.faces import TensorImages
from benchmarks.ssl.outside import outside_teacher
from benchmarks.ssl.train import (
    FORWARD,
    LocalFeedback,
    Run,
    labelled_by,
    meta_feedback,
    online,
    partial,
    soft_labels,
    supervised,
)
from ray_fer.evaluation.calibration import apply_temperature
from ray_fer.methods.base import BackboneMethod
from ray_fer.methods.batch import Faces
from ray_fer.selection import RULES

PARTS = ("loss_weights", "sampling_weights", "thresholds", "debiasing")


def rounds(
    run: Run,
    passes: float,
    rule: str,
    threshold: float,
    generations: int = 1,
    teacher_share: float = 1 / 3,
    targets: str = "soft",
    calibrate: bool = True,
    labeled_view: str = "weak",
) -> BackboneMethod:
    """A teacher from labels, then students from what their predecessor labelled, each from scratch."""
    model: BackboneMethod = supervised(run, passes * teacher_share, labeled_view=labeled_view)
    left = passes - run.spent - generations * len(run.sets.unlabeled) * FORWARD
    for _ in range(generations):
        pseudo = labelled_by(run, model, RULES[rule](), threshold, calibrate, targets)
        model = supervised(run, left / generations, pseudo, labeled_view=labeled_view)
    return model


def warmed(run: Run, passes: float, warm: float = 0.25, offline: bool = False, **settings: Any) -> BackboneMethod:
    """Online training that starts from a supervised model; with ``offline``, what that one labelled takes part too.

    Args:
        run: the run.
        passes: to spend.
        warm: share of them for the supervised model; 0 starts from nothing.
        offline: whether its pseudo-labels for all unlabeled faces are a third part of every step.
        settings: of the online method.
    """
    if not warm:
        return online(run, passes, **settings)
    shared = {key: settings[key] for key in ("label_smoothing", "labeled_view") if key in settings}
    teacher = supervised(run, passes * warm, **shared)
    pseudo = labelled_by(run, teacher, RULES["threshold"](), 0.05) if offline else None
    init = copy.deepcopy(teacher.ema_model).requires_grad_(True)
    return online(run, passes - run.spent, pseudo=pseudo, pseudo_ratio=1, init=init, **settings)


def continued(
    run: Run,
    passes: float,
    teacher_share: float = 0.4,
    rule: str = "threshold",
    threshold: float = 0.5,
    targets: str = "soft",
    calibrate: bool = True,
    label_smoothing: float = 0.1,
    from_teacher: bool = True,
    feedback_parts: Sequence[str] | None = None,
    confusion: str = "measured",
) -> BackboneMethod:
    """A teacher from labels that learns on, with what it labelled beside the labels.

    Args:
        run: the run.
        passes: to spend.
        teacher_share: of them, for the teacher.
        rule: of the selection.
        threshold: of the selection.
        targets: of the selection, ``soft`` or ``hard``.
        calibrate: the teacher before it labels.
        label_smoothing: of teacher and student.
        from_teacher: whether the student begins with the teacher's averaged weights, at half the learning rate.
        feedback_parts: factors that act on the student; None: no feedback.
        confusion: see `LocalFeedback`.
    """
    teacher = supervised(run, passes * teacher_share, label_smoothing=label_smoothing)
    pseudo = labelled_by(run, teacher, RULES[rule](), threshold, calibrate, targets)
    settings: dict[str, Any] = {"label_smoothing": label_smoothing}
    if from_teacher:
        settings["init"] = copy.deepcopy(teacher.ema_model).requires_grad_(True)
        settings["learning_rate"] = 5e-4 if run.size.pretrained else 1e-3
    if feedback_parts is not None:
        settings["feedback"] = LocalFeedback(feedback_parts, confusion, run.seed)
    return supervised(run, passes - run.spent, pseudo, **settings)


def taught(
    run: Run,
    passes: float,
    own: int = 1,
    outside: bool = False,
    teacher_share: float = 0.4,
    power: float = 0.5,
    continues: bool = False,
    **settings: Any,
) -> BackboneMethod:
    """A student of the mean soft labels of several teachers, for all unlabeled faces.

    Args:
        run: the run.
        passes: to spend.
        own: teachers that labels train, each from the start of another seed.
        outside: whether somebody else's expression net is among the teachers.
        teacher_share: of the passes, for all of our own teachers.
        power: see `soft_labels`.
        continues: whether the student begins with the first teacher's averaged weights.
        settings: of the student.
    """
    unlabeled, probs, models = run.sets.unlabeled, [], []
    for number in range(own):
        seeded = dataclasses.replace(run, seed=run.seed + 1000 * number, notes={})
        model = supervised(seeded, passes * teacher_share / own)
        run.spent = seeded.spent + len(unlabeled) * FORWARD
        probs.append(apply_temperature(model.predict(unlabeled)[0], model.temperature))
        models.append(model)
    if outside:
        probs.append(outside_teacher(unlabeled))
    pseudo = soft_labels(run, probs, power)
    settings = {"pseudo_ratio": 1} | settings
    if continues:
        settings["init"] = copy.deepcopy(models[0].ema_model).requires_grad_(True)
    return supervised(run, passes - run.spent, pseudo, **settings)


def all_labels(run: Run, passes: float) -> BackboneMethod:
    """What the labels of the unlabeled faces would be worth: no method, the roof."""
    sets = run.sets
    both = TensorImages.joined(sets.labeled.images, sets.unlabeled.images)
    labels = np.concatenate([sets.labeled.labels, sets.unlabeled.labels])
    known = np.flatnonzero(labels >= 0)
    run.sets = dataclasses.replace(sets, labeled=Faces(both.taken(known), [str(row) for row in known], labels[known]))
    return supervised(run, passes)


# What stood as ours before `continued`: labels made anew in every step, from the teacher's weights on.
ONLINE: dict[str, Any] = {
    "rule": "softmatch",
    "targets": "soft",
    "calibrate": True,
    "label_smoothing": 0.1,
    "labeled_view": "strong",
    "feedback_parts": PARTS,
}
SOFT: dict[str, Any] = {"targets": "soft", "calibrate": True}


def online_form(**changes: Any) -> Any:
    """`ONLINE` with other settings."""
    return partial(warmed, **(ONLINE | changes))


def without(part: str) -> list[str]:
    """The feedback's other parts."""
    return [each for each in PARTS if each != part]


REFERENCES: dict[str, Any] = {
    "supervised": partial(supervised),
    "supervised + logit adjustment": partial(supervised, class_sampling="natural", logit_adjustment=1.0),
    "pseudo-label": partial(rounds, rule="threshold", threshold=0.8, targets="hard", calibrate=False),
    "fixmatch": partial(online, rule="threshold", threshold=0.95),
    "flexmatch": partial(online, rule="flexmatch", threshold=0.95),
    "freematch": partial(online, rule="freematch"),
    "softmatch": partial(online, rule="softmatch"),
    "debiaspl": partial(online, rule="debiaspl", threshold=0.8),
    "fixmatch + abc": partial(online, rule="threshold", threshold=0.95, head="balanced"),
    "dst": partial(online, rule="threshold", threshold=0.7, head="debiased"),
    "meta-feedback": partial(meta_feedback, warm=0.4, learning_rate=1e-3),
    "noisy student": partial(rounds, rule="top_k", threshold=0.6),
    "crest": partial(rounds, rule="crest", threshold=0.95, generations=3, targets="hard"),
}

PARTS_OF_OURS: dict[str, Any] = {
    "ours - teacher's weights": partial(continued, from_teacher=False),
    "ours - soft targets": partial(continued, targets="hard"),
    "ours - calibration": partial(continued, calibrate=False),
    "ours - label smoothing": partial(continued, label_smoothing=0.0),
    "ours + feedback": partial(continued, feedback_parts=PARTS),
}

CONTROLS: dict[str, Any] = {
    "ours + identity feedback": partial(continued, feedback_parts=PARTS, confusion="identity"),
    "ours + shuffled feedback": partial(continued, feedback_parts=PARTS, confusion="shuffled"),
}

ONLINE_PARTS: dict[str, Any] = {
    "online form": online_form(),
    "online form - warm start": online_form(warm=0.0),
    "online form - softmatch": online_form(rule="threshold", threshold=0.5),
    "online form - soft targets": online_form(targets="hard"),
    "online form - calibration": online_form(calibrate=False),
    "online form - label smoothing": online_form(label_smoothing=0.0),
    "online form - strong labelled view": online_form(labeled_view="weak"),
    "online form - feedback": online_form(feedback_parts=None),
    "online form - loss weights": online_form(feedback_parts=without("loss_weights")),
    "online form - sampling weights": online_form(feedback_parts=without("sampling_weights")),
    "online form - debiasing": online_form(feedback_parts=without("debiasing")),
    "online form + balanced head": online_form(head="balanced"),
    "online form + offline": online_form(offline=True),
    "online form, identity feedback": online_form(confusion="identity"),
    "online form, shuffled feedback": online_form(confusion="shuffled"),
}

SEVERAL: dict[str, Any] = {
    "soft labels": partial(taught),
    "soft labels, continued": partial(taught, continues=True, learning_rate=5e-4),
    "soft labels, natural draws": partial(taught, power=1.0),
    "soft labels, strong labelled view": partial(taught, labeled_view="strong"),
    "soft labels, two teachers": partial(taught, own=2),
    "soft labels, outside teacher": partial(taught, outside=True),
}

TRIED: dict[str, Any] = {
    "ours, top-k": partial(continued, rule="top_k", threshold=0.6),
    "noisy student, strong view": partial(rounds, rule="top_k", threshold=0.6, labeled_view="strong"),
    "meta-feedback from scratch": partial(meta_feedback),
    "ours, online": partial(
        warmed, warm=0.5, rule="threshold", threshold=0.5, label_smoothing=0.1, learning_rate=1e-3, **SOFT
    ),
    "supervised, label smoothing": partial(supervised, label_smoothing=0.1),
    "supervised, strong view": partial(supervised, labeled_view="strong"),
    "soft targets at .8": partial(online, rule="threshold", threshold=0.8, **SOFT),
    "soft targets at .5": partial(online, rule="threshold", threshold=0.5, **SOFT),
    "soft targets, softmatch": partial(online, rule="softmatch", **SOFT),
    "soft targets for all, offline": partial(rounds, rule="threshold", threshold=0.05),
    "soft targets for all, offline, 2 generations": partial(rounds, rule="threshold", threshold=0.05, generations=2),
    "hybrid": partial(warmed, offline=True, rule="threshold", threshold=0.8, **SOFT),
}

METHODS: dict[str, Any] = {
    **REFERENCES,
    "ours": partial(continued),
    **PARTS_OF_OURS,
    **CONTROLS,
    **ONLINE_PARTS,
    **SEVERAL,
    "all labels": all_labels,
    **TRIED,
}
