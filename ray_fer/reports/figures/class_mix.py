"""Class shares of the true labels and of the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.reports.plots import class_histogram

CAPTION = "True labels against predictions: differences are the model's bias on this set."


def draw(metrics: Mapping[str, Any], probs: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> bytes:
    """Draw the class mix of labels (N,) and of the predictions from probabilities (N, K)."""
    groups = {"true labels": labels, "predictions": probs.argmax(axis=1)}
    counts = {name: np.bincount(indices, minlength=probs.shape[1]) for name, indices in groups.items()}
    return class_histogram(counts, metrics["classes"])
