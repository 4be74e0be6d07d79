"""Plots of the class mix, of rounds, feedback versions, throughput and video time, as PNG bytes.

The figures of an evaluation are in `ray_fer.reports.figures`, sheets of faces in `ray_fer.reports.faces`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ray_fer.reports.plot_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    MUTED,
    ORANGE,
    PALETTE,
    PERCENT,
    add_legend,
    axes_of,
    class_colours,
    class_ticks,
    frame,
    plain,
    png,
    short,
    spread,
)

# Of the axes of a picture of rounds about this many are high, and so many are a line of its labels.
_AXES_POINTS, _LABEL_POINTS = 190.0, 11.0


def class_histogram(groups: Mapping[str, ArrayLike], classes: Sequence[str], *, title: str = "Class mix") -> bytes:
    """Draw the share of every class in one or more groups, {"predictions": counts, ...} with counts (K,).

    The legend gives each group's total, the bars give their counts.
    """
    # The count above a bar needs .4 inches.
    inches = max(0.95, 0.5 * len(groups))
    figure = Figure(figsize=(2.4 + inches * len(classes), 3.8), layout="constrained")
    axes = axes_of(figure, title)
    width = 0.8 / max(len(groups), 1)
    fills = (GREY, BLUE, ORANGE, GREEN)
    for index, (name, values) in enumerate(groups.items()):
        counts = np.asarray(values, dtype=np.float64)
        shares = counts / max(counts.sum(), 1.0)
        x = np.arange(len(classes)) + (index - (len(groups) - 1) / 2) * width
        label = f"{plain(name)} ({short(int(counts.sum()))})"
        bars = axes.bar(x, shares, width * 0.94, color=fills[index % 4], label=label, zorder=2)
        axes.bar_label(bars, [short(int(n)) for n in counts], fontsize=7.5, padding=2, color=MUTED)
    class_ticks(axes, [plain(name) for name in classes], inches)
    axes.set_ylabel("share of the group")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.margins(y=0.12)
    add_legend(axes, columns=len(groups))
    return png(figure)


def rounds_plot(series: Mapping[str, ArrayLike], *, title: str = "Macro-F1 over rounds") -> bytes:
    """Draw macro-F1 over the rounds 0, 1, ..., one line per name; each (R,), NaN where missing."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = axes_of(figure, title)
    ends: list[tuple[float, float, str]] = []
    for index, (name, values) in enumerate(series.items()):
        y = np.asarray(values, dtype=np.float64)
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(y, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5, linewidth=2, label=plain(name))
        last = np.flatnonzero(~np.isnan(y))
        if last.size:
            ends.append((float(last[-1]), float(y[last[-1]]), colour))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.09, y=0.12)
    _label_ends(axes, ends)
    axes.set_xlabel("round")
    axes.set_ylabel("macro-F1")
    add_legend(axes, columns=min(len(series), 3))
    return png(figure)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str]]) -> None:
    """Write the values at the ends (x, y, colour) of lines beside them, one above the other where they are alike."""
    bottom, top = axes.get_ylim()
    places = [_AXES_POINTS * (y - bottom) / (top - bottom) for _, y, _ in ends]
    for (x, y, colour), place, free in zip(ends, places, spread(places, _LABEL_POINTS), strict=True):
        axes.annotate(
            f"{y:.3f}", (x, y), xytext=(7, free - place),
            textcoords="offset points", va="center", fontsize=8.5, color=colour,
        )  # fmt: skip


def feedback_plot(
    values: ArrayLike,
    classes: Sequence[str],
    *,
    neutral: float,
    bounds: tuple[float, float] | None = None,
    title: str = "Loss weights",
    ylabel: str = "weight",
) -> bytes:
    """Draw a per-class factor over V feedback versions, (V, K), around its neutral value and inside its bounds."""
    history = np.asarray(values, dtype=np.float64)
    figure = Figure(figsize=(7.4, 4.0), layout="constrained")
    axes = axes_of(figure, title, legend=False)
    axes.axhline(neutral, color=INK, linewidth=1, linestyle=":", label=f"neutral ({neutral:g})")
    if bounds is not None:
        for bound in bounds:
            axes.axhline(bound, color=GREY, linewidth=1.2, linestyle="--")
    for k, (name, colour) in enumerate(zip(classes, class_colours(classes), strict=True)):
        marker = MARKERS[k % len(MARKERS)]
        axes.plot(history[:, k], color=colour, marker=marker, markersize=5, linewidth=1.8, label=plain(name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.03, y=0.1)
    axes.set_xlabel("feedback version")
    axes.set_ylabel(ylabel)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor=INK)
    return png(figure)


def throughput_plot(timeline: Sequence[tuple[float, int]]) -> bytes:
    """Draw images per second over a run, from points (seconds, images so far), in at most 60 steps of >= 1 s each."""
    seconds, images = np.asarray(timeline, np.float64).T
    edges = np.linspace(seconds[0], seconds[-1], 1 + max(1, min(60, int(seconds[-1] - seconds[0]))))
    rates = np.diff(np.interp(edges, seconds, images)) / max(edges[1] - edges[0], 1e-9)
    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    axes = axes_of(figure, "Throughput", legend=False)
    axes.stairs(rates, edges, fill=True, color=BLUE, alpha=0.35)
    axes.set(xlabel="time [s]", ylabel="images per second")
    axes.set_ylim(bottom=0)
    return png(figure)


def confidence_histogram(counts: ArrayLike, classes: Sequence[str], *, threshold: float) -> bytes:
    """Draw how confident the predictions of every class are, stacked; counts (K, B) over B equal bins from 0 to 1."""
    values = np.asarray(counts, np.float64)
    edges = np.linspace(0, 1, values.shape[1] + 1)
    figure = Figure(figsize=(7.4, 4.0), layout="constrained")
    axes = axes_of(figure, "Confidence", legend=False)
    below = np.zeros(values.shape[1])
    for k, (name, colour) in enumerate(zip(classes, class_colours(classes), strict=True)):
        axes.stairs(below + values[k], edges, baseline=below, fill=True, color=colour, label=plain(name))
        below = below + values[k]
    axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label=f"threshold ({threshold:g})")
    axes.set(xlabel="confidence", ylabel="predictions", xlim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor=INK)
    return png(figure)


def expression_timeline(
    predictions: ArrayLike,
    confidence: ArrayLike,
    classes: Sequence[str],
    *,
    fps: float,
    title: str = "Expression over time",
) -> bytes:
    """Draw the expression of every frame of a video, one lane per class, above the confidence.

    Args:
        predictions: Class index per frame, int (F,); -1 for a frame without a face.
        confidence: Largest probability per frame, (F,).
        classes: The K class names.
        fps: Frames per second.
        title: Title of the plot.
    """
    lanes = np.asarray(predictions, dtype=np.int64)
    lanes_height = 0.32 * len(classes)
    figure = Figure(figsize=(9.0, 2.3 + lanes_height), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(lanes_height, 0.8))
    frame(upper, title)
    for k, colour in enumerate(class_colours(classes)):
        upper.broken_barh(_spans(lanes == k, fps), (k - 0.36, 0.72), facecolors=colour, zorder=2)
    upper.set_yticks(range(len(classes)), [plain(name) for name in classes])
    upper.set_ylim(len(classes) - 0.5, -0.5)
    upper.set_xlim(0, max(lanes.size, 1) / fps)
    upper.grid(axis="y", visible=False)
    values = np.asarray(confidence, dtype=np.float64)
    # A step ends where the next begins: the last frame needs an end of its own.
    held = np.concatenate([values, values[-1:]])
    frame(lower)
    lower.fill_between(np.arange(held.size) / fps, held, color=GREY, linewidth=0, step="post")
    lower.set(ylim=(0, 1), yticks=(0, 0.5, 1), xlabel="time [s]")
    lower.set_ylabel("confidence", fontsize=8)
    return png(figure)


def _spans(active: NDArray[np.bool_], fps: float) -> list[tuple[float, float]]:
    """Return (start, length) in seconds of every run of active frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [(start / fps, (stop - start) / fps) for start, stop in edges.reshape(-1, 2)]
