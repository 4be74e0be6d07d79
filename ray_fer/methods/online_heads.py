"""What the online method trains beside the classifier, with the terms of each head.

* ``balanced``: a second classifier, which is published, after ABC (arXiv:2110.10368). Labelled faces reach it
  class-uniformly (drawn naturally, with weight min n / n_c), but for the feedback; accepted unlabeled ones with weight
  1 - progress (1 - min n / n_c), n the running class shares of the teacher's predictions. See `keep_rates`.
* ``debiased``: DST (arXiv:2202.07136). A head of its own fits the pseudo-labels, so that the classifier which makes
  them never learns from them, and a worst-case head, played against the features, keeps these robust.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ray_fer.methods.batch import LabeledBatch, Targets
from ray_fer.methods.heads import BALANCED, MAIN, PSEUDO, WORST, ReversedHead, keep_rates, pseudo_head
from ray_fer.methods.labeled import sampled_margin
from ray_fer.methods.supervised import BalancedHead, Head, SupervisedMethod
from ray_fer.methods.terms import balanced
from ray_fer.selection import Measured
from ray_fer.training.loop import Terms

# DST's constants, from its from-scratch code: eta, eta', and hi of the warm-up, whose N is a third of the run here.
_WORST_WEIGHT, _LABELED_WORST, _HIGHEST_STRENGTH = 0.3, 2.0, 0.1
_CAP = 2  # beyond the error of a guess


@dataclass(frozen=True, eq=False)
class Found:
    """What a step found out about its R readable unlabeled faces, for the method's state.

    Attributes:
        rows: int64 (R,).
        named: int64 (R,), the class that the teacher names before anything is taken out of its probabilities.
        measured: What the rule measured on all ranks.
        accepted: float (R,), the rule's weights.
    """

    rows: torch.Tensor
    named: torch.Tensor
    measured: Measured
    accepted: torch.Tensor


@dataclass(eq=False)
class Unlabeled:
    """The M unlabeled faces of one step, behind the labelled and pseudo-labelled ones.

    Attributes:
        first: Where their strong views begin; with DST's heads their weak views follow.
        weak: What the teacher sees, (M, 3, S, S).
        ok: float (M,), 0 where unreadable.
        readable: int64 (R,), which of the M can be read.
        rows: int64 (M,).
        progress: Share of the run that is over, in [0, 1).
        found: Set once the loss was computed.
    """

    first: int
    weak: torch.Tensor
    ok: torch.Tensor
    readable: torch.Tensor
    rows: torch.Tensor
    progress: float
    found: Found | None = None


@dataclass(frozen=True, eq=False)
class OnlineBatch(LabeledBatch):
    """Labelled, pseudo-labelled and unlabeled faces.

    Attributes:
        unlabeled: What the step knows of the unlabeled ones.
    """

    unlabeled: Unlabeled


@dataclass(frozen=True, eq=False)
class OnlineOutputs:
    """The model's outputs for one step, and what they are compared with.

    Attributes:
        supervised: For the B labelled and pseudo-labelled faces.
        strong: For the strong views of the M unlabeled faces.
        weak: For their weak views; empty without ``weak_views``.
        targets: Of the labelled and pseudo-labelled faces.
        labels: Pseudo-labels, int64 (M,).
        soft: Pseudo-labels as probabilities, (M, K).
        weights: float (M,), of each unlabeled face.
        scale: Factor of every sum over unlabeled faces.
        class_shares: float (K,), running shares of the classes that the teacher names.
        unlabeled: What the step knows of the unlabeled faces.
    """

    supervised: torch.Tensor
    strong: torch.Tensor
    weak: torch.Tensor
    targets: Targets
    labels: torch.Tensor
    soft: torch.Tensor
    weights: torch.Tensor
    scale: float
    class_shares: torch.Tensor
    unlabeled: Unlabeled


class OnlineHead(Head):
    """No head beside the classifier.

    Attributes:
        fits: Name of the head that learns the pseudo-labels of unlabeled faces.
        weak_views: Whether the model also sees the weak views of unlabeled faces.
    """

    fits: ClassVar[str] = MAIN
    weak_views: ClassVar[bool] = False

    def at(self, progress: float) -> None:
        """Called before each step with the share of the run that is over, in [0, 1)."""

    def terms(self, outputs: OnlineOutputs) -> Terms:
        """The head's terms, this rank's share of the step's sums."""
        return {}


class OnlineBalancedHead(BalancedHead, OnlineHead):
    """A second, class-balanced classifier; see the module."""

    def __init__(self, method: SupervisedMethod) -> None:
        super().__init__(method)
        # The feedback's boost is on top of a balanced mix, which has nothing to be adjusted for.
        drawn, tau = method.neutral_probs > 0, method.config.logit_adjustment
        self.margin = method.tensor(sampled_margin(drawn / drawn.sum(), len(method.labeled), tau))

    def terms(self, outputs: OnlineOutputs) -> Terms:
        """Of labelled faces as of unlabeled ones, each weighted by its class."""
        supervised, strong = (self.method.logits(each, BALANCED) for each in (outputs.supervised, outputs.strong))
        of_draws = balanced(outputs.targets, self.labeled)
        kept = keep_rates(outputs.class_shares.clamp(min=1e-6), outputs.unlabeled.progress)
        errors = F.cross_entropy(strong, outputs.soft, reduction="none")
        return {
            "balanced": self.method.supervised_loss(supervised, of_draws, self.margin),
            "balanced_unlabeled": outputs.scale * (errors * outputs.weights * kept[outputs.labels]).sum(),
        }


class DebiasedHead(OnlineHead):
    """DST's two heads; see the module."""

    fits = PSEUDO
    weak_views = True

    @classmethod
    def modules(cls, features: int, n_classes: int) -> dict[str, nn.Module]:
        """The head that fits pseudo-labels, and the worst-case head."""
        return {PSEUDO: pseudo_head(features, n_classes), WORST: ReversedHead(features, n_classes)}

    def at(self, progress: float) -> None:
        """Sets the strength of the worst-case head's reversal."""
        model: Any = self.method.model
        model.heads[WORST].strength = reversal(progress)

    def terms(self, outputs: OnlineOutputs) -> Terms:
        """The worst case; a mean over this rank's faces."""
        logits, targets, ok = self.method.logits, outputs.targets, outputs.unlabeled.ok
        labeled = outputs.supervised[: len(targets.labels)]
        both = logits(labeled, MAIN), logits(labeled, WORST)
        term = worst_case(both, targets.label_weights, logits(outputs.weak, WORST), outputs.labels, ok)
        return {"worst_case": term / self.method.world.size}


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
