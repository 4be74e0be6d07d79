"""Selection rules: pure functions from probabilities to what is accepted, with which target and weight.

A rule is one function (probs, thresholds, class weights, config) -> `Accepted` and one entry in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_fer.config import SelectionConfig

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Accepted:
    """What a rule accepts.

    Attributes:
        rows: int64 (M,), indices into the probabilities, ascending.
        labels: int64 (M,), the class of each.
        weights: float64 (M,), how often each counts; mean over a class is its copies times its class weight.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    weights: Floats


def debias(probs: Floats, log_prior: Floats | None) -> npt.NDArray[np.float32]:
    """Probabilities (N, K) with the prior removed: softmax(log p - log prior).

    The form is DebiasPL's (Wang et al., CVPR 2022) with strength 1; the prior comes from the measured confusion, see
    `feedback.formulas`.
    """
    if log_prior is None:
        return probs.astype(np.float32)
    tilted: Floats = probs.astype(np.float64) * np.exp(-np.asarray(log_prior))
    return np.asarray(tilted / tilted.sum(axis=1, keepdims=True), np.float32)


def threshold(probs: Floats, thresholds: Floats, class_weights: Floats, config: SelectionConfig) -> Accepted:
    """Accepts what is at least as confident as the threshold of its class (FixMatch's rule, per class).

    Args:
        probs: (N, K).
        thresholds: (K,) in (0, 1].
        class_weights: (K,), from the feedback; 1 without.
        config: not used beyond the thresholds that were made from it.
    """
    labels = probs.argmax(axis=1)
    rows = np.flatnonzero(probs.max(axis=1) >= thresholds[labels])
    return Accepted(rows, labels[rows], np.asarray(class_weights, np.float64)[labels[rows]])


def top_k(probs: Floats, thresholds: Floats, class_weights: Floats, config: SelectionConfig) -> Accepted:
    """Accepts the most confident of each predicted class down to half its threshold; scarce classes count more.

    Noisy Student's balancing (Xie et al., CVPR 2020): with N wanted per class, an abundant class is cut to its N most
    confident, a scarce one of n < N has weight N/n, at most ``max_copies``. N is ``per_class``, by default a K-th of
    what the thresholds accept.

    Args:
        probs: (N, K).
        thresholds: (K,) in (0, 1].
        class_weights: (K,), from the feedback; 1 without.
        config: ``per_class`` and ``max_copies``.
    """
    labels, confidence = probs.argmax(axis=1), probs.max(axis=1)
    n_classes = probs.shape[1]
    wanted = config.per_class or max(1, int((confidence >= thresholds[labels]).sum()) // n_classes)
    weights = np.zeros(len(probs))
    for c in range(n_classes):
        candidates = np.flatnonzero((labels == c) & (confidence >= thresholds[c] / 2))
        best = candidates[np.argsort(-confidence[candidates], kind="stable")[:wanted]]
        if len(best):
            weights[best] = min(wanted / len(best), config.max_copies) * class_weights[c]
    rows = np.flatnonzero(weights)
    return Accepted(rows, labels[rows], weights[rows])


RULES: dict[str, Callable[[Floats, Floats, Floats, SelectionConfig], Accepted]] = {
    "threshold": threshold,
    "top_k": top_k,
}
