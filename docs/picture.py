"""Draws docs/picture.png with the project's own face renderer: `python docs/picture.py`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray
from PIL import Image

from ray_fer.expressions import SEVEN
from ray_fer.synthetic.action_units import sample_action_units
from ray_fer.synthetic.face import render_face
from ray_fer.synthetic.identity import draw_identity
from ray_fer.synthetic.nuisance import draw_nuisance

SIDE = 96
BLUE, GREEN, GREY = "#0072b2", "#009e73", "#5f6b7a"


def main() -> None:
    """Labelled faces, unlabeled ones, the same with pseudo-labels, and the jobs between them."""
    figure = Figure(figsize=(10, 3.1), dpi=110)
    rng = np.random.default_rng(7)
    labelled = [(face(name, rng, 0.1), name, BLUE) for name in SEVEN[:6]]
    bucket = [(name, face(name, rng, 0.45)) for name in rng.choice(SEVEN, 12)]
    block(figure, (0.01, 0.05, 0.2, 0.78), labelled, 2, "a few labelled faces")
    block(figure, (0.33, 0.05, 0.27, 0.78), [(image, "", GREY) for _, image in bucket], 3, "buckets of unlabeled faces")
    named = [(image, name, GREEN) for name, image in bucket]
    block(figure, (0.72, 0.05, 0.27, 0.78), named, 3, "pseudo-labels, and a student")
    for start, words in ((0.22, "train a teacher"), (0.61, "label, select,\ntrain")):
        arrow = FancyArrowPatch(
            (start, 0.45), (start + 0.1, 0.45), arrowstyle="simple,head_width=9,head_length=9,tail_width=3"
        )
        arrow.set(transform=figure.transFigure, color=GREY, linewidth=0)
        figure.add_artist(arrow)
        figure.text(start + 0.05, 0.53, words, ha="center", fontsize=9, color=GREY)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    small = Image.open(drawn).convert("RGB").quantize(160)
    small.save(Path(__file__).with_name("picture.png"), optimize=True)


def face(name: str, rng: np.random.Generator, difficulty: float) -> NDArray[np.uint8]:
    """A face of a person of its own, uint8 (SIDE, SIDE, 3)."""
    units = sample_action_units(name, rng, difficulty=difficulty)
    return render_face(draw_identity(rng), units, draw_nuisance(rng, difficulty), SIDE)


def block(
    figure: Figure,
    place: tuple[float, float, float, float],
    faces: list[tuple[NDArray[np.uint8], str, str]],
    rows: int,
    title: str,
) -> None:
    """A grid of faces with a name under each, and a title above."""
    left, bottom, width, height = place
    columns = len(faces) // rows
    for number, (image, name, colour) in enumerate(faces):
        row, column = divmod(number, columns)
        box = (
            left + width * column / columns,
            bottom + height * (rows - 1 - row) / rows,
            width / columns,
            height / rows,
        )
        axes = figure.add_axes(box)
        axes.imshow(image)
        axes.set_axis_off()
        if name:
            axes.set_title(name, fontsize=7.5, color=colour, pad=1.5)
    figure.text(left + width / 2, 0.93, title, ha="center", fontsize=11, weight="bold")


if __name__ == "__main__":
    main()
