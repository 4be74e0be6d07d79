"""Calibration: how far the confidence of a classifier is its accuracy, and the temperature that brings them together.

One pass over the probabilities (N, K), without sorting. What is undefined is NaN, as in `metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N_BINS = 15
MIN_PROBABILITY = 1e-12
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.25, 10.0
MIN_TEMPERATURE_EXAMPLES = 200
TEMPERATURE_SHRINKAGE = 500


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy in B equal bins (lo, hi] of the top probability.

    Attributes:
        edges: Bin borders from 0 to 1, (B + 1,).
        count: Examples per bin, int64 (B,).
        confidence: Mean top probability per bin, (B,); NaN for an empty bin.
        accuracy: Share of right predictions per bin, (B,); NaN for an empty bin.
    """

    edges: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats


def reliability_bins(probs: ArrayLike, labels: ArrayLike, n_bins: int = N_BINS) -> Reliability:
    """Group examples by confidence into equal bins (lo, hi], as in Guo et al., 2017 (arXiv:1706.04599).

    Args:
        probs: Probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
        n_bins: B.
    """
    p, y = labelled(probs, labels)
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    confidence = p.max(axis=1, initial=0.0)
    right = (p.argmax(axis=1) == y).astype(np.float64)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins).astype(np.int64)
    return Reliability(
        edges=edges,
        count=count,
        confidence=ratio(np.bincount(bins, weights=confidence, minlength=n_bins), count),
        accuracy=ratio(np.bincount(bins, weights=right, minlength=n_bins), count),
    )


def expected_calibration_error(bins: Reliability) -> float:
    """Compute ECE = sum_b (n_b / n) |accuracy_b - confidence_b|, from 0 (calibrated) to 1; NaN without examples."""
    total = bins.count.sum()
    if not total:
        return math.nan
    gaps = np.abs(np.nan_to_num(bins.accuracy) - np.nan_to_num(bins.confidence))
    return float((bins.count * gaps).sum() / total)


def negative_log_likelihood(probs: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean of -log p(true class) in nats, p floored at 1e-12; NaN without labels.

    Args:
        probs: Probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    p, y = labelled(probs, labels)
    if not y.size:
        return math.nan
    return float(-np.log(np.maximum(p[np.arange(y.size), y], MIN_PROBABILITY)).mean())


def brier_score(probs: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean squared distance to the one-hot truth, from 0 to 2; NaN without labels.

    Args:
        probs: Probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    p, y = labelled(probs, labels)
    if not y.size:
        return math.nan
    squared = (p**2).sum(axis=1) + 1.0 - 2.0 * p[np.arange(y.size), y]
    return float(squared.mean())


def confidence_of_correct(probs: ArrayLike, labels: ArrayLike) -> list[float | None]:
    """Compute the mean top probability of the correctly predicted examples of each class, K long; None without any.

    Args:
        probs: Probabilities, (N, K); calibrated ones where thresholds are to be compared with the result.
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    p, y = labelled(probs, labels)
    right = p.argmax(axis=1) == y
    hits = np.bincount(y[right], minlength=p.shape[1])
    total = np.bincount(y[right], weights=p[right].max(axis=1, initial=0.0), minlength=p.shape[1])
    return [number(value) for value in ratio(total, hits)]


def fit_temperature(probs: ArrayLike, labels: ArrayLike) -> float:
    """Fit the temperature T of `apply_temperature` that minimises the NLL of held-out predictions (arXiv:1706.04599).

    The NLL is convex in 1/T, so bisection on its slope over log T is exact and needs no step size. Two safeguards are
    ray-fer's own, because a temperature moves every acceptance threshold at once and a handful of examples should not.
    T stays in [.25, 10], and log T is shrunk by n / (n + 500), with T = 1 under 200 examples.

    Args:
        probs: Held-out probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    p, y = labelled(probs, labels)
    if y.size < MIN_TEMPERATURE_EXAMPLES:
        return 1.0
    logits = np.log(np.maximum(p, MIN_PROBABILITY))
    true_logits = logits[np.arange(y.size), y]
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(40):
        middle = (low + high) / 2
        expected = (_softmax(logits / math.exp(middle)) * logits).sum(axis=1)
        # The slope of the NLL in 1/T: positive means the predictions are over-confident at this temperature.
        if (expected - true_logits).mean() > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2 * y.size / (y.size + TEMPERATURE_SHRINKAGE))


def apply_temperature(probs: ArrayLike, temperature: float) -> Floats:
    """Compute softmax(log(probs) / T), (N, K): the same as dividing the logits; the ranking of the classes stays."""
    p = np.asarray(probs, dtype=np.float64)
    return _softmax(np.log(np.maximum(p, MIN_PROBABILITY)) / temperature)


def labelled(probs: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    """The rows that have a label: probabilities float64 (M, K) and labels int64 (M,).

    Raises:
        ValueError: The shapes do not fit.
    """
    p = np.asarray(probs, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"probs {p.shape} and labels {y.shape} are not (N, K) and (N,)")
    return p[y != -1], y[y != -1]


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """Compute a quotient elementwise, NaN where the denominator is not positive."""
    quotient = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def number(value: float) -> float | None:
    """Return a number for JSON, None for NaN."""
    return None if math.isnan(value) else float(value)


def _softmax(logits: Floats) -> Floats:
    exponentials: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    total: Floats = exponentials.sum(axis=1, keepdims=True)
    return exponentials / total
