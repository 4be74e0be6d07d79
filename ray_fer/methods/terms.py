"""The terms of the supervised loss, as functions of logits and targets."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from ray_fer.methods.batch import Targets
from ray_fer.training.loop import Terms


def supervised_terms(
    logits: torch.Tensor,
    targets: Targets,
    class_weights: torch.Tensor,
    label_smoothing: float,
    pseudo_weight: float,
    margin: torch.Tensor | float = 0.0,
) -> Terms:
    """The two terms of `ray_fer.methods.supervised`, this rank's share of the sums over the whole step's counts.

    Args:
        logits: (B + M, K), any float type.
        targets: Of the same rows.
        class_weights: w, float (K,).
        label_smoothing: Share of the target spread evenly over the classes.
        pseudo_weight: Weight of the second term.
        margin: m, float (K,).

    Returns:
        ``labeled``, and ``pseudo`` where the step has such faces.
    """
    logits = logits.float()
    n = len(targets.labels)
    errors = F.cross_entropy(logits[:n] + margin, targets.labels, label_smoothing=label_smoothing, reduction="none")
    terms = {"labeled": (errors * targets.label_weights * class_weights[targets.labels]).sum() / targets.label_count}
    if targets.soft_count:
        errors = F.cross_entropy(logits[n:], targets.soft, reduction="none")
        importance = targets.soft_weights * (targets.soft @ class_weights)
        terms["pseudo"] = pseudo_weight * (errors * importance).sum() / targets.soft_count
    return terms


def balanced(targets: Targets, labeled: torch.Tensor, pseudo: torch.Tensor | None = None) -> Targets:
    """``targets`` with each face weighted by its class, for a soft target the likeliest one.

    Args:
        targets: Of one step.
        labeled: Weight of the labelled faces of each class, float (K,).
        pseudo: Weight of the pseudo-labelled faces of each class; None leaves them as they are.
    """
    soft_weights = targets.soft_weights if pseudo is None else targets.soft_weights * pseudo[targets.soft.argmax(dim=1)]
    return replace(targets, label_weights=targets.label_weights * labeled[targets.labels], soft_weights=soft_weights)
