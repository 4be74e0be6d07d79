"""F1, precision and recall of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ray_fer.evaluation.metrics import class_scores
from ray_fer.reports.plot_style import INK, add_legend, axes_of, class_colours, class_ticks, plain, png, short

CAPTION = "F1 of each class; the triangles are its precision and recall."


def draw(metrics: Mapping[str, Any]) -> bytes:
    """Draw F1 per class as bars, precision and recall as markers, and macro-F1 as a line; undefined F1 is "n/a"."""
    classes, scores = metrics["classes"], class_scores(metrics["confusion_matrix"])
    figure = Figure(figsize=(2.2 + 0.85 * len(classes), 4.0), layout="constrained")
    axes = axes_of(figure, "F1 per class")
    x = np.arange(len(classes))
    axes.bar(x, np.nan_to_num(scores.f1), width=0.62, color=class_colours(classes), zorder=2)
    for values, marker, name, shift in (
        (scores.precision, ">", "precision", -0.17),
        (scores.recall, "<", "recall", 0.17),
    ):
        axes.plot(
            x + shift,
            values,
            marker,
            color="white",
            markeredgecolor=INK,
            markersize=6,
            label=name,
            clip_on=False,
            zorder=3,
        )
    defined = scores.f1[~np.isnan(scores.f1)]
    if defined.size:
        mean = float(defined.mean())
        axes.axhline(mean, color=INK, linewidth=1, linestyle="--", label=f"macro-F1 {mean:.3f}", zorder=1)
    pill = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none"}
    for k, f1 in enumerate(scores.f1):
        label = "n/a" if math.isnan(f1) else f"{f1:.2f}"
        axes.text(k, 0.06, label, ha="center", va="center", fontsize=9, color=INK, bbox=pill, zorder=4)
    names = [f"{plain(name)}\n{short(int(n))}" for name, n in zip(classes, scores.support, strict=True)]
    class_ticks(axes, names, 0.85)
    axes.set_xlabel("class and number of examples")
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6))
    add_legend(axes, columns=3)
    return png(figure)
