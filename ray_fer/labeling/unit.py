"""What one worker does with one unit of images: read → decode → infer → write. Pure of Ray, so that it can be tested.

Several teachers share what is read and decoded: an object is decoded once, to a crop of every size that is wanted of
it, and `share` is what one of them sees of a batch. In the column ``teachers`` of the keys, bit t tells that teacher t
lacks the key.

The same functions run fused in one single-threaded actor per core where there is no accelerator, and split into
decoding tasks and GPU actors where there is one (see `graph`).
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from ray_fer.data.decode import DecodeError, decode_into_each
from ray_fer.data.read import Item, read_objects
from ray_fer.data.sources import is_feed
from ray_fer.labeling.table import FILE_SCHEMA, OK
from ray_fer.models.softmax import softmax

if TYPE_CHECKING:
    from ray_fer.models.engines import Engine, Pixels

# Of a key without the column ``teachers``.
EVERY_TEACHER = -1
Row = dict[str, Any]


@dataclass
class Decoded:
    """A batch after reading and decoding.

    Attributes:
        rows: for each object a dict of the columns of `FILE_SCHEMA` that are known so far, ``teachers``, and
            ``overwritten`` where it was not what had been listed any more.
        pixels: for each size S uint8 (B, S, S, 3); the crops of the rows that are ``ok`` and wanted in that size, in
            their order.
    """

    rows: list[Row] = field(default_factory=list)
    pixels: dict[int, Pixels] = field(default_factory=dict)


def decode_items(
    keys: pa.Table, *, image_sizes: Sequence[int], batch_size: int, max_pixels: int, max_bytes: int
) -> Iterator[Decoded]:
    """Reads and decodes the objects of ``keys``, ``batch_size`` of them at a time.

    Args:
        keys: (uri, identity, size, source), and ``teachers`` where not all lack all of them.
        image_sizes: side in pixels of each teacher's crops.
        batch_size: rows of what is yielded.
        max_pixels: larger pictures are not decoded.
        max_bytes: larger objects are not read.
    """
    columns = keys.select(["uri", "identity", "size", "source"]).to_pydict()
    pinned = map(is_feed, columns["source"])
    items = [Item(*key) for key in zip(columns["uri"], columns["identity"], columns["size"], pinned, strict=True)]
    cover = max(image_sizes)
    wanted = wanted_sizes(image_sizes)
    left = keys.num_rows
    rows: list[Row] = []
    pixels, crops = _buffers(wanted, min(batch_size, left))
    objects = zip(read_objects(items, max_bytes), columns["source"], teachers_of(keys), strict=True)
    for read, source, teachers in objects:
        row: Row = {"uri": read.item.uri, "identity": read.identity, "source": source, "status": read.status}
        row["teachers"] = teachers
        if read.identity != read.item.identity:
            row["overwritten"] = True
        if read.data is None:
            row["error"] = read.error
        else:
            row["digest"] = xxhash.xxh3_128_digest(read.data)
            sizes = [size for size, who in wanted.items() if who & teachers]
            try:
                outs = [pixels[size][crops[size]] for size in sizes]
                decode_into_each(read.data, outs, cover, max_pixels=max_pixels)
                for size in sizes:
                    crops[size] += 1
            except DecodeError as error:
                row |= {"status": error.status, "error": error.message}
            except MemoryError:
                row |= {"status": "too_large", "error": "not enough memory to decode it"}
        rows.append(row)
        left -= 1
        if len(rows) == batch_size or not left:
            yield Decoded(rows, {size: pixels[size][: crops[size]] for size in wanted})
            rows = []
            pixels, crops = _buffers(wanted, min(batch_size, left))


def teachers_of(keys: pa.Table) -> list[int]:
    """For every key the bits of the teachers that lack it."""
    if "teachers" not in keys.column_names:
        return [EVERY_TEACHER] * keys.num_rows
    bits: list[int] = keys["teachers"].to_pylist()
    return bits


def wanted_sizes(image_sizes: Sequence[int]) -> dict[int, int]:
    """The sizes that occur in ``image_sizes``, each with the bits of the teachers that want it."""
    wanted = dict.fromkeys(image_sizes, 0)
    for teacher, size in enumerate(image_sizes):
        wanted[size] |= 1 << teacher
    return wanted


def _buffers(sizes: Collection[int], rows: int) -> tuple[dict[int, Pixels], dict[int, int]]:
    return {size: np.empty((rows, size, size, 3), np.uint8) for size in sizes}, dict.fromkeys(sizes, 0)


def joined(batches: Sequence[Decoded], image_sizes: Sequence[int]) -> Decoded:
    """Batches as one; a single one is not copied."""
    if len(batches) == 1 and batches[0].pixels:
        return batches[0]
    pixels = {}
    for size in set(image_sizes):
        none = np.empty((0, size, size, 3), np.uint8)
        pixels[size] = np.concatenate([none, *(batch.pixels[size] for batch in batches if batch.pixels)])
    return Decoded([row for batch in batches for row in batch.rows], pixels)


def share(batch: Decoded, teacher: int, image_sizes: Sequence[int]) -> tuple[list[Row], Pixels]:
    """The rows of ``batch`` that one teacher lacks, and of those that are ``ok`` the crops, uint8 (B, S, S, 3)."""
    size = image_sizes[teacher]
    pixels, who = batch.pixels[size], wanted_sizes(image_sizes)[size]
    rows = [row for row in batch.rows if row["teachers"] >> teacher & 1]
    if len(rows) < len(batch.rows):
        cropped = [row for row in batch.rows if row["status"] == OK and row["teachers"] & who]
        pixels = pixels[np.array([row["teachers"] >> teacher & 1 for row in cropped], bool)]
    return rows, pixels


def infer(rows: Sequence[Row], pixels: Pixels, engine: Engine, classes: tuple[str, ...], batch_size: int) -> list[Row]:
    """``rows`` with probs, label and confidence in those that are ``ok``; what `share` gives is not changed."""
    labelled = [row.copy() for row in rows]
    good = [row for row in labelled if row["status"] == OK]
    for start in range(0, len(good), batch_size):
        probs = softmax(engine(pixels[start : start + batch_size]))
        best = probs.argmax(axis=1)
        for row, p, k in zip(good[start : start + batch_size], probs, best, strict=True):
            row |= {"probs": p, "label": classes[k], "confidence": p[k]}
    return labelled


def to_table(rows: list[Row], run: str) -> pa.Table:
    """Rows as a table of `FILE_SCHEMA`, stamped with the run and the time."""
    stamp = {"run": run, "labelled_at": datetime.now(UTC)}
    return pa.Table.from_pylist([row | stamp for row in rows], schema=FILE_SCHEMA)


def pack_decoded(number: int, batch: Decoded) -> pa.Table:
    """A decoded unit as a block of one row, without copying the pixels: number, rows, pixels of each size."""
    columns = {"unit": [number], "rows": pa.array([pickle.dumps(batch.rows)], pa.large_binary())}
    for size, pixels in batch.pixels.items():
        ends = pa.py_buffer(np.array([0, pixels.nbytes]))
        columns[f"pixels_{size}"] = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, ends, pa.py_buffer(pixels)]
        )
    return pa.table(columns)


def unpack_decoded(block: pa.Table, image_sizes: Sequence[int]) -> tuple[int, Decoded]:
    """The inverse of `pack_decoded`; the pixels are views into ``block``."""
    rows = pickle.loads(block["rows"][0].as_py())
    flat = {size: np.frombuffer(block[f"pixels_{size}"][0].as_buffer(), np.uint8) for size in set(image_sizes)}
    pixels = {size: values.reshape(-1, size, size, 3) for size, values in flat.items()}
    return block["unit"][0].as_py(), Decoded(rows, pixels)
