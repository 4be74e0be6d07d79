"""The style of all plots: colours, frame, lettering, and their PNG bytes.

Figures are made without pyplot, because its global state leaks memory in a long-running actor and is not safe between
threads. Colours stay apart for colour-blind readers (Okabe and Ito, Paul Tol). An expression keeps its colour in every
plot; where colours carry meaning, position or a marker carries it too. A plot costs 0.1 to 0.4 s of one core.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from functools import cache

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

log = logging.getLogger(__name__)

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
# Every digit that a tick needs and no other: 12.5 % is not 12 %, and .1 % not 0 %.
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g}%")
_INCHES_PER_LETTER = 0.085  # of a tick's label, at most
_PLAIN_KINDS = ("Sans", "Gothic", "Hei")
_BOXES = "Last Resort"  # a font of boxes, for every character there is


def axes_of(figure: Figure, title: str, *, legend: bool = True) -> Axes:
    """Add the only axes of a figure, in the common frame; `legend` keeps a line free for a legend."""
    axes = figure.subplots()
    frame(axes, title, legend=legend)
    return axes


def frame(axes: Axes, title: str = "", *, legend: bool = False) -> None:
    """Give axes the common frame; `legend` keeps a line free for a legend below the title."""
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
    """Add a legend in one line above the axes; none where nothing has a label."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
        borderaxespad=0.2, handletextpad=0.5, columnspacing=1.4,
    )  # fmt: skip


def class_ticks(axes: Axes, labels: Sequence[str], inches: float) -> None:
    """Label places 0, 1, ... of the x axis, which are ``inches`` apart; slanted where the labels would overlap."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    slant = longest * _INCHES_PER_LETTER > inches
    axes.set_xticks(range(len(labels)), labels)
    if slant:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places to be at least ``gap`` apart, in the same order and as near to where they were as that allows."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[int]] = []
    centre: list[float] = []
    for index in order:
        groups.append([index])
        centre.append(places[index])
        # Groups that come too near become one around the mean of their places.
        while len(groups) > 1 and centre[-1] - centre[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
            centre[-2:] = [sum(places[each] for each in groups[-1]) / len(groups[-1])]
    spaced = list(places)
    for group, middle in zip(groups, centre, strict=True):
        for position, index in enumerate(group):
            spaced[index] = middle + gap * (position - (len(group) - 1) / 2)
    return spaced


def plain(text: str) -> str:
    r"""Escape a text from users, because matplotlib would set what stands between two dollar signs as a formula.

    A character that no font on this machine has becomes its code point, \u559c, because boxes would be all alike.
    """
    lacking = {each for each in text if each != "\n" and _font_with(each) is None}
    if lacking:
        _warn_once()
    return "".join(_escaped(each) if each in lacking else each for each in text).replace("$", r"\$")


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else "?"


@cache
def _warn_once() -> None:
    log.warning("pictures: no font on this machine has all letters of the names; a Noto font (fonts-noto-cjk) would")


@cache
def _font_with(character: str) -> str | None:
    """Return the family of a font that has the character: the usual one, or the first other on this machine."""
    return next((name for name, path in _fonts().items() if _has(path, character)), None)


@cache
def _fonts() -> dict[str, str]:
    """Return the file of each family: the usual one, then other families without serifs, then the rest."""
    usual = FontProperties()
    upright = [font for font in fontManager.ttflist if font.style == "normal" and not font.name.startswith(_BOXES)]
    upright.sort(key=lambda font: (not any(kind in font.name for kind in _PLAIN_KINDS), font.name))
    return {usual.get_name(): findfont(usual)} | {font.name: font.fname for font in upright}


@cache
def _has(path: str, character: str) -> bool:
    try:
        return bool(get_font(path).get_char_index(ord(character)))
    except (OSError, RuntimeError):  # a font that is damaged
        return False


def _set_fonts(figure: Figure) -> None:
    """Name further families for the texts with characters that the usual one lacks."""
    usual = FontProperties().get_name()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        needed = [_font_with(each) for each in dict.fromkeys(text.get_text()) if each != "\n"]
        if others := [family for family in dict.fromkeys(needed) if family not in (None, usual)]:
            text.set_fontfamily([usual, *map(str, others)])


def class_colours(classes: Sequence[str]) -> list[str]:
    """Return the colour of each class: its own if it is an expression, else by its position."""
    return [EXPRESSION_COLOURS.get(name, PALETTE[k % len(PALETTE)]) for k, name in enumerate(classes)]


def short(count: int) -> str:
    """Format a count in few characters: all digits below 10,000, then three with k, M or G."""
    if count >= 10_000:
        for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
            # Three digits of 999,500 are 1000 thousand: it is written in the next unit.
            if count >= 0.9995 * size:
                value = count / size
                return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"
    return f"{count:,}"


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    _set_fonts(figure)
    buffer = io.BytesIO()
    # Without the software entry the same data gives the same bytes under every matplotlib release of one version.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
