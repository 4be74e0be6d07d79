"""Pictures of the class mix, of rounds, feedback versions and video time, and sheets of faces, as PNG bytes.

Those of a classifier's quality are in `ray_fer.reports.metric_plots`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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
    RED,
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


def class_histogram(
    groups: Mapping[str, ArrayLike], classes: Sequence[str], *, title: str = "Class mix", log: bool = False
) -> bytes:
    """Share of every class in one or more groups, e.g. {"predictions": counts, "selected": counts} with counts (K,).

    The legend gives each group's total, the bars their counts. `log` makes long tails visible.
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
    if log:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.margins(y=0.12)
    add_legend(axes, columns=len(groups))
    return png(figure)


def rounds_plot(
    series: Mapping[str, ArrayLike],
    errors: Mapping[str, ArrayLike] | None = None,
    *,
    title: str = "Macro-F1 over rounds",
    ylabel: str = "macro-F1",
) -> bytes:
    """One line per name over the rounds 0, 1, ..., each (R,), NaN where missing; bands of +/- one error (R,)."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = axes_of(figure, title)
    ends: list[tuple[float, float, str]] = []
    for index, (name, values) in enumerate(series.items()):
        y = np.asarray(values, dtype=np.float64)
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(y, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5, linewidth=2, label=plain(name))
        if errors is not None and name in errors:
            e = np.asarray(errors[name], dtype=np.float64)
            axes.fill_between(np.arange(y.size), y - e, y + e, color=colour, alpha=0.15, linewidth=0)
        last = np.flatnonzero(~np.isnan(y))
        if last.size:
            ends.append((float(last[-1]), float(y[last[-1]]), colour))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.09, y=0.12)
    _label_ends(axes, ends)
    axes.set_xlabel("round")
    axes.set_ylabel(ylabel)
    add_legend(axes, columns=min(len(series), 3))
    return png(figure)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str]]) -> None:
    """The values (x, y, colour) at the ends of lines, beside them, one above the other where they are alike."""
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
    """A per-class factor over V feedback versions, (V, K), around its neutral value and inside its bounds."""
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


def throughput_plot(timeline: Sequence[tuple[float, int]], *, title: str = "Throughput") -> bytes:
    """Rows per second over a run, from points (seconds, rows so far); in at most 60 steps, each a second or more."""
    seconds, rows = np.asarray(timeline, np.float64).T
    edges = np.linspace(seconds[0], seconds[-1], 1 + max(1, min(60, int(seconds[-1] - seconds[0]))))
    rates = np.diff(np.interp(edges, seconds, rows)) / max(edges[1] - edges[0], 1e-9)
    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    axes = axes_of(figure, title, legend=False)
    axes.stairs(rates, edges, fill=True, color=BLUE, alpha=0.35)
    axes.set(xlabel="time [s]", ylabel="rows per second")
    axes.set_ylim(bottom=0)
    return png(figure)


def confidence_histogram(
    counts: ArrayLike, classes: Sequence[str], *, threshold: float | None = None, title: str = "Confidence"
) -> bytes:
    """How sure the predictions of every class are, stacked; counts (K, B) over B equal bins from 0 to 1."""
    values = np.asarray(counts, np.float64)
    edges = np.linspace(0, 1, values.shape[1] + 1)
    figure = Figure(figsize=(7.4, 4.0), layout="constrained")
    axes = axes_of(figure, title, legend=False)
    below = np.zeros(values.shape[1])
    for k, (name, colour) in enumerate(zip(classes, class_colours(classes), strict=True)):
        axes.stairs(below + values[k], edges, baseline=below, fill=True, color=colour, label=plain(name))
        below = below + values[k]
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label=f"threshold ({threshold:g})")
    axes.set(xlabel="confidence", ylabel="predictions", xlim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor=INK)
    return png(figure)


def expression_timeline(
    predictions: ArrayLike,
    classes: Sequence[str],
    *,
    fps: float,
    confidence: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    title: str = "Expression over time",
) -> bytes:
    """The expression of every frame of a video, one lane per class.

    Args:
        predictions: Class index per frame, (F,); -1 for a frame without a face.
        classes: The K class names.
        fps: Frames per second.
        confidence: Largest probability per frame, (F,), drawn below the lanes.
        truth: True class index per frame, (F,), -1 unknown; drawn as a thin dark line in its lane.
        title: Title of the picture.
    """
    lanes = np.asarray(predictions, dtype=np.int64)
    seconds = lanes.size / fps
    height = 1.3 + 0.32 * len(classes) + (1.0 if confidence is not None else 0.0)
    figure = Figure(figsize=(9.0, height), layout="constrained")
    ratios = (0.32 * len(classes), 0.8) if confidence is not None else (1.0,)
    grid = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)
    axes = grid[0, 0]
    frame(axes, title, legend=truth is not None)
    for k, colour in enumerate(class_colours(classes)):
        axes.broken_barh(_runs(lanes == k, fps), (k - 0.36, 0.72), facecolors=colour, zorder=2)
        if truth is not None:
            axes.broken_barh(_runs(np.asarray(truth) == k, fps), (k - 0.06, 0.12), facecolors=INK, zorder=3)
    axes.set_yticks(range(len(classes)), [plain(name) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, max(seconds, 1 / fps))
    axes.grid(axis="y", visible=False)
    if truth is not None:
        axes.plot([], [], color=INK, linewidth=2, label="true")
        add_legend(axes, columns=1)
    if confidence is not None:
        values = np.asarray(confidence, dtype=np.float64)
        # A step ends where the next begins: the last frame needs an end of its own.
        held = np.concatenate([values, values[-1:]])
        time = np.arange(held.size) / fps
        frame(grid[1, 0])
        grid[1, 0].fill_between(time, held, color=GREY, linewidth=0, step="post")
        grid[1, 0].set(ylim=(0, 1), yticks=(0, 0.5, 1))
        grid[1, 0].set_ylabel("confidence", fontsize=8)
    grid[-1, 0].set_xlabel("time [s]")
    return png(figure)


def contact_sheet(
    faces: NDArray[np.uint8],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    wrong: Sequence[bool] | None = None,
    title: str = "",
) -> bytes:
    """A grid of faces, uint8 RGB (N, S, S, 3), with captions; those marked `wrong` get a red frame and a cross."""
    n = len(faces)
    columns = columns or max(1, min(10, math.ceil(math.sqrt(n * 1.6))))
    rows = max(1, math.ceil(n / columns))
    side = faces.shape[1]
    # One axes for all: an axes for each face, and a layout that fits them, take seconds.
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    gap, text = 0.08 * side, 0.17 * lines * side
    width, height = columns * (side + gap) + gap, rows * (side + gap + text) + gap
    figure = Figure(figsize=(1.25 * columns, 1.25 * columns * height / width + (0.4 if title else 0)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1 - (0.4 / figure.get_figheight() if title else 0)))
    axes.set_axis_off()
    for index in range(n):
        left = gap + index % columns * (side + gap)
        top = gap + text + index // columns * (side + gap + text)
        bad = wrong is not None and wrong[index]
        extent = (left, left + side, top + side, top)
        axes.imshow(faces[index], extent=extent, interpolation="nearest" if side < 64 else "antialiased")
        caption = ("✗ " if bad else "") + plain(captions[index])
        colour = RED if bad else INK
        axes.text(left + side / 2, top - 0.03 * side, caption, fontsize=8, color=colour, ha="center", va="bottom")
        if bad:
            axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=RED, linewidth=2.5))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    if title:
        figure.suptitle(plain(title), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return png(figure)


def _runs(active: NDArray[np.bool_], fps: float) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [(start / fps, (stop - start) / fps) for start, stop in edges.reshape(-1, 2)]
