"""What a step of the online recipe knows of its unlabeled faces, and DST's part of its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ray_fer.selection import Measured

# DST's constants, from its from-scratch code: eta, eta', and hi of the warm-up, whose N is a third of the run here.
_WORST_WEIGHT, _LABELED_WORST, _HIGHEST_STRENGTH = 0.3, 2.0, 0.1
_CAP = 2  # beyond the error of a guess


@dataclass(frozen=True, eq=False)
class Found:
    """What a step found out about its R readable unlabeled faces, for the recipe's state.

    Attributes:
        rows: int64 (R,).
        named: int64 (R,), the class that the teacher names before anything is taken out of its probabilities.
        measured: by the rule, of all ranks.
        accepted: float (R,), the rule's weights.
    """

    rows: torch.Tensor
    named: torch.Tensor
    measured: Measured
    accepted: torch.Tensor


@dataclass(eq=False)
class Unlabeled:
    """Of one step's inputs, the M unlabeled faces behind the labelled and pseudo-labelled ones.

    Attributes:
        first: where their strong views begin; with DST's heads their weak views follow.
        weak: what the teacher sees, (M, 3, S, S).
        ok: float (M,), 0 where unreadable.
        readable: int64 (R,), which of the M are not.
        rows: int64 (M,).
        progress: share of the run that is over, in [0, 1).
        found: once the loss was computed.
    """

    first: int
    weak: torch.Tensor
    ok: torch.Tensor
    readable: torch.Tensor
    rows: torch.Tensor
    progress: float
    found: Found | None = None


def reversal(progress: float) -> float:
    """How strongly the features learn against the worst-case head, at ``progress`` in [0, 1) of the run."""
    return _HIGHEST_STRENGTH * math.tanh(1.5 * progress)


def worst_case(
    labeled: tuple[torch.Tensor, torch.Tensor],
    labeled_ok: torch.Tensor,
    weak: torch.Tensor,
    labels: torch.Tensor,
    ok: torch.Tensor,
) -> torch.Tensor:
    """DST's term: eta (eta' mean CE(v(f_l), argmax h(f_l)) - mean log(1 - p_v(label of the weak view))).

    Args:
        labeled: logits of the labelled faces, (B, K) each: the classifier's, h, and the worst-case head's, v.
        labeled_ok: float (B,), 0 where unreadable.
        weak: logits of the worst-case head for the weak views, (M, K).
        labels: their pseudo-labels, int64 (M,).
        ok: float (M,), 0 where unreadable.
    """
    kept, worst = labeled[0].detach().argmax(dim=1), labeled[1]
    # Reversed, this error has no bound: the cap is ray-fer's.
    agreed = F.cross_entropy(worst, kept, reduction="none").clamp(max=math.log(worst.shape[1]) + _CAP)
    there = weak.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    away = -torch.log((1 - there + 1e-6).clamp(max=1.0))
    return _WORST_WEIGHT * (_LABELED_WORST * (agreed * labeled_ok).mean() + (away * ok).mean())
