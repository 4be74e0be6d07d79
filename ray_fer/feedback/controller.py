"""The loop's controller: it moves the state a fixed share towards the targets of the newest validation.

A loop that feeds on its own errors can run away: a class that is over-weighted gets over-predicted, pseudo-labelled
and over-weighted again. Four rules prevent it. Every round recomputes a *bounded target* from scratch and moves a
fixed share towards it, x <- (1 - beta) x + beta T(N), so the state stays in the target's box and nothing winds up.
Differences below one standard error are ignored. A matrix that cannot be trusted leaves the state as it was. Two
clear losses of macro-F1 in a row pull every factor back towards neutral for a round.

The price of caution is speed: with beta = .3 it takes about four rounds to reach three quarters of a correction.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike

from ray_fer.evaluation.metrics import bootstrap_macro_f1_se, macro_f1
from ray_fer.feedback.config import PARTS, FeedbackPart
from ray_fer.feedback.factors import (
    MIN_THRESHOLD,
    Floats,
    class_rates,
    debias_target,
    log_weight_target,
    threshold_target,
)
from ray_fer.feedback.state import FeedbackState, split_shares

# beta: the share of the way to the target that one round moves.
STEP = 0.3
# A matrix with fewer examples (but not none) is not acted upon.
MIN_EXAMPLES = 100
# The volume brake lowers `tau0` by a step when a smaller share was accepted for two rounds.
MIN_ACCEPTED_SHARE, BRAKE_STEP = 0.05, 0.02
# By how many standard errors macro-F1 must fall below the best to count as a loss, and how many losses in a row trigger
# a neutral round.
ROLLBACK_SE, ROLLBACK_ROUNDS = 2.0, 2


def next_state(
    confusion: ArrayLike,
    q_hat: ArrayLike | None,
    state: FeedbackState,
    parts: Collection[FeedbackPart] = PARTS,
    *,
    accepted_share: float | None = None,
    macro_f1_se: float | None = None,
    prior_helps: bool = True,
) -> FeedbackState:
    """Returns the state after a student was evaluated, which is one round of the loop (ray-fer's proposal).

    Args:
        confusion: Validation counts of the student trained under `state`, (K, K), rows true, columns predicted. The
            validation examples must be the same every round, and serve neither training nor the reported test.
        q_hat: Share of each class among the predictions on unlabelled images, (K,). None, or an array that is not
            finite, negative somewhere or all zero, leaves the debiasing as it is.
        state: The state of the last round.
        parts: The factors that are used, the same in every round. The others stay neutral, and the brake is off
            without the thresholds.
        accepted_share: Share of the unlabelled images that became pseudo-labels, for the volume brake.
        macro_f1_se: Standard error of the macro-F1 of `confusion`; a bootstrap over its cells if None.
        prior_helps: False when the debiasing lowers held-out macro-F1; it then returns to neutral.

    Returns:
        The next state with `version` + 1; or `state` itself, unchanged, when the matrix cannot be trusted: it holds
        NaN, an infinity or a negative count, or fewer than `MIN_EXAMPLES` examples. An entirely empty matrix is no
        evidence rather than bad evidence: it pulls every factor towards neutral.

    Raises:
        ValueError: The matrix is not K x K, or q_hat not (K,), for the K classes of the state.
    """
    counts = _square(confusion, len(state.log_weights))
    share, total = _share(q_hat, len(counts)), counts.sum()
    if not np.isfinite(counts).all() or (counts < 0).any() or 0 < total < MIN_EXAMPLES:
        return state
    tau0, low_share_rounds = _brake(state, accepted_share, parts)
    best, best_version, worse_rounds = _judge(counts, state, macro_f1_se)
    rollback = worse_rounds >= ROLLBACK_ROUNDS
    neutral, worse_rounds = total == 0 or rollback, 0 if rollback else worse_rounds
    zeros, flat = np.zeros(len(counts)), np.full(len(counts), tau0)
    ell, tau, delta = zeros, flat, zeros
    if not neutral:
        ell, tau = log_weight_target(rates := class_rates(counts)), threshold_target(rates, tau0)
        if prior_helps:
            delta = np.asarray(state.log_debias) if share is None else debias_target(counts, share)
    loss_share, sampling_share = split_shares(parts)
    return FeedbackState(
        log_weights=_towards(state.log_weights, ell),
        thresholds=_towards(state.thresholds, tau) if "thresholds" in parts else tuple(flat.tolist()),
        log_debias=_towards(state.log_debias, delta) if "debiasing" in parts else tuple(zeros.tolist()),
        tau0=tau0,
        loss_share=loss_share,
        sampling_share=sampling_share,
        version=state.version + 1,
        low_share_rounds=low_share_rounds,
        worse_rounds=worse_rounds,
        best_macro_f1=best,
        best_version=best_version,
    )


def _brake(state: FeedbackState, accepted_share: float | None, parts: Collection[FeedbackPart]) -> tuple[float, int]:
    if accepted_share is None or "thresholds" not in parts:
        return state.tau0, state.low_share_rounds
    rounds = state.low_share_rounds + 1 if accepted_share < MIN_ACCEPTED_SHARE else 0
    if rounds < 2:
        return state.tau0, rounds
    # Counting starts afresh, for the damped thresholds need a round to follow before the volume can answer.
    return max(state.tau0 - BRAKE_STEP, MIN_THRESHOLD), 0


def _judge(counts: Floats, state: FeedbackState, macro_f1_se: float | None) -> tuple[float | None, int, int]:
    if not counts.any():
        return state.best_macro_f1, state.best_version, state.worse_rounds
    score = macro_f1(counts)
    if state.best_macro_f1 is None or score >= state.best_macro_f1:
        return score, state.version, 0
    error = bootstrap_macro_f1_se(counts) if macro_f1_se is None else macro_f1_se
    worse = score < state.best_macro_f1 - ROLLBACK_SE * error
    return state.best_macro_f1, state.best_version, state.worse_rounds + 1 if worse else 0


def _square(confusion: ArrayLike, n_classes: int) -> Floats:
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.shape != (n_classes, n_classes):
        raise ValueError(f"confusion matrix has shape {counts.shape}, not ({n_classes}, {n_classes})")
    return counts


def _share(q_hat: ArrayLike | None, n_classes: int) -> Floats | None:
    if q_hat is None:
        return None
    share = np.asarray(q_hat, dtype=np.float64)
    if share.shape != (n_classes,):
        raise ValueError(f"q_hat has shape {share.shape}, not ({n_classes},)")
    usable = np.isfinite(share).all() and (share >= 0).all() and share.sum() > 0
    return share if usable else None


def _towards(now: tuple[float, ...], target: Floats) -> tuple[float, ...]:
    # In this form a value that has arrived stays exactly where it is.
    x = np.asarray(now, dtype=np.float64)
    return tuple((x + STEP * (target - x)).tolist())
