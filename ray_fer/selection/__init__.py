"""From probabilities to pseudo-labels: rules that work over a table as they do inside a training step."""

from __future__ import annotations

from ray_fer.selection.adaptive import FlexMatch, FreeMatch, SoftMatch
from ray_fer.selection.priors import Alignment, DebiasPL
from ray_fer.selection.ranks import CReST, TopK
from ray_fer.selection.rule import (
    CONCATENATED,
    Accepted,
    Measured,
    Rule,
    SelectionContext,
    State,
    debias,
    fit,
    harden,
    move,
    smoothed_prior,
)
from ray_fer.selection.thresholds import AdaCM, Threshold

__all__ = [
    "CONCATENATED",
    "RULES",
    "Accepted",
    "Measured",
    "Rule",
    "SelectionContext",
    "State",
    "debias",
    "fit",
    "harden",
    "move",
    "smoothed_prior",
]

RULES: dict[str, type[Rule]] = {
    "threshold": Threshold,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
    "alignment": Alignment,
    "ada_cm": AdaCM,
    "debiaspl": DebiasPL,
    "crest": CReST,
    "top_k": TopK,
}
