"""Metrics of an expression classifier as pure functions over arrays.

Expression sets are long-tailed, so the field reports macro-F1 and not accuracy. Three conventions decide its value, and
public code disagrees on all of them. Here they are:

* **Pooled.** Counts are added over all images or frames first; per-video scores are never averaged.
* **An absent class does not count.** A class that is neither in the truth nor among the predictions has no F1 (0/0).
  It is left out of the mean. Counting it as 1 rewards small test sets, counting it as 0 punishes them. A class that
  occurs in the truth but is never predicted has F1 = 0 and does count, and so does one that is only predicted.
* **Undefined is NaN**, and null in JSON: recall without examples, precision without predictions.

Everything counts from the confusion matrix (rows true, columns predicted), so a metric over a billion rows costs one
pass that adds up K x K integers. Calibration needs the probabilities themselves: one sort-free pass over (N, K).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
class ClassScores:
    """Scores per class, each (K,); NaN where the ratio is 0/0.

    Attributes:
        precision: Share of the predictions of a class that are right; NaN for a class never predicted.
        recall: Share of the examples of a class that are found; NaN for a class without examples.
        f1: 2 TP / (support + predicted); NaN for a class absent from truth and prediction.
        support: Number of examples, int64.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    support: Ints


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


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, n_classes: int) -> Ints:
    """Count the (true, predicted) pairs.

    Args:
        labels: True class indices, (N,); rows with -1 (no label) are ignored.
        predictions: Predicted class indices, (N,).
        n_classes: K.

    Returns:
        int64 (K, K), rows true, columns predicted.

    Raises:
        ValueError: The lengths differ, or an index lies outside the K classes.
    """
    truth = np.asarray(labels, dtype=np.int64)
    predicted = np.asarray(predictions, dtype=np.int64)
    if truth.shape != predicted.shape:
        raise ValueError(f"{truth.size} labels but {predicted.size} predictions")
    known = truth != -1
    truth, predicted = truth[known], predicted[known]
    for name, indices in (("label", truth), ("prediction", predicted)):
        if indices.size and not 0 <= indices.min() <= indices.max() < n_classes:
            raise ValueError(f"{name} {indices.min()}..{indices.max()} is outside the {n_classes} classes")
    pairs = np.bincount(truth * n_classes + predicted, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes).astype(np.int64)


def class_scores(confusion: ArrayLike) -> ClassScores:
    """Compute precision, recall, F1 and support of every class of a (K, K) confusion matrix."""
    counts = np.asarray(confusion, dtype=np.float64)
    hits, support, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    return ClassScores(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted),
        support=support.astype(np.int64),
    )


def accuracy(confusion: ArrayLike) -> float:
    """Compute the share of the examples on the diagonal of a (K, K) matrix; NaN without examples."""
    counts = np.asarray(confusion, dtype=np.float64)
    total = counts.sum()
    return float(np.trace(counts) / total) if total else math.nan


def macro_f1(confusion: ArrayLike) -> float:
    """Compute the unweighted mean F1 of the classes that occur in the truth or the predictions; NaN if none does."""
    return float(_mean_of_defined(class_scores(confusion).f1))


def macro_f1_of_frequent(confusion: ArrayLike, min_support: int = 30) -> float:
    """Compute macro-F1 over the classes with at least `min_support` examples; NaN if there is none.

    With 30 examples the standard error of a recall is still about 9 points; below that a class adds mostly noise to
    the mean, so this is the steadier number for comparing two runs on a small validation set.
    """
    scores = class_scores(confusion)
    return float(_mean_of_defined(scores.f1[scores.support >= min_support]))


def bootstrap_macro_f1_se(confusion: ArrayLike, *, n_draws: int = 200, seed: int = 0) -> float:
    """Compute the bootstrap standard error of macro-F1 from the (K, K) matrix alone; NaN without examples.

    Drawing N examples with replacement is drawing the K x K cells from a multinomial, so no example is needed and the
    cost does not depend on N. Examples are taken as independent: for video frames this is too optimistic.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    total = int(counts.sum())
    if total == 0:
        return math.nan
    draws = np.random.default_rng(seed).multinomial(total, counts.ravel() / counts.sum(), size=n_draws)
    tables = draws.reshape(n_draws, *counts.shape).astype(np.float64)
    hits = np.diagonal(tables, axis1=1, axis2=2)
    f1 = _ratio(2 * hits, tables.sum(axis=2) + tables.sum(axis=1))
    return float(np.std(_mean_of_defined(f1), ddof=1))


def reliability_bins(probs: ArrayLike, labels: ArrayLike, n_bins: int = N_BINS) -> Reliability:
    """Group examples by confidence into equal bins (lo, hi], as in Guo et al., 2017 (arXiv:1706.04599).

    Args:
        probs: Probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
        n_bins: B.
    """
    p, y = _labelled(probs, labels)
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    confidence = p.max(axis=1, initial=0.0)
    right = (p.argmax(axis=1) == y).astype(np.float64)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins).astype(np.int64)
    return Reliability(
        edges=edges,
        count=count,
        confidence=_ratio(np.bincount(bins, weights=confidence, minlength=n_bins), count),
        accuracy=_ratio(np.bincount(bins, weights=right, minlength=n_bins), count),
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
    p, y = _labelled(probs, labels)
    if not y.size:
        return math.nan
    return float(-np.log(np.maximum(p[np.arange(y.size), y], MIN_PROBABILITY)).mean())


def brier_score(probs: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean squared distance to the one-hot truth, from 0 to 2; NaN without labels.

    Args:
        probs: Probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    p, y = _labelled(probs, labels)
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
    p, y = _labelled(probs, labels)
    right = p.argmax(axis=1) == y
    hits = np.bincount(y[right], minlength=p.shape[1])
    total = np.bincount(y[right], weights=p[right].max(axis=1, initial=0.0), minlength=p.shape[1])
    return [_number(value) for value in _ratio(total, hits)]


def fit_temperature(probs: ArrayLike, labels: ArrayLike) -> float:
    """Fit the temperature T of `apply_temperature` that minimises the NLL of held-out predictions (arXiv:1706.04599).

    The NLL is convex in 1/T, so bisection on its slope over log T is exact and needs no step size. Two safeguards are
    ray-fer's own, because a temperature moves every acceptance threshold at once and a handful of examples should not.
    T stays in [.25, 10], and log T is shrunk by n / (n + 500), with T = 1 under 200 examples.

    Args:
        probs: Held-out probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    p, y = _labelled(probs, labels)
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


def evaluate_probs(probs: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Compute every metric of one model on one labelled set, ready for JSON (undefined values are None).

    Args:
        probs: Probabilities, (N, K) float32.
        labels: True class indices, (N,); rows with -1 are ignored.
        classes: The K class names, in the order of the columns.

    Returns:
        `n`, `classes`, `macro_f1`, `macro_f1_se` (bootstrap), `macro_f1_frequent` (support >= 30), `accuracy`,
        `per_class` {name: {precision, recall, f1, support}}, `confusion_matrix` (K lists of K), `ece`, `nll`, `brier`
        and `reliability` {edges, count, confidence, accuracy}.

    Raises:
        ValueError: The shapes of probs, labels and classes do not fit.
    """
    p, y = _labelled(probs, labels)
    if p.shape[1] != len(classes):
        raise ValueError(f"probs have {p.shape[1]} columns but there are {len(classes)} classes")
    confusion = confusion_matrix(y, p.argmax(axis=1), len(classes))
    scores = class_scores(confusion)
    bins = reliability_bins(p, y)
    return {
        "n": int(y.size),
        "classes": list(classes),
        "macro_f1": _number(macro_f1(confusion)),
        "macro_f1_se": _number(bootstrap_macro_f1_se(confusion)),
        "macro_f1_frequent": _number(macro_f1_of_frequent(confusion)),
        "accuracy": _number(accuracy(confusion)),
        "per_class": {
            name: {
                "precision": _number(scores.precision[k]),
                "recall": _number(scores.recall[k]),
                "f1": _number(scores.f1[k]),
                "support": int(scores.support[k]),
            }
            for k, name in enumerate(classes)
        },
        "confusion_matrix": confusion.tolist(),
        "ece": _number(expected_calibration_error(bins)),
        "nll": _number(negative_log_likelihood(p, y)),
        "brier": _number(brier_score(p, y)),
        "reliability": {
            "edges": bins.edges.tolist(),
            "count": bins.count.tolist(),
            "confidence": [_number(value) for value in bins.confidence],
            "accuracy": [_number(value) for value in bins.accuracy],
        },
    }


def _labelled(probs: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    p = np.asarray(probs, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"probs {p.shape} and labels {y.shape} are not (N, K) and (N,)")
    return p[y != -1], y[y != -1]


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    quotient = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _mean_of_defined(values: Floats) -> Floats:
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _softmax(logits: Floats) -> Floats:
    exponentials: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    total: Floats = exponentials.sum(axis=1, keepdims=True)
    return exponentials / total


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
