"""What one worker does with one unit of images: read → decode → infer → write. Pure of Ray, so that it can be tested.

The same functions run fused in one single-threaded actor per core where there is no accelerator, and split into
decoding tasks and GPU actors where there is one (see `graph`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ray_fer.data.decode import DecodeError, decode_into
from ray_fer.data.read import Item, read_objects
from ray_fer.data.sources import is_feed
from ray_fer.labeling.table import FILE_SCHEMA, OK
from ray_fer.models.softmax import softmax

if TYPE_CHECKING:
    from ray_fer.models.engines import Engine, Pixels


@dataclass
class Decoded:
    """A batch after reading and decoding.

    Attributes:
        rows: for each object a dict of the columns of `FILE_SCHEMA` that are known so far.
        pixels: uint8 (B, S, S, 3); the crops of the rows that are ``ok``, in their order.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pixels: Pixels = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))


def decode_items(
    keys: pa.Table, *, image_size: int, batch_size: int, max_pixels: int, max_bytes: int
) -> Iterator[Decoded]:
    """Reads and decodes the objects of ``keys`` (uri, identity, size, source), ``batch_size`` good crops at a time."""
    columns = keys.select(["uri", "identity", "size", "source"]).to_pydict()
    pinned = map(is_feed, columns["source"])
    items = [Item(*key) for key in zip(columns["uri"], columns["identity"], columns["size"], pinned, strict=True)]
    batch, crops = Decoded(), 0
    pixels = np.empty((batch_size, image_size, image_size, 3), np.uint8)
    for read, source in zip(read_objects(items, max_bytes), columns["source"], strict=True):
        row = {"uri": read.item.uri, "identity": read.identity, "source": source, "status": read.status}
        if read.data is None:
            row["error"] = read.error
        else:
            row["digest"] = xxhash.xxh3_128_digest(read.data)
            try:
                decode_into(read.data, pixels[crops], max_pixels=max_pixels)
                crops += 1
            except DecodeError as error:
                row |= {"status": error.status, "error": error.message}
        batch.rows.append(row)
        if crops == batch_size:
            batch.pixels = pixels
            yield batch
            batch, crops = Decoded(), 0
            pixels = np.empty_like(pixels)
    if batch.rows:
        batch.pixels = pixels[:crops]
        yield batch


def infer(batch: Decoded, engine: Engine, classes: tuple[str, ...], batch_size: int) -> None:
    """Fills probs, label and confidence into the rows of ``batch`` that are ``ok``."""
    good = [row for row in batch.rows if row["status"] == OK]
    for start in range(0, len(good), batch_size):
        probs = softmax(engine(batch.pixels[start : start + batch_size]))
        best = probs.argmax(axis=1)
        for row, p, k in zip(good[start : start + batch_size], probs, best, strict=True):
            row |= {"probs": p, "label": classes[k], "confidence": p[k]}


def to_table(rows: list[dict[str, Any]], run: str) -> pa.Table:
    """Rows as a table of `FILE_SCHEMA`, stamped with the run and the time."""
    stamp = {"run": run, "labelled_at": datetime.now(UTC)}
    return pa.Table.from_pylist([row | stamp for row in rows], schema=FILE_SCHEMA)


def pixels_to_arrow(pixels: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Crops uint8 (B, S, S, 3) as a column, without copying them."""
    width = int(np.prod(pixels.shape[1:]))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(pixels), [None, pa.py_buffer(pixels)])


def pixels_from_arrow(column: pa.ChunkedArray, image_size: int) -> Pixels:
    """The inverse of `pixels_to_arrow`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    width = image_size * image_size * 3
    flat = np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    return flat.reshape(len(array), image_size, image_size, 3)
