"""What one worker does with one unit of images: read → decode → infer → write. Pure of Ray, so that it can be tested.

The same functions run fused in one single-threaded actor per core where there is no accelerator, and split into
decoding tasks and GPU actors where there is one (see `graph`).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
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
        rows: for each object a dict of the columns of `FILE_SCHEMA` that are known so far, and ``overwritten`` where it
            was not what had been listed any more.
        pixels: uint8 (B, S, S, 3); the crops of the rows that are ``ok``, in their order.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pixels: Pixels = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))


def decode_items(
    keys: pa.Table, *, image_size: int, batch_size: int, max_pixels: int, max_bytes: int
) -> Iterator[Decoded]:
    """Reads and decodes the objects of ``keys`` (uri, identity, size, source), ``batch_size`` of them at a time."""
    columns = keys.select(["uri", "identity", "size", "source"]).to_pydict()
    pinned = map(is_feed, columns["source"])
    items = [Item(*key) for key in zip(columns["uri"], columns["identity"], columns["size"], pinned, strict=True)]
    left = keys.num_rows
    rows: list[dict[str, Any]] = []
    crops = 0
    pixels = np.empty((min(batch_size, left), image_size, image_size, 3), np.uint8)
    for read, source in zip(read_objects(items, max_bytes), columns["source"], strict=True):
        row = {"uri": read.item.uri, "identity": read.identity, "source": source, "status": read.status}
        if read.identity != read.item.identity:
            row["overwritten"] = True
        if read.data is None:
            row["error"] = read.error
        else:
            row["digest"] = xxhash.xxh3_128_digest(read.data)
            try:
                decode_into(read.data, pixels[crops], max_pixels=max_pixels)
                crops += 1
            except DecodeError as error:
                row |= {"status": error.status, "error": error.message}
            except MemoryError:
                row |= {"status": "too_large", "error": "not enough memory to decode it"}
        rows.append(row)
        left -= 1
        if len(rows) == batch_size or not left:
            yield Decoded(rows, pixels[:crops])
            rows, crops = [], 0
            pixels = np.empty((min(batch_size, left), image_size, image_size, 3), np.uint8)


def joined(batches: Sequence[Decoded], image_size: int) -> Decoded:
    """Batches as one; a single one is not copied."""
    if len(batches) == 1:
        return batches[0]
    none = np.empty((0, image_size, image_size, 3), np.uint8)
    pixels = [batch.pixels for batch in batches if len(batch.pixels)]
    return Decoded([row for batch in batches for row in batch.rows], np.concatenate([none, *pixels]))


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


def pack_decoded(number: int, batch: Decoded) -> pa.Table:
    """A decoded unit as a block of one row, without copying the pixels: number, rows, pixels."""
    ends = pa.py_buffer(np.array([0, batch.pixels.nbytes]))
    pixels = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(batch.pixels)])
    return pa.table(
        {"unit": [number], "rows": pa.array([pickle.dumps(batch.rows)], pa.large_binary()), "pixels": pixels}
    )


def unpack_decoded(block: pa.Table, image_size: int) -> tuple[int, Decoded]:
    """The inverse of `pack_decoded`; the pixels are a view into ``block``."""
    flat = np.frombuffer(block["pixels"][0].as_buffer(), np.uint8)
    rows = pickle.loads(block["rows"][0].as_py())
    return block["unit"][0].as_py(), Decoded(rows, flat.reshape(-1, image_size, image_size, 3))
