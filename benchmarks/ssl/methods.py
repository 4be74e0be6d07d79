"""The methods of the benchmark: what each is, in the project's own terms."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from benchmarks.ssl.faces import TensorImages
from benchmarks.ssl.train import FORWARD, Run, labelled_by, meta_feedback, online, partial, supervised
from ray_fer.selection import RULES
from ray_fer.training.recipe import BackboneRecipe, Faces

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
) -> BackboneRecipe:
    """A teacher from labels, then students from what their predecessor labelled, each from scratch."""
    model: BackboneRecipe = supervised(run, passes * teacher_share)
    left = passes - run.spent - generations * len(run.sets.unlabeled) * FORWARD
    for _ in range(generations):
        pseudo = labelled_by(run, model, RULES[rule](), threshold, calibrate, targets)
        model = supervised(run, left / generations, pseudo)
    return model


def warmed(run: Run, passes: float, warm: float = 0.25, offline: bool = False, **settings: Any) -> BackboneRecipe:
    """Online training that starts from a supervised model; with ``offline``, what that one labelled takes part too.

    Args:
        run: the run.
        passes: to spend.
        warm: share of them for the supervised model; 0 starts from nothing.
        offline: whether its pseudo-labels for all unlabeled faces are a third part of every step.
        settings: of the online recipe.
    """
    if not warm:
        return online(run, passes, **settings)
    shared = {key: settings[key] for key in ("label_smoothing", "labeled_view") if key in settings}
    teacher = supervised(run, passes * warm, **shared)
    pseudo = labelled_by(run, teacher, RULES["threshold"](), 0.05) if offline else None
    init = copy.deepcopy(teacher.ema_model).requires_grad_(True)
    return online(run, passes - run.spent, pseudo=pseudo, pseudo_ratio=1, init=init, **settings)


def all_labels(run: Run, passes: float) -> BackboneRecipe:
    """What the labels of the unlabeled faces would be worth: no method, the roof."""
    sets = run.sets
    both = TensorImages.joined(sets.labeled.images, sets.unlabeled.images)
    labels = np.concatenate([sets.labeled.labels, sets.unlabeled.labels])
    known = np.flatnonzero(labels >= 0)
    run.sets = dataclasses.replace(sets, labeled=Faces(both.taken(known), [str(row) for row in known], labels[known]))
    return supervised(run, passes)


OURS: dict[str, Any] = {
    "rule": RULES["softmatch"](),
    "targets": "soft",
    "calibrate": True,
    "label_smoothing": 0.1,
    "labeled_view": "strong",
    "feedback_parts": PARTS,
}
SOFT: dict[str, Any] = {"targets": "soft", "calibrate": True}


def ours(**changes: Any) -> Any:
    """`OURS` with other settings."""
    return partial(warmed, **(OURS | changes))


def without(part: str) -> list[str]:
    """The feedback's other parts."""
    return [each for each in PARTS if each != part]


REFERENCES: dict[str, Any] = {
    "supervised": partial(supervised),
    "supervised + logit adjustment": partial(supervised, class_sampling="natural", logit_adjustment=1.0),
    "pseudo-label": partial(rounds, rule="threshold", threshold=0.8, targets="hard", calibrate=False),
    "fixmatch": partial(online, rule=RULES["threshold"](), threshold=0.95),
    "flexmatch": partial(online, rule=RULES["flexmatch"](), threshold=0.95),
    "freematch": partial(online, rule=RULES["freematch"]()),
    "softmatch": partial(online, rule=RULES["softmatch"]()),
    "debiaspl": partial(online, rule=RULES["debiaspl"](), threshold=0.8),
    "fixmatch + abc": partial(online, rule=RULES["threshold"](), threshold=0.95, head="balanced"),
    "dst": partial(online, rule=RULES["threshold"](), threshold=0.7, head="debiased"),
    "meta-feedback": partial(meta_feedback),
    "noisy student": partial(rounds, rule="top_k", threshold=0.6),
    "crest": partial(rounds, rule="crest", threshold=0.95, generations=3, targets="hard"),
}

ABLATIONS: dict[str, Any] = {
    "ours - warm start": ours(warm=0.0),
    "ours - softmatch": ours(rule=RULES["threshold"](), threshold=0.5),
    "ours - soft targets": ours(targets="hard"),
    "ours - calibration": ours(calibrate=False),
    "ours - label smoothing": ours(label_smoothing=0.0),
    "ours - strong labelled view": ours(labeled_view="weak"),
    "ours - feedback": ours(feedback_parts=None),
    "ours - loss weights": ours(feedback_parts=without("loss_weights")),
    "ours - sampling weights": ours(feedback_parts=without("sampling_weights")),
    "ours - debiasing": ours(feedback_parts=without("debiasing")),
    "ours + balanced head": ours(head="balanced"),
    "ours + offline": ours(offline=True),
}

CONTROLS: dict[str, Any] = {
    "ours, identity feedback": ours(confusion="identity"),
    "ours, shuffled feedback": ours(confusion="shuffled"),
}

TRIED: dict[str, Any] = {
    "supervised, strong view": partial(supervised, labeled_view="strong"),
    "soft targets at .8": partial(online, rule=RULES["threshold"](), threshold=0.8, **SOFT),
    "soft targets at .5": partial(online, rule=RULES["threshold"](), threshold=0.5, **SOFT),
    "soft targets, softmatch": partial(online, rule=RULES["softmatch"](), **SOFT),
    "soft targets for all, offline": partial(rounds, rule="threshold", threshold=0.05),
    "soft targets for all, offline, 2 generations": partial(rounds, rule="threshold", threshold=0.05, generations=2),
    "hybrid": partial(warmed, offline=True, rule=RULES["threshold"](), threshold=0.8, **SOFT),
}

METHODS: dict[str, Any] = {
    **REFERENCES,
    "ours": ours(),
    **ABLATIONS,
    **CONTROLS,
    "all labels": all_labels,
    **TRIED,
}
