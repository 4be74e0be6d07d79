"""Sheets of faces, which are read again from where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ray_fer.data.crop import decode_uri
from ray_fer.data.decode import DecodeError
from ray_fer.data.read import Item, read_objects
from ray_fer.reports.plot_style import INK, plain, png

COLUMNS = 8
_PIXELS = 64
_MAX_FACE_BYTES = 100 << 20


def face_sheet(chosen: Sequence[tuple[str, str]]) -> bytes | None:
    """Draw the pictures of (uri, caption) pairs in rows of `COLUMNS`; None where none of them can be read any more."""
    faces, captions = [], []
    reads = read_objects([Item(uri, "", 0) for uri, _ in chosen], _MAX_FACE_BYTES)
    for read, (_, caption) in zip(reads, chosen, strict=True):
        try:
            faces.append(decode_uri(read.item.uri, read.data or b"", _PIXELS))
        except DecodeError:  # gone since it was labelled
            continue
        captions.append(caption)
    return contact_sheet(np.stack(faces), captions, columns=COLUMNS) if faces else None


def contact_sheet(faces: NDArray[np.uint8], captions: Sequence[str], *, columns: int) -> bytes:
    """Draw a grid of faces, uint8 RGB (N, S, S, 3), with a caption above each."""
    rows = max(1, -(-len(faces) // columns))
    side = faces.shape[1]
    # One axes for all: an axes for each face, and a layout that fits them, take seconds.
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    gap, text = 0.08 * side, 0.17 * lines * side
    width, height = columns * (side + gap) + gap, rows * (side + gap + text) + gap
    figure = Figure(figsize=(1.25 * columns, 1.25 * columns * height / width))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    for index, (face, caption) in enumerate(zip(faces, captions, strict=True)):
        left = gap + index % columns * (side + gap)
        top = gap + text + index // columns * (side + gap + text)
        extent = (left, left + side, top + side, top)
        axes.imshow(face, extent=extent, interpolation="nearest" if side < 64 else "antialiased")
        place = left + side / 2, top - 0.03 * side
        axes.text(*place, plain(caption), fontsize=8, color=INK, ha="center", va="bottom")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return png(figure)
