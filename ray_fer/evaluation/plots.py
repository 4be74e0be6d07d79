"""Pictures of an evaluation as PNG bytes, so that a job on any node can write them to any bucket.

Figures are made without pyplot: its global state leaks memory in a long-running actor and is not safe between
threads. Every picture has the same quiet frame, and colours that stay apart for colour-blind readers (Okabe and Ito,
Paul Tol). An expression keeps its colour in every picture; where colours carry meaning, position or a marker carries
it too. One picture costs 0.1 to 0.4 s of one core.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from ray_fer.evaluation.metrics import ClassScores, Reliability

INK, MUTED, GRID = "#1f2933", "#5f6b7a", "#e3e8ee"
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#b8c1cc"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", RED, "#882255", "#8a8f98", "#117733")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
EXPRESSION_COLOURS = {
    "neutral": "#8a8f98",
    "anger": RED,
    "disgust": GREEN,
    "fear": "#CC79A7",
    "happiness": ORANGE,
    "sadness": BLUE,
    "surprise": "#56B4E9",
    "contempt": "#882255",
    "other": "#b5a642",
}
BLUES = LinearSegmentedColormap.from_list("ray_fer_blues", ["#f7fafc", "#9ecae1", "#2b7bba", "#08306b"])
DPI = 130


def confusion_plot(confusion: ArrayLike, classes: Sequence[str], *, title: str = "Confusion matrix") -> bytes:
    """Confusion matrix, (K, K) counts: colour and percentage are shares of the true class, counts stand below.

    Rows are true, columns predicted. A class without examples keeps an empty row.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    support = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(support, 1)
    side = 1.9 + 0.72 * len(classes)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = _axes(figure, title, legend=False)
    image = axes.imshow(shares, cmap=BLUES, vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), [f"{name}\n({n[0]:,})" for name, n in zip(classes, support, strict=True)])
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
                f"{100 * share:.0f}%\n{_short(int(count))}",
                ha="center",
                va="center",
                fontsize=8,
                linespacing=1.25,
                fontweight="bold" if row == column else "normal",
                color="white" if share > 0.5 else INK,
            )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0, 0), label="share of the true class")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    return _png(figure)


def class_score_bars(scores: ClassScores, classes: Sequence[str], *, title: str = "F1 per class") -> bytes:
    """F1 bar per class with its precision and recall as markers, and macro-F1 as a line; undefined F1 is "n/a"."""
    figure = Figure(figsize=(2.2 + 0.85 * len(classes), 4.0), layout="constrained")
    axes = _axes(figure, title)
    x = np.arange(len(classes))
    axes.bar(x, np.nan_to_num(scores.f1), width=0.62, color=_colours(classes), zorder=2)
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
    axes.set_xticks(x, [f"{name}\n{_short(int(n))}" for name, n in zip(classes, scores.support, strict=True)])
    axes.set_xlabel("class and number of examples")
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6))
    _legend(axes, columns=3)
    return _png(figure)


def reliability_plot(bins: Reliability, *, title: str = "Calibration") -> bytes:
    """Accuracy against confidence per bin with the gap to perfect calibration, above the share of examples per bin."""
    figure = Figure(figsize=(5.0, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    total = max(int(bins.count.sum()), 1)
    gap = np.nansum(bins.count * np.abs(bins.accuracy - bins.confidence)) / total
    _frame(upper, f"{title} (ECE {gap:.3f})", legend=True)
    _frame(lower)
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
    _legend(upper, columns=3)
    lower.bar(centres, bins.count / total, width * 0.92, color=GREY, zorder=2)
    lower.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
    lower.set_ylabel("examples")
    lower.set_xlabel("confidence (largest probability)")
    return _png(figure)


def class_histogram(
    groups: Mapping[str, ArrayLike], classes: Sequence[str], *, title: str = "Class mix", log: bool = False
) -> bytes:
    """Share of every class in one or more groups, e.g. {"predictions": counts, "selected": counts} with counts (K,).

    The legend gives each group's total, the bars their counts. `log` makes long tails visible.
    """
    figure = Figure(figsize=(2.4 + 0.95 * len(classes), 3.8), layout="constrained")
    axes = _axes(figure, title)
    width = 0.8 / max(len(groups), 1)
    fills = (GREY, BLUE, ORANGE, GREEN)
    for index, (name, values) in enumerate(groups.items()):
        counts = np.asarray(values, dtype=np.float64)
        shares = counts / max(counts.sum(), 1.0)
        x = np.arange(len(classes)) + (index - (len(groups) - 1) / 2) * width
        bars = axes.bar(
            x, shares, width * 0.94, color=fills[index % 4], label=f"{name} ({_short(int(counts.sum()))})", zorder=2
        )
        axes.bar_label(bars, [_short(int(n)) for n in counts], fontsize=7.5, padding=2, color=MUTED)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_ylabel("share of the group")
    if log:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, None if log else 0))
    axes.margins(y=0.12)
    _legend(axes, columns=len(groups))
    return _png(figure)


def coverage_plot(
    confidence: ArrayLike,
    correct: ArrayLike | None = None,
    *,
    threshold: float | None = None,
    title: str = "Confidence and coverage",
) -> bytes:
    """Histogram of the confidence (scaled to its peak) and, against the threshold, the share accepted and (if known) their accuracy.

    Args:
        confidence: Largest probability of each example, (N,).
        correct: Whether each prediction is right, (N,) bool; None for unlabelled examples.
        threshold: A threshold to mark.
        title: Title of the picture.
    """
    values = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    levels = np.linspace(0, 1, 201)
    accepted = values.size - np.searchsorted(np.sort(values), levels, side="left")
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = _axes(figure, title)
    share, edges = np.histogram(values, bins=40, range=(0, 1))
    axes.bar(
        edges[:-1], share / max(share.max(), 1), np.diff(edges) * 0.94, align="edge", color=GREY, alpha=0.65,
        label="distribution", zorder=1,
    )  # fmt: skip
    axes.plot(levels, accepted / max(values.size, 1), color=BLUE, linewidth=2, label="accepted")
    if correct is not None:
        hits = np.concatenate([[0], np.cumsum(np.asarray(correct, dtype=np.float64)[order])])
        rate = np.where(accepted > 0, hits[accepted] / np.maximum(accepted, 1), np.nan)
        axes.plot(levels, rate, color=RED, linewidth=2, linestyle=(0, (5, 1.5)), label="accuracy of accepted")
    if threshold is not None:
        axes.vlines(threshold, 0, 1, color=INK, linewidth=1.2, linestyle=":")
        axes.text(threshold, 1.02, f"τ = {threshold:.2f}", ha="center", va="bottom", fontsize=8, color=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1.1 if threshold is not None else 1.02), yticks=np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
    axes.set_xlabel("confidence threshold")
    _legend(axes, columns=3)
    return _png(figure)


def rounds_plot(
    series: Mapping[str, ArrayLike],
    errors: Mapping[str, ArrayLike] | None = None,
    *,
    title: str = "Macro-F1 over rounds",
    ylabel: str = "macro-F1",
) -> bytes:
    """One line per name over the rounds 0, 1, ..., each (R,), NaN where missing; bands of +/- one error (R,)."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = _axes(figure, title)
    for index, (name, values) in enumerate(series.items()):
        y = np.asarray(values, dtype=np.float64)
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(y, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5, linewidth=2, label=name)
        if errors is not None and name in errors:
            e = np.asarray(errors[name], dtype=np.float64)
            axes.fill_between(np.arange(y.size), y - e, y + e, color=colour, alpha=0.15, linewidth=0)
        last = np.flatnonzero(~np.isnan(y))
        if last.size:
            axes.annotate(
                f"{y[last[-1]]:.3f}", (float(last[-1]), float(y[last[-1]])), xytext=(7, 0),
                textcoords="offset points", va="center", fontsize=8.5, color=colour,
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.09, y=0.12)
    axes.set_xlabel("round")
    axes.set_ylabel(ylabel)
    _legend(axes, columns=min(len(series), 3))
    return _png(figure)


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
    axes = _axes(figure, title, legend=False)
    axes.axhline(neutral, color=INK, linewidth=1, linestyle=":", label=f"neutral ({neutral:g})")
    if bounds is not None:
        for bound in bounds:
            axes.axhline(bound, color=GREY, linewidth=1.2, linestyle="--")
    for k, (name, colour) in enumerate(zip(classes, _colours(classes), strict=True)):
        axes.plot(
            history[:, k], color=colour, marker=MARKERS[k % len(MARKERS)], markersize=5, linewidth=1.8, label=name
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.03, y=0.1)
    axes.set_xlabel("feedback version")
    axes.set_ylabel(ylabel)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor=INK)
    return _png(figure)


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
    _frame(axes, title, legend=truth is not None)
    for k, colour in enumerate(_colours(classes)):
        axes.broken_barh(_runs(lanes == k, fps), (k - 0.36, 0.72), facecolors=colour, zorder=2)
        if truth is not None:
            axes.broken_barh(_runs(np.asarray(truth) == k, fps), (k - 0.06, 0.12), facecolors=INK, zorder=3)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, max(seconds, 1 / fps))
    axes.grid(axis="y", visible=False)
    if truth is not None:
        axes.plot([], [], color=INK, linewidth=2, label="true")
        _legend(axes, columns=1)
    if confidence is not None:
        time = np.arange(lanes.size) / fps
        _frame(grid[1, 0])
        grid[1, 0].fill_between(time, np.asarray(confidence, dtype=np.float64), color=GREY, linewidth=0, step="post")
        grid[1, 0].set(ylim=(0, 1), yticks=(0, 0.5, 1))
        grid[1, 0].set_ylabel("confidence", fontsize=8)
    grid[-1, 0].set_xlabel("time [s]")
    return _png(figure)


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
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    figure = Figure(
        figsize=(1.25 * columns, (1.15 + 0.17 * lines) * rows + (0.4 if title else 0.1)), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if index >= n:
            continue
        bad = wrong is not None and wrong[index]
        axes.imshow(faces[index], interpolation="nearest" if faces.shape[1] < 64 else "antialiased")
        axes.set_title(("✗ " if bad else "") + captions[index], fontsize=8, color=RED if bad else INK, pad=3)
        if bad:
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RED, linewidth=2.5)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return _png(figure)


def _axes(figure: Figure, title: str, *, legend: bool = True) -> Axes:
    axes = figure.subplots()
    _frame(axes, title, legend=legend)
    return axes


def _frame(axes: Axes, title: str = "", *, legend: bool = False) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    if title:
        # With a legend, the pad leaves its line free between the title and the axes.
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=26 if legend else 10)


def _legend(axes: Axes, *, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
        borderaxespad=0.2, handletextpad=0.5, columnspacing=1.4,
    )  # fmt: skip


def _colours(classes: Sequence[str]) -> list[str]:
    return [EXPRESSION_COLOURS.get(name, PALETTE[k % len(PALETTE)]) for k, name in enumerate(classes)]


def _runs(active: NDArray[np.bool_], fps: float) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [(start / fps, (stop - start) / fps) for start, stop in edges.reshape(-1, 2)]


def _short(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            value = count / (1000 if unit == "k" else size)
            return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
    return f"{count:,}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the software entry the same data gives the same bytes under every matplotlib release of one version.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
