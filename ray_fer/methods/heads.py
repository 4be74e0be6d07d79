"""A backbone with more than one head on the same features.

The heads beside the classifier only exist in training. What is published is the backbone with one head in the place of
its classifier, see `published`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

MAIN: Literal["main"] = "main"
BALANCED, DEBIASED = "balanced", "debiased"
PSEUDO, WORST = "pseudo", "worst"


class HeadedBackbone(nn.Module):
    """A timm backbone whose features also go to other heads.

    Args:
        backbone: a timm model with a classifier.
        heads: features (B, D) to logits (B, K), by name.

    The output is (B, 1 + H, K): the classifier's logits, then those of ``heads`` in their order.
    """

    def __init__(self, backbone: Any, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) to (B, 1 + H, K)."""
        features = self.backbone.forward_head(self.backbone.forward_features(inputs), pre_logits=True)
        logits = [self.backbone.get_classifier()(features), *(head(features) for head in self.heads.values())]
        return torch.stack(logits, dim=1)

    def logits(self, outputs: torch.Tensor, name: str) -> torch.Tensor:
        """(B, K) of one head in the output."""
        return outputs[:, 0 if name == MAIN else 1 + list(self.heads).index(name)]


def published(state: dict[str, torch.Tensor], head: str, classifier: str) -> dict[str, torch.Tensor]:
    """Weights of the plain backbone with one of the linear heads as its classifier.

    Args:
        state: ``state_dict()`` of a `HeadedBackbone`, or of a plain backbone, which is published as it is.
        head: `MAIN`, or the name of a head that is one linear layer.
        classifier: What the backbone calls its classifier, for example ``fc``.
    """
    prefix = "backbone."
    if not any(key.startswith(prefix) for key in state):
        return state
    weights = {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}
    if head != MAIN:
        weights |= {f"{classifier}.{part}": state[f"heads.{head}.{part}"] for part in ("weight", "bias")}
    return weights


def keep_rates(shares: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
    """How much of each class reaches the balanced head, (K,): 1 - progress (1 - min n / n_c).

    It is the expectation of the mask that ABC (arXiv:2110.10368) draws. A class with n_c = 0 does not count in the
    minimum, for then the head would learn nothing of the others.

    Args:
        shares: n, float (K,), of the classes, up to a factor.
        progress: 0 keeps all, 1 as much of every class as of the rarest.
    """
    there = torch.where(shares > 0, shares, torch.inf)
    return 1 - progress * (1 - there.min() / there)


class ReverseGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by -strength (Ganin and Lempitsky, arXiv:1409.7495)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, strength: float) -> torch.Tensor:
        """``inputs`` as they are."""
        ctx.strength = strength
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The reversed gradient, and none for the strength."""
        return gradient * -ctx.strength, None


class ReversedHead(nn.Module):
    """DST's worst-case head: it learns from its loss, and the features learn the opposite, times ``strength``.

    Three layers with BatchNorm, which steadies the game (thuml/Debiased-Self-Training, from-scratch code).
    """

    def __init__(self, features: int, n_classes: int) -> None:
        super().__init__()
        self.strength = 0.0
        self.layers = nn.Sequential(
            *(nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU(inplace=True)),
            *(nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU(inplace=True)),
            nn.Linear(features, n_classes),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D) to (B, K)."""
        logits: torch.Tensor = self.layers(ReverseGradient.apply(features, self.strength))
        return logits


def pseudo_head(features: int, n_classes: int) -> nn.Module:
    """DST's head that alone learns from pseudo-labels: two layers, twice as wide, dropout (from-scratch code)."""
    return nn.Sequential(
        nn.Linear(features, 2 * features), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(2 * features, n_classes)
    )
