"""What each confidence threshold accepts, and how much of it is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ray_fer.reports.plot_style import BLUE, GREY, PERCENT, RED, add_legend, axes_of, png

CAPTION = "What an acceptance threshold keeps, and how much of that is right."


def draw(_: Mapping[str, Any], probs: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> bytes:
    """Draw what each threshold accepts, with its accuracy, over a histogram of the confidence scaled to its peak.

    Args:
        probs: Probabilities, (N, K).
        labels: True class indices, (N,).
    """
    values, correct = probs.max(axis=1, initial=0.0).astype(np.float64), probs.argmax(axis=1) == labels
    order = np.argsort(-values, kind="stable")
    levels = np.linspace(0, 1, 201)
    accepted = values.size - np.searchsorted(np.sort(values), levels, side="left")
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = axes_of(figure, "Confidence and coverage")
    share, edges = np.histogram(values, bins=40, range=(0, 1))
    axes.bar(
        edges[:-1], share / max(share.max(), 1), np.diff(edges) * 0.94, align="edge", color=GREY, alpha=0.65,
        label="distribution", zorder=1,
    )  # fmt: skip
    axes.plot(levels, accepted / max(values.size, 1), color=BLUE, linewidth=2, label="accepted")
    hits = np.concatenate([[0], np.cumsum(correct[order], dtype=np.float64)])
    rate = np.where(accepted > 0, hits[accepted] / np.maximum(accepted, 1), np.nan)
    axes.plot(levels, rate, color=RED, linewidth=2, linestyle=(0, (5, 1.5)), label="accuracy of accepted")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), yticks=np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("confidence threshold")
    add_legend(axes, columns=3)
    return png(figure)
