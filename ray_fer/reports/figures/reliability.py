"""Calibration: accuracy against confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ray_fer.reports.plot_style import BLUE, GREY, INK, PERCENT, RED, add_legend, frame, png

CAPTION = "Accuracy against confidence: calibrated means on the diagonal. Pale bins: under 10 examples."


def draw(metrics: Mapping[str, Any]) -> bytes:
    """Draw accuracy against confidence with the gap to perfect calibration, above the share of examples per bin."""
    # Empty bins hold None, which becomes NaN and then 0.
    bins = {key: np.nan_to_num(np.asarray(values, np.float64)) for key, values in metrics["reliability"].items()}
    edges, count, confidence, accuracy = (bins[key] for key in ("edges", "count", "confidence", "accuracy"))
    figure = Figure(figsize=(5.0, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    frame(upper, f"Calibration (ECE {metrics['ece'] or 0:.3f})", legend=True)
    frame(lower)
    width, centres = np.diff(edges), (edges[:-1] + edges[1:]) / 2
    # The accuracy of a handful of examples says little.
    few = count < 10
    upper.bar(centres[few], accuracy[few], width[few] * 0.92, color=BLUE, alpha=0.3, zorder=2)
    upper.bar(centres[~few], accuracy[~few], width[~few] * 0.92, color=BLUE, label="accuracy", zorder=2)
    upper.bar(
        centres, confidence - accuracy, width * 0.92, bottom=accuracy, color="none", edgecolor=RED, hatch="///",
        linewidth=0.8, label="gap", zorder=3,
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="perfect calibration", zorder=4)
    upper.set_ylabel("accuracy")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    add_legend(upper, columns=3)
    lower.bar(centres, count / max(count.sum(), 1), width * 0.92, color=GREY, zorder=2)
    lower.yaxis.set_major_formatter(PERCENT)
    lower.set_ylabel("examples")
    lower.set_xlabel("confidence (largest probability)")
    return png(figure)
