"""Rules that correct the predictions' class frequencies before a fixed threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from ray_fer.selection.rule import (
    Accepted,
    Array,
    Measured,
    Rule,
    SelectionContext,
    State,
    accept_above,
    asarray_like,
    average,
    normalise,
    number,
)

_SMALLEST_PRIOR = 1e-4
_SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Alignment(Rule):
    """Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020), to a part.

    p^a = N(p · (π / p̃)^κ), with π the labelled class frequencies and p̃ the mean prediction; accepted is max p^a ≥ τ_ĉ,
    and label and target are of p^a, not sharpened. p̃ is a moving average that starts from the first batch, where
    ReMixMatch takes the last 128 batches. κ = 1 is ReMixMatch's; less is our own and the default, for a π that is not
    the unlabeled faces' does harm.

    State: ``mean`` p̃ (K,); zeros: none yet, nothing is aligned.

    Attributes:
        kappa: κ in [0, 1], 0 aligns nothing.
    """

    kappa: float = 0.5
    passes: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("labelled_prior",)

    def start(self, context: SelectionContext, rows: int = 0) -> State:
        """See `Rule.start`."""
        return {"mean": np.zeros(len(context.thresholds), np.float32)}

    def measure(self, probs: Array, state: State, rows: Array | None = None) -> Measured:
        """See `Rule.measure`."""
        xp = array_namespace(probs)
        return {"number": number(probs.shape[0], probs), "mean": xp.sum(probs, axis=0)}

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        """See `Rule.update`."""
        return {"mean": average(state["mean"], measured["mean"], measured["number"], momentum, from_first=True)}

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        xp = array_namespace(probs)
        prior, mean = asarray_like(context.labelled_prior, probs), asarray_like(state["mean"], probs)
        mean = xp.where(xp.any(mean > 0), mean, prior)
        aligned = normalise(probs * (((prior + 1e-6) / (mean + 1e-6)) ** self.kappa)[None, :])
        return accept_above(aligned, context.thresholds)


@dataclass(frozen=True)
class DebiasPL(Rule):
    """Debiased pseudo-labels (Wang et al., CVPR 2022): p_deb = softmax(log p − τ_d · log p̂).

    p̂ is the moving average of the mean RAW probabilities, from 1/K on; accepted is max p_deb ≥ τ_ĉ. The student's
    logits get the margin τ_d · log p̂ during training; the released code takes p̂ with the batch for the margin and
    without it for the label, the online recipe without it for both. The floor of p̂ is ours.

    State: ``prior`` p̂ (K,).

    Attributes:
        strength: τ_d, that of the released scripts.
    """

    strength: float = 0.4
    passes: ClassVar[int] = 1

    def start(self, context: SelectionContext, rows: int = 0) -> State:
        """See `Rule.start`."""
        classes = len(context.thresholds)
        return {"prior": np.full(classes, 1 / classes, np.float32)}

    def measure(self, probs: Array, state: State, rows: Array | None = None) -> Measured:
        """See `Rule.measure`."""
        xp = array_namespace(probs)
        return {"number": number(probs.shape[0], probs), "prior": xp.sum(probs, axis=0)}

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        """See `Rule.update`."""
        return {"prior": average(state["prior"], measured["prior"], measured["number"], momentum)}

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        xp = array_namespace(probs)
        logits = xp.log(xp.clip(probs, _SMALLEST_PROBABILITY, None)) - asarray_like(self.margin(state), probs)[None, :]
        debiased = normalise(xp.exp(logits - xp.max(logits, axis=1, keepdims=True)))
        return accept_above(debiased, context.thresholds)

    def margin(self, state: State) -> Array:
        """See `Rule.margin`."""
        xp = array_namespace(state["prior"])
        return self.strength * xp.log(xp.clip(state["prior"], _SMALLEST_PRIOR, None))
