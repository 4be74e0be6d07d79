"""A sheet of faces that are read again from where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_fer.data.crop import decode_uri
from ray_fer.data.decode import DecodeError
from ray_fer.data.read import Item, read_objects
from ray_fer.reports.plots import contact_sheet

COLUMNS = 8
_PIXELS = 64
_MAX_FACE_BYTES = 100 << 20


def face_sheet(chosen: Sequence[tuple[str, str]]) -> bytes | None:
    """The pictures of (uri, caption) pairs as a PNG of `COLUMNS` columns; None where none can be read any more."""
    faces, captions = [], []
    reads = read_objects([Item(uri, "", 0) for uri, _ in chosen], _MAX_FACE_BYTES)
    for read, (_, caption) in zip(reads, chosen, strict=True):
        try:
            faces.append(decode_uri(read.item.uri, read.data or b"", _PIXELS))
        except DecodeError:  # gone since it was labelled
            continue
        captions.append(caption)
    return contact_sheet(np.stack(faces), captions, columns=COLUMNS) if faces else None
