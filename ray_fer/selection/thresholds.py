"""Rules with thresholds that the unlabeled predictions do not move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from ray_fer.selection.rule import Accepted, Array, Rule, SelectionContext, State, accept_above, asarray_like


@dataclass(frozen=True)
class Threshold(Rule):
    """FixMatch's rule (Sohn et al., NeurIPS 2020, eq. 4): weight 1 where max p ≥ τ_ĉ; here with a τ for each class."""

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        return accept_above(probs, context.thresholds)


@dataclass(frozen=True)
class AdaCM(Rule):
    """Ada-CM's confidence margins (Li et al., CVPR 2022), as in the released code but for where they are measured.

    T_c = max(τ_c, ceiling · conf_c / (1 + e^−epoch)); τ_c, also where no face of the class was predicted correctly or
    nothing was measured yet. The released code has a fixed τ of .8. conf_c is the mean confidence of the correctly
    predicted faces; there of those that the model was trained on, which drives every margin to the ceiling; here
    of held-out ones. What is below the margin counts nothing here; the paper gives it a contrastive loss.

    It also stands for the dynamic threshold module of Yu et al. (ABAW5, arXiv:2303.08617), whose abstract only says
    that the threshold adapts while the model learns to make full use of unlabeled faces. Its own formula is not known
    here; Ada-CM's is that of the closest public code.

    Attributes:
        ceiling: no margin above it comes from the data.
    """

    ceiling: float = 0.97
    needs: ClassVar[tuple[str, ...]] = ("labelled_confidence",)

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        return accept_above(probs, self.margins(probs, context))

    def margins(self, probs: Array, context: SelectionContext) -> Array:
        """T, (K,), of the kind of ``probs``."""
        xp = array_namespace(probs)
        floor = asarray_like(context.thresholds, probs)
        if context.labelled_confidence is None:
            return floor
        confidence = asarray_like(context.labelled_confidence, probs)
        margins = self.ceiling / (1 + math.exp(-context.epoch)) * confidence
        return xp.where(xp.isnan(margins), floor, xp.maximum(floor, margins))
