"""What the feedback loop remembers between rounds, and the snapshot of it that one round uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ray_fer.feedback.config import PARTS, FeedbackPart
from ray_fer.feedback.factors import BASE_THRESHOLD, Floats, loss_weights, sampling_weights

FACTORS = ("loss_weights", "sampling_weights", "thresholds", "log_debiasing_prior")
# rho: the share of the log-weight that goes to sampling; the rest goes to the loss.
SAMPLING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class FeedbackState:
    """Everything the loop remembers between rounds, as plain numbers: compare, hash and store it freely.

    Attributes:
        log_weights: ell, log-weight of each class before it is split between loss and sampling, K numbers.
        thresholds: tau, acceptance threshold of each class, K numbers.
        log_debias: delta, what debiasing adds to each class's logit, K numbers.
        tau0: Neutral threshold; only the volume brake moves it, and only down.
        loss_share: Part of ell that goes to the loss: 1 - rho, or 0 when loss weights are off.
        sampling_share: Part of ell that goes to sampling: rho, or 0 when sampling weights are off.
        version: Number of updates applied; 0 is the neutral start.
        low_share_rounds: Rounds in a row in which too little was accepted.
        worse_rounds: Rounds in a row with macro-F1 clearly below the best.
        best_macro_f1: Best held-out macro-F1 seen; None before the first.
        best_version: Version of the state under which that student was trained.
    """

    log_weights: tuple[float, ...]
    thresholds: tuple[float, ...]
    log_debias: tuple[float, ...]
    tau0: float
    loss_share: float
    sampling_share: float
    version: int = 0
    low_share_rounds: int = 0
    worse_rounds: int = 0
    best_macro_f1: float | None = None
    best_version: int = 0

    def to_json(self) -> dict[str, Any]:
        """A dict of numbers, strings and lists; `from_json` gives back an equal state."""
        fields = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FeedbackState:
        """Rebuild the state that `to_json` wrote. Raises TypeError for a missing or unknown key."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**fields)


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """What one round of labelling and training uses; arrays are float64 (K,) and read-only.

    Attributes:
        loss_weights: Factor of each class in the loss; mean 1 under the class mix that is sampled.
        sampling_weights: Factor of each class in the sampling probability, before normalisation.
        thresholds: Smallest confidence at which a pseudo-label of the class is accepted.
        log_debiasing_prior: log p_d with sum p_d = 1. Pseudo-labels come from softmax(z_weak - log p_d), and the
            student may be trained on z_strong + log p_d.
        version: Version of the state it was made from.
    """

    loss_weights: Floats
    sampling_weights: Floats
    thresholds: Floats
    log_debiasing_prior: Floats
    version: int

    def __post_init__(self) -> None:
        """Makes the arrays read-only."""
        for name in FACTORS:
            getattr(self, name).flags.writeable = False

    def to_json(self) -> dict[str, Any]:
        """Returns the version and the factors as lists of K numbers, for a file; `from_json` reads it."""
        return {"version": self.version, **{name: getattr(self, name).tolist() for name in FACTORS}}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Snapshot:
        """Rebuilds the snapshot that `to_json` wrote; other keys are ignored. Raises KeyError for a missing one."""
        factors = {name: np.array(stored[name], dtype=np.float64) for name in FACTORS}
        return cls(**factors, version=stored["version"])


def initial_state(n_classes: int, parts: Collection[FeedbackPart] = PARTS) -> FeedbackState:
    """Returns the neutral state, version 0: every weight 1, every threshold tau0, a uniform prior."""
    zeros = (0.0,) * n_classes
    loss_share, sampling_share = split_shares(parts)
    return FeedbackState(
        log_weights=zeros,
        thresholds=(BASE_THRESHOLD,) * n_classes,
        log_debias=zeros,
        tau0=BASE_THRESHOLD,
        loss_share=loss_share,
        sampling_share=sampling_share,
    )


def split_shares(parts: Collection[FeedbackPart]) -> tuple[float, float]:
    """Returns the parts of the log-weight that go to the loss and to sampling; 0 for one that is not in ``parts``."""
    loss_share = 1.0 - SAMPLING_SHARE if "loss_weights" in parts else 0.0
    return loss_share, SAMPLING_SHARE if "sampling_weights" in parts else 0.0


def snapshot(state: FeedbackState, class_mix: ArrayLike | None = None) -> Snapshot:
    """Returns the factors that one round uses; `class_mix` (K,) as in `loss_weights`."""
    log_prior = -np.asarray(state.log_debias, dtype=np.float64)
    log_prior = log_prior - np.log(np.exp(log_prior).sum())
    return Snapshot(
        loss_weights=loss_weights(state.log_weights, state.loss_share, class_mix),
        sampling_weights=sampling_weights(state.log_weights, state.sampling_share),
        thresholds=np.array(state.thresholds, dtype=np.float64),
        log_debiasing_prior=log_prior,
        version=state.version,
    )
