"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ray_fer.reports.plot_style import BLUES, INK, PERCENT, axes_of, plain, png, short

CAPTION = "Rows are true, columns predicted; colour and percentage are shares of the true class."


def draw(metrics: Mapping[str, Any]) -> bytes:
    """Draw the counts (K, K) below their shares of the true class; a class without examples keeps an empty row."""
    classes, counts = metrics["classes"], np.asarray(metrics["confusion_matrix"], dtype=np.int64)
    support = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(support, 1)
    names = [plain(name) for name in classes]
    side = 1.9 + 0.72 * len(classes)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = axes_of(figure, "Confusion matrix", legend=False)
    image = axes.imshow(shares, cmap=BLUES, vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), [f"{name}\n({n[0]:,})" for name, n in zip(names, support, strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (examples)")
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.grid(which="major", visible=False)
    axes.tick_params(which="both", length=0)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{100 * share:.0f}%\n{short(int(count))}",
                ha="center",
                va="center",
                fontsize=8,
                linespacing=1.25,
                fontweight="bold" if row == column else "normal",
                color="white" if share > 0.5 else INK,
            )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PERCENT, label="share of the true class")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    return png(figure)
