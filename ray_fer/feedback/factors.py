"""The maps from a validation confusion matrix to four gentle corrections of the next training round.

The paper (arXiv:2403.11942) feeds back how much pseudo-labels helped, and does not print its formulas. **Everything
here is ray-fer's own proposal, not the paper's**: four maps from the student's confusion matrix N (rows true, columns
predicted) and the class mix q_hat of its predictions on the unlabelled images,

* loss weights: a class with below-average recall counts more in the loss,
* sampling weights: the same boost, spent on drawing it more often; both share one budget, so it is never paid twice,
* acceptance thresholds: stricter where predictions of a class are wrong, laxer where they are right but rare,
* debiasing prior: undoes the bias that the confusion matrix *measures*, not every difference in class frequency.

Differences below one standard error are ignored, and every target is bounded. With a perfect student or an empty
matrix all targets are neutral, which is plain pseudo-labelling. `controller` moves the state towards the targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# a: the pseudo-count of the smoothed recalls and precisions, and of the identity added to the confusion matrix.
PSEUDO_COUNT = 5.0
# kappa: log-weight per unit of missing recall.
WEIGHT_GAIN = 2.0
# The largest class weight and the largest divisor of one, before it is split between loss and sampling.
MAX_BOOST, MAX_CUT = 2.0, 1.5
# tau0: the neutral threshold on calibrated probabilities.
BASE_THRESHOLD = 0.8
# From .5 on at most one class can pass.
MIN_THRESHOLD, MAX_THRESHOLD = 0.60, 0.95
# kappa_p and kappa_r: rise of a threshold per unit of missing precision, and fall per unit of missing recall.
PRECISION_GAIN, RECALL_GAIN = 0.3, 0.2
# lambda: the strength of the debiasing prior, whose max/min ratio is at most exp(2 lambda).
DEBIAS_STRENGTH = 0.5
# Steps of the EM estimate of the unlabelled class mix, and the share by which each is pulled back to the predicted mix.
EM_STEPS, EM_PULL = 50, 0.05
# The largest expected number of draws per image and epoch that the feedback may cause.
MAX_REPEATS = 4.0
# Uniform share mixed into q_hat so that its logarithm is finite.
EPSILON = 1e-3
# Between these `moved_thresholds` keeps a threshold, unless its base lies beyond; so no class is ever closed.
LOWEST_MOVED, HIGHEST_MOVED = 0.5, 0.97


@dataclass(frozen=True, eq=False, slots=True)
class ClassRates:
    """Smoothed recall and precision per class with standard errors, each (K,), and the means they shrink to.

    Attributes:
        support: m, examples per class.
        predicted: o, predictions per class.
        recall: r = (N_cc + a mean_recall) / (m + a).
        precision: p = (N_cc + a mean_precision) / (o + a).
        recall_se: Binomial standard error of r on m + a draws.
        precision_se: Binomial standard error of p on o + a draws.
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


def class_rates(confusion: ArrayLike) -> ClassRates:
    """Smoothed rates of a (K, K) confusion matrix of finite counts >= 0 (ray-fer's proposal).

    A class without validation examples takes the mean of both rates. For precision that is a choice: every prediction
    of such a class is wrong by construction, which says how the validation set was drawn and nothing about the class.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hits, support, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    judged = np.where(support > 0, predicted, 0.0)
    recall, mean_recall = _smoothed(hits, support)
    precision, mean_precision = _smoothed(hits, judged)
    return ClassRates(
        support=support,
        predicted=predicted,
        recall=recall,
        precision=precision,
        recall_se=np.sqrt(recall * (1 - recall) / (support + PSEUDO_COUNT)),
        precision_se=np.sqrt(precision * (1 - precision) / (judged + PSEUDO_COUNT)),
        mean_recall=mean_recall,
        mean_precision=mean_precision,
    )


def log_weight_target(rates: ClassRates) -> Floats:
    """Target log-weight of each class, (K,), in [-ln MAX_CUT, ln MAX_BOOST] (ray-fer's proposal).

    ell* = clip(kappa soft(mean recall - recall)). Recall relative to the mean is what macro-F1 pays for, and in log
    space a boost and a cut are symmetric.
    """
    lag = _soft(rates.mean_recall - rates.recall, rates.recall_se)
    return np.clip(WEIGHT_GAIN * lag, -math.log(MAX_CUT), math.log(MAX_BOOST))


def threshold_target(rates: ClassRates, tau0: float) -> Floats:
    """Target acceptance threshold of each class, (K,), between the two bounds (ray-fer's proposal).

    The bar rises by kappa_p per missing precision. Only where it need not rise does it fall, by kappa_r per missing
    recall: precision has priority, so a rare and noisy class is never opened up. A class that was never predicted has
    not shown any precision; it stays at tau0.
    """
    up = PRECISION_GAIN * np.maximum(_soft(rates.mean_precision - rates.precision, rates.precision_se), 0.0)
    down = RECALL_GAIN * np.maximum(_soft(rates.mean_recall - rates.recall, rates.recall_se), 0.0)
    may_fall = (up == 0.0) & (rates.predicted > 0)
    return np.clip(tau0 + up - np.where(may_fall, down, 0.0), MIN_THRESHOLD, MAX_THRESHOLD)


def debias_target(
    confusion: ArrayLike,
    q_hat: ArrayLike,
    *,
    strength: float = DEBIAS_STRENGTH,
    em_steps: int = EM_STEPS,
    em_pull: float = EM_PULL,
) -> Floats:
    """Target logit correction of each class, (K,), in [-lambda, lambda] (ray-fer's proposal).

    EM (hard-label label shift) finds the class mix pi that, seen through the measured confusion, gives the predicted
    mix q; the correction is lambda clip(log pi - log q, -1, 1). With a perfect student pi = q: a genuine long tail is
    left alone, where dividing by q itself (DebiasPL, arXiv:2201.01490) would flatten it. A class without validation
    examples is not corrected: what it loses to others was never measured, so its estimate could only err downwards.

    Args:
        confusion: Counts, (K, K).
        q_hat: Share of each class among the predictions on unlabelled images, (K,); normalised here.
        strength: lambda.
        em_steps: Steps of the EM estimate of pi.
        em_pull: Share by which each step is pulled back to q.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    n_classes, support = len(counts), counts.sum(axis=1)
    channel = (counts + PSEUDO_COUNT * np.eye(n_classes)) / (support + PSEUDO_COUNT)[:, None]
    share = np.asarray(q_hat, dtype=np.float64)
    q = (share / share.sum() + EPSILON / n_classes) / (1 + EPSILON)
    mix = q
    for _ in range(em_steps):
        explained = mix * (channel @ (q / (mix @ channel)))
        mix = (1 - em_pull) * explained + em_pull * q
    correction = strength * np.clip(np.log(mix) - np.log(q), -1.0, 1.0)
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


def sampling_probabilities(weights: ArrayLike, base: ArrayLike, class_counts: ArrayLike, n_draws: int) -> Floats:
    """Class probabilities P(c) ~ base_c s_c with a guard against repeating a few images (ray-fer's proposal).

    The guard is on what the feedback adds: a class may exceed its share without feedback only as long as no image of
    it is expected more than `MAX_REPEATS` times in an epoch. So neutral weights leave the base as it is, even where
    drawing classes uniformly already repeats a rare class more often. What a capped class loses goes to the others in
    proportion.

    Args:
        weights: Sampling weights s, (K,).
        base: Share of each class without feedback, (K,), up to a factor; 0 for a class without images.
        class_counts: Images per class, (K,).
        n_draws: Examples drawn per epoch.

    Returns:
        Probabilities, (K,), summing to 1.
    """
    shares = np.asarray(base, dtype=np.float64)
    shares = shares / shares.sum()
    cap = np.maximum(MAX_REPEATS * np.asarray(class_counts, dtype=np.float64) / n_draws, shares)
    wanted: Floats = shares * np.asarray(weights, dtype=np.float64)
    capped = np.zeros(cap.shape, dtype=bool)
    probabilities: Floats = wanted / wanted.sum()
    # The caps add up to at least 1, so that the others can always take what is left over.
    while (over := ~capped & (probabilities > cap * (1 + 1e-12))).any():
        capped |= over
        rest = 1.0 - cap[capped].sum()
        probabilities = np.where(capped, cap, wanted * (rest / wanted[~capped].sum()))
    return probabilities


def moved_thresholds(base: float, thresholds: ArrayLike) -> Floats:
    """Thresholds (K,): the moves of ``thresholds``, made from another neutral one (ray-fer's proposal).

    They stay in [min(.5, base), max(.97, base)].

    Args:
        base: What every threshold is without feedback, in (0, 1].
        thresholds: A snapshot's, (K,), moved around `BASE_THRESHOLD`.
    """
    moves = np.asarray(thresholds, dtype=np.float64) - BASE_THRESHOLD
    moved: Floats = np.clip(base + moves, min(LOWEST_MOVED, base), max(HIGHEST_MOVED, base))
    return moved


def _smoothed(hits: Floats, trials: Floats) -> tuple[Floats, float]:
    seen = trials > 0
    mean = float((hits[seen] / trials[seen]).mean()) if seen.any() else 1.0
    return (np.where(seen, hits, 0.0) + PSEUDO_COUNT * mean) / (trials + PSEUDO_COUNT), mean


def _soft(difference: Floats, error: Floats) -> Floats:
    shrunk: Floats = np.sign(difference) * np.maximum(np.abs(difference) - error, 0.0)
    return shrunk
