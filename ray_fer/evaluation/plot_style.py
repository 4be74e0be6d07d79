"""What all pictures share: colours, a quiet frame, lettering, and the way to PNG bytes.

Figures are made without pyplot: its global state leaks memory in a long-running actor and is not safe between
threads. Every picture has the same quiet frame, and colours that stay apart for colour-blind readers (Okabe and Ito,
Paul Tol). An expression keeps its colour in every picture; where colours carry meaning, position or a marker carries
it too. One picture costs 0.1 to 0.4 s of one core.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

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


def axes_of(figure: Figure, title: str, *, legend: bool = True) -> Axes:
    """The only axes of a figure, in the quiet frame; `legend` keeps a line free for one."""
    axes = figure.subplots()
    frame(axes, title, legend=legend)
    return axes


def frame(axes: Axes, title: str = "", *, legend: bool = False) -> None:
    """Give axes the quiet frame; `legend` keeps a line free for one below the title."""
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
        axes.set_title(plain(title), loc="left", fontsize=12, fontweight="bold", color=INK, pad=26 if legend else 10)


def add_legend(axes: Axes, *, columns: int) -> None:
    """A legend in one line above the axes; none where nothing has a label."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
        borderaxespad=0.2, handletextpad=0.5, columnspacing=1.4,
    )  # fmt: skip


def plain(text: str) -> str:
    """Text from users as it is: matplotlib would set what stands between two dollar signs as a formula, or fail."""
    return text.replace("$", r"\$")


def class_colours(classes: Sequence[str]) -> list[str]:
    """The colour of each class: its own if it is an expression, else by its position."""
    return [EXPRESSION_COLOURS.get(name, PALETTE[k % len(PALETTE)]) for k, name in enumerate(classes)]


def short(count: int) -> str:
    """A count in few characters: all digits below 10,000, then three with k, M or G."""
    if count >= 10_000:
        for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
            # Three digits of 999,500 are 1000 thousand: it is written in the next unit.
            if count >= 0.9995 * size:
                value = count / size
                return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"
    return f"{count:,}"


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    # Without the software entry the same data gives the same bytes under every matplotlib release of one version.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
