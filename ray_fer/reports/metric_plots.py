"""Plots of how good a classifier is. They return PNG bytes, so that a job on any node can write them to any bucket."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ray_fer.evaluation.metrics import ClassScores, Reliability
from ray_fer.reports.plot_style import (
    BLUE,
    BLUES,
    GREY,
    INK,
    PERCENT,
    RED,
    add_legend,
    axes_of,
    class_colours,
    class_ticks,
    frame,
    plain,
    png,
    short,
)


def confusion_plot(confusion: ArrayLike, classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix, (K, K) counts: colour and percentage are shares of the true class, counts stand below.

    Rows are true, columns predicted. A class without examples keeps an empty row.
    """
    counts = np.asarray(confusion, dtype=np.int64)
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


def class_score_bars(scores: ClassScores, classes: Sequence[str]) -> bytes:
    """Draw F1 per class as bars, precision and recall as markers, and macro-F1 as a line; undefined F1 is "n/a"."""
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


def reliability_plot(bins: Reliability) -> bytes:
    """Draw accuracy against confidence with the gap to perfect calibration, above the share of examples per bin."""
    figure = Figure(figsize=(5.0, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    total = max(int(bins.count.sum()), 1)
    gap = np.nansum(bins.count * np.abs(bins.accuracy - bins.confidence)) / total
    frame(upper, f"Calibration (ECE {gap:.3f})", legend=True)
    frame(lower)
    width, centres = np.diff(bins.edges), (bins.edges[:-1] + bins.edges[1:]) / 2
    accuracy, confidence = np.nan_to_num(bins.accuracy), np.nan_to_num(bins.confidence)
    # The accuracy of a handful of examples says little.
    few = bins.count < 10
    upper.bar(centres[few], accuracy[few], width[few] * 0.92, color=BLUE, alpha=0.3, zorder=2)
    upper.bar(centres[~few], accuracy[~few], width[~few] * 0.92, color=BLUE, label="accuracy", zorder=2)
    missing = np.where(bins.count > 0, confidence - accuracy, 0.0)
    upper.bar(
        centres, missing, width * 0.92, bottom=accuracy, color="none", edgecolor=RED, hatch="///", linewidth=0.8,
        label="gap", zorder=3,
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="perfect calibration", zorder=4)
    upper.set_ylabel("accuracy")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    add_legend(upper, columns=3)
    lower.bar(centres, bins.count / total, width * 0.92, color=GREY, zorder=2)
    lower.yaxis.set_major_formatter(PERCENT)
    lower.set_ylabel("examples")
    lower.set_xlabel("confidence (largest probability)")
    return png(figure)


def coverage_plot(confidence: ArrayLike, correct: ArrayLike) -> bytes:
    """Draw what each threshold accepts, with its accuracy, over a histogram of the confidence scaled to its peak.

    Args:
        confidence: Largest probability of each example, (N,).
        correct: Whether each prediction is right, bool (N,).
    """
    values = np.asarray(confidence, dtype=np.float64)
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
    hits = np.concatenate([[0], np.cumsum(np.asarray(correct, dtype=np.float64)[order])])
    rate = np.where(accepted > 0, hits[accepted] / np.maximum(accepted, 1), np.nan)
    axes.plot(levels, rate, color=RED, linewidth=2, linestyle=(0, (5, 1.5)), label="accuracy of accepted")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), yticks=np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("confidence threshold")
    add_legend(axes, columns=3)
    return png(figure)
