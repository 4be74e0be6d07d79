"""From a validation confusion matrix to four gentle corrections of the next training round.

The paper (arXiv:2403.11942) feeds back how much pseudo-labels helped, and does not print its formulas. **Everything
here is ray-fer's own proposal, not the paper's**: four maps from the student's confusion matrix N (rows true, columns
predicted) and the class mix q_hat of its predictions on the unlabelled images,

* loss weights: a class with below-average recall counts more in the loss,
* sampling weights: the same boost, spent on drawing it more often; both share one budget, so it is never paid twice,
* acceptance thresholds: stricter where predictions of a class are wrong, laxer where they are right but rare,
* debiasing prior: undoes the bias that the confusion matrix *measures*, not every difference in class frequency.

A loop that feeds on its own errors can run away: a class that is over-weighted gets over-predicted, pseudo-labelled
and over-weighted again. Four rules prevent it. Every round recomputes a *bounded target* from scratch and moves a
fixed share towards it, x <- (1 - beta) x + beta T(N), so the state stays in the target's box and nothing winds up.
Differences below one standard error are ignored. A matrix that cannot be trusted leaves the state as it was. Two
clear losses of macro-F1 in a row pull every factor back towards neutral for a round. With a perfect student or an
empty matrix all targets are neutral: plain pseudo-labelling.

The price of caution is speed: with beta = .3 it takes about four rounds to reach three quarters of a correction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_fer.evaluation.metrics import bootstrap_macro_f1_se, macro_f1

Floats = NDArray[np.float64]

FACTORS = ("loss_weights", "sampling_weights", "thresholds", "log_debiasing_prior")

# Between these the feedback moves a threshold, unless its base is beyond: from .5 on at most one class can pass, and no
# class is ever closed.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.5, 0.97


@dataclass(frozen=True, slots=True)
class FeedbackConfig:
    """The constants of the maps; the defaults are ray-fer's proposal.

    Attributes:
        loss_weights: Use the loss weights; off means weight 1 for every class.
        sampling_weights: Use the sampling weights; off means weight 1 for every class.
        thresholds: Use the per-class thresholds; off means `tau0` for every class, without the volume brake.
        debiasing: Use the debiasing prior; off means a uniform prior.
        a: Pseudo-count of the smoothed recalls and precisions, and of the identity added to the confusion matrix.
        beta: Share of the way to the target that one round moves, in (0, 1].
        kappa: Log-weight per unit of missing recall.
        max_boost: Largest class weight before it is split between loss and sampling.
        max_cut: Largest divisor of a class weight before it is split.
        rho: Share of the log-weight that goes to sampling; the rest, 1 - rho, goes to the loss.
        kappa_p: Rise of a threshold per unit of missing precision.
        kappa_r: Fall of a threshold per unit of missing recall.
        tau0: Neutral threshold on calibrated probabilities.
        tau_min: Lowest threshold, at least .5 so that at most one class can pass.
        tau_max: Highest threshold.
        min_accepted_share: The volume brake lowers `tau0` when a smaller share was accepted for two rounds.
        brake_step: How much the brake lowers `tau0` each time.
        lam: Strength of the debiasing prior, lambda; the prior's max/min ratio is at most exp(2 lambda).
        em_steps: Steps of the EM estimate of the unlabelled class mix.
        em_pull: Share by which each EM step is pulled back to the predicted mix.
        epsilon: Uniform share mixed into q_hat so that its logarithm is finite.
        min_examples: A matrix with fewer examples (but not none) is not acted upon.
        rollback_se: Standard errors by which macro-F1 must fall below the best to count as a loss.
        rollback_rounds: Losses in a row that trigger a neutral round.
    """

    loss_weights: bool = True
    sampling_weights: bool = True
    thresholds: bool = True
    debiasing: bool = True
    a: float = 5.0
    beta: float = 0.3
    kappa: float = 2.0
    max_boost: float = 2.0
    max_cut: float = 1.5
    rho: float = 0.5
    kappa_p: float = 0.3
    kappa_r: float = 0.2
    tau0: float = 0.8
    tau_min: float = 0.60
    tau_max: float = 0.95
    min_accepted_share: float = 0.05
    brake_step: float = 0.02
    lam: float = 0.5
    em_steps: int = 50
    em_pull: float = 0.05
    epsilon: float = 1e-3
    min_examples: int = 100
    rollback_se: float = 2.0
    rollback_rounds: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for a constant outside the range on which the bounds rest."""
        ranges = {"beta": (1e-6, 1.0), "rho": (0.0, 1.0), "em_pull": (0.0, 1.0)}
        ranges |= {"tau_min": (0.5, self.tau0), "tau_max": (self.tau0, 1.0), "a": (1e-6, math.inf)}
        ranges |= {"max_boost": (1.0, math.inf), "max_cut": (1.0, math.inf), "epsilon": (1e-12, 1.0)}
        ranges |= dict.fromkeys(("kappa", "kappa_p", "kappa_r", "lam", "brake_step"), (0.0, math.inf))
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"feedback: {name} = {value} is not in [{low:g}, {high:g}]")


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
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self._items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FeedbackState:
        """Rebuild the state that `to_json` wrote. Raises TypeError for a missing or unknown key."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**fields)

    def _items(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]


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


@dataclass(frozen=True, eq=False, slots=True)
class ClassRates:
    """Smoothed recall and precision per class with standard errors, each (K,), and the means they shrink to.

    Attributes:
        support: m, examples per class.
        predicted: o, predictions per class.
        recall: r = (N_cc + a mean_recall) / (m + a).
        precision: p = (N_cc + a mean_precision) / (o + a).
        recall_se: Binomial standard error of r on m + a draws.
        precision_se: Likewise of p on o + a draws.
        mean_recall: Mean raw recall over the classes with examples; 1 if there is none.
        mean_precision: Mean raw precision over the classes with examples and predictions; 1 if there is none.
    """

    support: Floats
    predicted: Floats
    recall: Floats
    precision: Floats
    recall_se: Floats
    precision_se: Floats
    mean_recall: float
    mean_precision: float


def class_rates(confusion: ArrayLike, a: float = 5.0) -> ClassRates:
    """Smoothed rates of a (K, K) confusion matrix of finite counts >= 0 (ray-fer's proposal).

    A class without validation examples takes the mean of both rates. For precision that is a choice: every prediction
    of such a class is wrong by construction, which says how the validation set was drawn and nothing about the class.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hits, support, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    judged = np.where(support > 0, predicted, 0.0)
    recall, mean_recall = _smoothed(hits, support, a)
    precision, mean_precision = _smoothed(hits, judged, a)
    return ClassRates(
        support=support,
        predicted=predicted,
        recall=recall,
        precision=precision,
        recall_se=np.sqrt(recall * (1 - recall) / (support + a)),
        precision_se=np.sqrt(precision * (1 - precision) / (judged + a)),
        mean_recall=mean_recall,
        mean_precision=mean_precision,
    )


def log_weight_target(rates: ClassRates, config: FeedbackConfig) -> Floats:
    """Target log-weight of each class, (K,), in [-ln max_cut, ln max_boost] (ray-fer's proposal).

    ell* = clip(kappa soft(mean recall - recall)). Recall relative to the mean is what macro-F1 pays for, and in log
    space a boost and a cut are symmetric.
    """
    lag = _soft(rates.mean_recall - rates.recall, rates.recall_se)
    return np.clip(config.kappa * lag, -math.log(config.max_cut), math.log(config.max_boost))


def threshold_target(rates: ClassRates, tau0: float, config: FeedbackConfig) -> Floats:
    """Target acceptance threshold of each class, (K,), in [tau_min, tau_max] (ray-fer's proposal).

    The bar rises by kappa_p per missing precision. Only where it need not rise does it fall, by kappa_r per missing
    recall: precision has priority, so a rare and noisy class is never opened up. A class that was never predicted has
    not shown any precision; it stays at tau0.
    """
    up = config.kappa_p * np.maximum(_soft(rates.mean_precision - rates.precision, rates.precision_se), 0.0)
    down = config.kappa_r * np.maximum(_soft(rates.mean_recall - rates.recall, rates.recall_se), 0.0)
    may_fall = (up == 0.0) & (rates.predicted > 0)
    return np.clip(tau0 + up - np.where(may_fall, down, 0.0), config.tau_min, config.tau_max)


def debias_target(confusion: ArrayLike, q_hat: ArrayLike, config: FeedbackConfig) -> Floats:
    """Target logit correction of each class, (K,), in [-lambda, lambda] (ray-fer's proposal).

    EM (hard-label label shift) finds the class mix pi that, seen through the measured confusion, gives the predicted
    mix q; the correction is lambda clip(log pi - log q, -1, 1). With a perfect student pi = q: a genuine long tail is
    left alone, where dividing by q itself (DebiasPL, arXiv:2201.01490) would flatten it. A class without validation
    examples is not corrected: what it loses to others was never measured, so its estimate could only err downwards.

    Args:
        confusion: Counts, (K, K).
        q_hat: Share of each class among the predictions on unlabelled images, (K,); normalised here.
        config: Uses a, epsilon, em_steps, em_pull and lam.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    n_classes, support = len(counts), counts.sum(axis=1)
    channel = (counts + config.a * np.eye(n_classes)) / (support + config.a)[:, None]
    share = np.asarray(q_hat, dtype=np.float64)
    q = (share / share.sum() + config.epsilon / n_classes) / (1 + config.epsilon)
    mix = q
    for _ in range(config.em_steps):
        explained = mix * (channel @ (q / (mix @ channel)))
        mix = (1 - config.em_pull) * explained + config.em_pull * q
    correction = config.lam * np.clip(np.log(mix) - np.log(q), -1.0, 1.0)
    return np.where(support > 0, correction, 0.0)


def loss_weights(log_weights: ArrayLike, share: float, class_mix: ArrayLike | None = None) -> Floats:
    """Loss weights exp(share ell), (K,), scaled to mean 1 under `class_mix` (ray-fer's proposal).

    The scaling keeps the mean size of the gradient, so the learning rate need not change.

    Args:
        log_weights: ell, (K,).
        share: Part of ell that goes to the loss.
        class_mix: Shares of the classes among the examples actually sampled, (K,); uniform if None.
    """
    weights: Floats = np.exp(share * np.asarray(log_weights, dtype=np.float64))
    mix = np.ones_like(weights) if class_mix is None else np.asarray(class_mix, dtype=np.float64)
    mean = float((mix * weights).sum() / mix.sum())
    return weights / mean


def sampling_weights(log_weights: ArrayLike, share: float) -> Floats:
    """Sampling weights exp(share ell), (K,): factors of the class probabilities (ray-fer's proposal)."""
    weights: Floats = np.exp(share * np.asarray(log_weights, dtype=np.float64))
    return weights


def sampling_probabilities(
    weights: ArrayLike, base: ArrayLike, class_counts: ArrayLike, n_draws: int, *, max_repeats: float = 4.0
) -> Floats:
    """Class probabilities P(c) ~ base_c s_c with a guard against repeating a few images (ray-fer's proposal).

    The guard is on what the feedback adds: a class may exceed its share without feedback only as long as no image of
    it is expected more than `max_repeats` times in an epoch. So neutral weights leave the base as it is, even where
    drawing classes uniformly already repeats a rare class more often. What a capped class loses goes to the others in
    proportion.

    Args:
        weights: Sampling weights s, (K,).
        base: Share of each class without feedback, (K,), up to a factor; 0 for a class without images.
        class_counts: Images per class, (K,).
        n_draws: Examples drawn per epoch.
        max_repeats: Largest expected number of draws per image and epoch that the feedback may cause.

    Returns:
        Probabilities, (K,), summing to 1.
    """
    shares = np.asarray(base, dtype=np.float64)
    shares = shares / shares.sum()
    cap = np.maximum(max_repeats * np.asarray(class_counts, dtype=np.float64) / n_draws, shares)
    wanted: Floats = shares * np.asarray(weights, dtype=np.float64)
    capped = np.zeros(cap.shape, dtype=bool)
    probabilities: Floats = wanted / wanted.sum()
    # The caps add up to at least 1, so that the others can always take what is left over.
    while (over := ~capped & (probabilities > cap * (1 + 1e-12))).any():
        capped |= over
        rest = 1.0 - cap[capped].sum()
        probabilities = np.where(capped, cap, wanted * (rest / wanted[~capped].sum()))
    return probabilities


def initial_state(n_classes: int, config: FeedbackConfig | None = None) -> FeedbackState:
    """The neutral state, version 0: every weight 1, every threshold tau0, a uniform prior."""
    config = config or FeedbackConfig()
    zeros = (0.0,) * n_classes
    return FeedbackState(
        log_weights=zeros,
        thresholds=(config.tau0,) * n_classes,
        log_debias=zeros,
        tau0=config.tau0,
        loss_share=_loss_share(config),
        sampling_share=_sampling_share(config),
    )


def feedback(
    confusion: ArrayLike,
    q_hat: ArrayLike | None,
    state: FeedbackState,
    config: FeedbackConfig | None = None,
    *,
    accepted_share: float | None = None,
    macro_f1_se: float | None = None,
    prior_helps: bool = True,
) -> FeedbackState:
    """One round of the loop: the state after a student was evaluated (ray-fer's proposal).

    Args:
        confusion: Validation counts of the student trained under `state`, (K, K), rows true, columns predicted. The
            validation examples must be the same every round, and serve neither training nor the reported test.
        q_hat: Share of each class among the predictions on unlabelled images, (K,). None, or an array that is not
            finite, negative somewhere or all zero, leaves the debiasing as it is.
        state: The state of the last round.
        config: The constants; must be the same in every round.
        accepted_share: Share of the unlabelled images that became pseudo-labels, for the volume brake.
        macro_f1_se: Standard error of the macro-F1 of `confusion`; a bootstrap over its cells if None.
        prior_helps: False when held-out macro-F1 under the debiasing prior is below that under a uniform one; the
            debiasing then returns to neutral.

    Returns:
        The next state with `version` + 1; or `state` itself, unchanged, when the matrix cannot be trusted: it holds
        NaN, an infinity or a negative count, or fewer than `min_examples` examples. An entirely empty matrix is no
        evidence rather than bad evidence: it pulls every factor towards neutral.

    Raises:
        ValueError: The matrix is not K x K, or q_hat not (K,), for the K classes of the state.
    """
    config = config or FeedbackConfig()
    counts = _square(confusion, len(state.log_weights))
    share = _share(q_hat, len(counts))
    total = counts.sum()
    if not np.isfinite(counts).all() or (counts < 0).any() or 0 < total < config.min_examples:
        return state
    tau0, low_share_rounds = _brake(state, accepted_share, config)
    best, best_version, worse_rounds = _judge(counts, state, macro_f1_se, config)
    neutral = total == 0 or worse_rounds >= config.rollback_rounds
    if worse_rounds >= config.rollback_rounds:
        worse_rounds = 0
    zeros = np.zeros(len(counts))
    flat = np.full(len(counts), tau0)
    rates = class_rates(counts, config.a)
    ell = zeros if neutral else log_weight_target(rates, config)
    tau = flat if neutral else threshold_target(rates, tau0, config)
    if neutral or not prior_helps:
        delta = zeros
    elif share is None:
        delta = np.asarray(state.log_debias)
    else:
        delta = debias_target(counts, share, config)
    return FeedbackState(
        log_weights=_towards(state.log_weights, ell, config.beta),
        thresholds=_towards(state.thresholds, tau, config.beta) if config.thresholds else tuple(flat.tolist()),
        log_debias=_towards(state.log_debias, delta, config.beta) if config.debiasing else tuple(zeros.tolist()),
        tau0=tau0,
        loss_share=_loss_share(config),
        sampling_share=_sampling_share(config),
        version=state.version + 1,
        low_share_rounds=low_share_rounds,
        worse_rounds=worse_rounds,
        best_macro_f1=best,
        best_version=best_version,
    )


def snapshot(state: FeedbackState, class_mix: ArrayLike | None = None) -> Snapshot:
    """The factors that one round uses, from its state; `class_mix` (K,) as in `loss_weights`."""
    log_prior = -np.asarray(state.log_debias, dtype=np.float64)
    log_prior = log_prior - np.log(np.exp(log_prior).sum())
    return Snapshot(
        loss_weights=loss_weights(state.log_weights, state.loss_share, class_mix),
        sampling_weights=sampling_weights(state.log_weights, state.sampling_share),
        thresholds=np.array(state.thresholds, dtype=np.float64),
        log_debiasing_prior=log_prior,
        version=state.version,
    )


def moved_thresholds(base: float, thresholds: ArrayLike) -> Floats:
    """Thresholds (K,): the moves of ``thresholds``, made from another neutral one (ray-fer's proposal).

    They stay in [min(.5, base), max(.97, base)].

    Args:
        base: What every threshold is without feedback, in (0, 1].
        thresholds: A snapshot's, (K,), moved around the default `tau0`.
    """
    moves = np.asarray(thresholds, dtype=np.float64) - FeedbackConfig().tau0
    moved: Floats = np.clip(base + moves, min(LOWEST_THRESHOLD, base), max(HIGHEST_THRESHOLD, base))
    return moved


def _brake(state: FeedbackState, accepted_share: float | None, config: FeedbackConfig) -> tuple[float, int]:
    if accepted_share is None or not config.thresholds:
        return state.tau0, state.low_share_rounds
    rounds = state.low_share_rounds + 1 if accepted_share < config.min_accepted_share else 0
    if rounds < 2:
        return state.tau0, rounds
    # Counting starts afresh, for the damped thresholds need a round to follow before the volume can answer.
    return max(state.tau0 - config.brake_step, config.tau_min), 0


def _judge(
    counts: Floats, state: FeedbackState, macro_f1_se: float | None, config: FeedbackConfig
) -> tuple[float | None, int, int]:
    if not counts.any():
        return state.best_macro_f1, state.best_version, state.worse_rounds
    score = macro_f1(counts)
    if state.best_macro_f1 is None or score >= state.best_macro_f1:
        return score, state.version, 0
    error = bootstrap_macro_f1_se(counts) if macro_f1_se is None else macro_f1_se
    worse = score < state.best_macro_f1 - config.rollback_se * error
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


def _smoothed(hits: Floats, trials: Floats, a: float) -> tuple[Floats, float]:
    seen = trials > 0
    mean = float((hits[seen] / trials[seen]).mean()) if seen.any() else 1.0
    return (np.where(seen, hits, 0.0) + a * mean) / (trials + a), mean


def _soft(difference: Floats, error: Floats) -> Floats:
    shrunk: Floats = np.sign(difference) * np.maximum(np.abs(difference) - error, 0.0)
    return shrunk


def _towards(now: tuple[float, ...], target: Floats, beta: float) -> tuple[float, ...]:
    # In this form a value that has arrived stays exactly where it is.
    x = np.asarray(now, dtype=np.float64)
    return tuple((x + beta * (target - x)).tolist())


def _loss_share(config: FeedbackConfig) -> float:
    return 1.0 - config.rho if config.loss_weights else 0.0


def _sampling_share(config: FeedbackConfig) -> float:
    return config.rho if config.sampling_weights else 0.0
