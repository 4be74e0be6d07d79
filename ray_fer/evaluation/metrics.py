"""Metrics of an expression classifier as pure functions over arrays.

Expression sets are long-tailed, so the field reports macro-F1 and not accuracy. Three conventions decide its value, and
public code disagrees on all of them. Here they are:

* **Pooled.** Counts are added over all images or frames first; per-video scores are never averaged.
* **An absent class does not count.** A class that is neither in the truth nor among the predictions has no F1 (0/0).
  It is left out of the mean. Counting it as 1 rewards small test sets, counting it as 0 punishes them. A class that
  occurs in the truth but is never predicted has F1 = 0 and does count, and so does one that is only predicted.
* **Undefined is NaN**, and null in JSON: recall without examples, precision without predictions.

Everything counts from the confusion matrix (rows true, columns predicted), so a metric over a billion rows costs one
pass that adds up K x K integers. `calibration` needs the probabilities themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ray_fer.evaluation.calibration import (
    Floats,
    Ints,
    brier_score,
    expected_calibration_error,
    labelled,
    negative_log_likelihood,
    number,
    ratio,
    reliability_bins,
)


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
        precision=ratio(hits, predicted),
        recall=ratio(hits, support),
        f1=ratio(2 * hits, support + predicted),
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
    f1 = ratio(2 * hits, tables.sum(axis=2) + tables.sum(axis=1))
    return float(np.std(_mean_of_defined(f1), ddof=1))


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
    p, y = labelled(probs, labels)
    if p.shape[1] != len(classes):
        raise ValueError(f"probs have {p.shape[1]} columns but there are {len(classes)} classes")
    confusion = confusion_matrix(y, p.argmax(axis=1), len(classes))
    scores = class_scores(confusion)
    bins = reliability_bins(p, y)
    return {
        "n": int(y.size),
        "classes": list(classes),
        "macro_f1": number(macro_f1(confusion)),
        "macro_f1_se": number(bootstrap_macro_f1_se(confusion)),
        "macro_f1_frequent": number(macro_f1_of_frequent(confusion)),
        "accuracy": number(accuracy(confusion)),
        "per_class": {
            name: {
                "precision": number(scores.precision[k]),
                "recall": number(scores.recall[k]),
                "f1": number(scores.f1[k]),
                "support": int(scores.support[k]),
            }
            for k, name in enumerate(classes)
        },
        "confusion_matrix": confusion.tolist(),
        "ece": number(expected_calibration_error(bins)),
        "nll": number(negative_log_likelihood(p, y)),
        "brier": number(brier_score(p, y)),
        "reliability": {
            "edges": bins.edges.tolist(),
            "count": bins.count.tolist(),
            "confidence": [number(value) for value in bins.confidence],
            "accuracy": [number(value) for value in bins.accuracy],
        },
    }


def _mean_of_defined(values: Floats) -> Floats:
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))
