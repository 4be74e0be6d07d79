"""What one worker does with one unit of images: read → decode → infer → rows. Free of Ray, so that it can be tested.

Several teachers share what is read and decoded: an object is decoded once, to a crop of every size that is wanted of
it, and `share` is what one of them sees of a batch. Which of them lack a key, and which try of each this is, say the
columns ``teachers`` and ``attempts`` of the keys, as `ledger.claim_missing` gives them.

The same functions run fused in one single-threaded actor per core where there is no accelerator, and split into
decoding tasks and GPU actors where there is one (see `graph`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ray_fer.data.crop import Picture
from ray_fer.data.decode import DecodeError, Pixels, decode_into_each
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.labeling.table import FILE_SCHEMA, NO_FACE, NOT_FINITE, OK, TRANSIENT
from ray_fer.models.face_detector import face_detector
from ray_fer.models.softmax import softmax, why_not_finite

if TYPE_CHECKING:
    from ray_fer.models.engines import Features, Logits

Forward = Callable[[Pixels], "Logits | tuple[Logits, Features]"]
"""`Engine.__call__`, or `Embedder.embed` where embeddings are kept."""

# Of a key without the column ``teachers``.
EVERY_TEACHER = -1


@dataclass(slots=True)
class Row:
    """What became of one image, or of one face in it; most fields are columns of `FILE_SCHEMA`.

    Attributes:
        attempts: which try this is of each teacher, from 1.
        attempt: which try this is of the teacher that the row is for.
        further_face: whether it is not the first face of its picture.
        listed_as: the URI and the identity that had been listed, where another identity was read.
    """

    uri: str
    status: str
    identity: str = ""
    source: str = ""
    attempts: Sequence[int] = (1,)
    attempt: int = 1
    listed_identity: str | None = None
    digest: bytes | None = None
    error: str | None = None
    probs: npt.NDArray[np.float32] | None = None
    label: str | None = None
    confidence: Any = None
    embedding: bytes | None = None
    embedding_size: int | None = None
    further_face: bool = False
    listed_as: tuple[str, str] | None = None


@dataclass
class Decoded:
    """A batch after reading and decoding.

    Attributes:
        rows: one for each object, or for each face that was found in it.
        teachers: for each row the bits of the teachers that lack it.
        pixels: for each size S uint8 (B, S, S, 3); the crops of the rows that are ``ok`` and wanted in that size, in
            their order.
    """

    rows: list[Row] = field(default_factory=list)
    teachers: list[int] = field(default_factory=list)
    pixels: dict[int, Pixels] = field(default_factory=dict)


def decode_items(
    keys: pa.Table,
    *,
    image_sizes: Sequence[int],
    batch_size: int,
    max_pixels: int,
    max_bytes: int,
    faces: bool = False,
) -> Iterator[Decoded]:
    """Reads and decodes the objects of ``keys``, ``batch_size`` of them at a time.

    Args:
        keys: (uri, identity, size, source); ``teachers`` where not all lack all of them, and ``attempts`` where it is
            not the first try of all.
        image_sizes: side in pixels of each teacher's crops.
        batch_size: rows of what is yielded; a few more where faces are, for those of a picture stay together.
        max_pixels: larger pictures are not decoded.
        max_bytes: larger objects are not read.
        faces: whether a picture gives a row and crops for each face that is found in it, rather than one row.

    Raises:
        UserError: when faces are to be found and no detector is installed.
    """
    columns = keys.select(["uri", "identity", "size", "source"]).to_pydict()
    items = [Item(*key) for key in zip(columns["uri"], columns["identity"], columns["size"], strict=True)]
    cover = max(image_sizes)
    wanted = wanted_sizes(image_sizes)
    sizes_for = functools.cache(lambda teachers: [size for size, who in wanted.items() if who & teachers])
    left = keys.num_rows
    rows: list[Row] = []
    asked: list[int] = []
    crops = _Crops(wanted, min(batch_size, left))
    first_try = [1] * len(image_sizes)
    known = (columns["source"], teachers_of(keys), attempts_of(keys, len(image_sizes)))
    for read, source, teachers, attempts in zip(read_objects(items, max_bytes), *known, strict=True):
        row = _row_of(read, source, attempts, first_try)
        found = [row]
        if read.data is not None:
            row.digest = xxhash.xxh3_128_digest(read.data)
            sizes = sizes_for(teachers)
            before = crops.taken.copy()
            try:
                if faces:
                    found = _faces_of(row, Picture(read.data, max_pixels=max_pixels), crops, sizes)
                else:
                    decode_into_each(read.data, crops.take(sizes), cover, max_pixels=max_pixels)
            except DecodeError as error:
                crops.taken = before
                row.status, row.error = error.status, error.message
            except MemoryError:
                crops.taken = before
                row.status, row.error = "too_large", "not enough memory to decode it"
        rows += found
        asked += [teachers] * len(found)
        left -= 1
        if len(rows) >= batch_size or not left:
            yield Decoded(rows, asked, crops.pixels())
            rows, asked = [], []
            crops = _Crops(wanted, min(batch_size, left))


def _row_of(read: Read, source: str, attempts: Sequence[int], first_try: Sequence[int]) -> Row:
    row = Row(read.item.uri, read.status, read.identity, source, attempts, error=read.error)
    if read.status in TRANSIENT:  # that says nothing of a content, and is about what was listed
        row.identity = read.item.identity
    elif read.identity != read.item.identity:
        row.listed_as, row.attempts = (read.item.uri, read.item.identity), first_try
        row.listed_identity = read.item.identity or None
    return row


def _faces_of(row: Row, picture: Picture, crops: _Crops, sizes: Sequence[int]) -> list[Row]:
    """A row for every face in ``picture``, whose crops are taken; one where there is none."""
    faces = face_detector()(picture)
    for face in faces:
        for out in crops.take(sizes):
            picture.cut_into(face, out)
    if not faces:
        return [replace(row, status=NO_FACE)]
    uris = [face.uri_in(row.uri) for face in faces]
    further = [replace(row, uri=uri, further_face=True, listed_as=None) for uri in uris[1:]]
    return [replace(row, uri=uris[0]), *further]


class _Crops:
    """Room for crops of several sizes; it grows, for a picture may have any number of faces.

    Attributes:
        taken: of each size how many.
    """

    def __init__(self, sizes: Collection[int], rows: int) -> None:
        self._room = {size: np.empty((rows, size, size, 3), np.uint8) for size in sizes}
        self.taken = dict.fromkeys(sizes, 0)

    def take(self, sizes: Collection[int]) -> list[Pixels]:
        """Room for one further crop of each of some sizes, (S, S, 3)."""
        outs = []
        for size in sizes:
            room, taken = self._room[size], self.taken[size]
            if taken == len(room):
                self._room[size] = room = np.concatenate([room, np.empty_like(room)])
            outs.append(room[taken])
            self.taken[size] = taken + 1
        return outs

    def pixels(self) -> dict[int, Pixels]:
        """What was taken, (B, S, S, 3) of each size."""
        return {size: room[: self.taken[size]] for size, room in self._room.items()}


def teachers_of(keys: pa.Table) -> list[int]:
    """For every key the bits of the teachers that lack it."""
    if "teachers" not in keys.column_names:
        return [EVERY_TEACHER] * keys.num_rows
    bits: list[int] = keys["teachers"].to_pylist()
    return bits


def attempts_of(keys: pa.Table, teachers: int) -> list[list[int]]:
    """For every key which try of each of the ``teachers`` this is, from 1."""
    if "attempts" not in keys.column_names:
        return [[1] * teachers] * keys.num_rows
    flat = keys["attempts"].combine_chunks().flatten().to_numpy()
    numbers: list[list[int]] = flat.reshape(-1, teachers).tolist()
    return numbers


def wanted_sizes(image_sizes: Sequence[int]) -> dict[int, int]:
    """The sizes that occur in ``image_sizes``, each with the bits of the teachers that want it."""
    wanted = dict.fromkeys(image_sizes, 0)
    for teacher, size in enumerate(image_sizes):
        wanted[size] |= 1 << teacher
    return wanted


def joined(batches: Sequence[Decoded], image_sizes: Sequence[int]) -> Decoded:
    """Batches as one; a single one is not copied."""
    if len(batches) == 1 and batches[0].pixels:
        return batches[0]
    pixels = {}
    for size in set(image_sizes):
        none = np.empty((0, size, size, 3), np.uint8)
        pixels[size] = np.concatenate([none, *(batch.pixels[size] for batch in batches if batch.pixels)])
    rows = [row for batch in batches for row in batch.rows]
    teachers = [bits for batch in batches for bits in batch.teachers]
    return Decoded(rows, teachers, pixels)


def share(batch: Decoded, teacher: int, image_sizes: Sequence[int]) -> tuple[list[Row], Pixels]:
    """The rows of ``batch`` that a teacher lacks, for `infer` to fill, and the crops (B, S, S, 3) of the ok ones."""
    size = image_sizes[teacher]
    pixels = batch.pixels[size]
    if len(image_sizes) == 1:
        for row in batch.rows:
            (row.attempt,) = row.attempts
        return batch.rows, pixels
    who = wanted_sizes(image_sizes)[size]
    rows, cropped = [], []
    for row, bits in zip(batch.rows, batch.teachers, strict=True):
        lacks = bool(bits >> teacher & 1)
        if lacks:
            rows.append(replace(row, attempt=row.attempts[teacher]))
        if row.status == OK and bits & who:
            cropped.append(lacks)
    return rows, pixels if all(cropped) else pixels[cropped]


def infer(rows: list[Row], pixels: Pixels, forward: Forward, classes: tuple[str, ...], batch_size: int) -> list[Row]:
    """Fills probs, label and confidence, and the embedding, into those of ``rows`` that are ``ok``, and returns all.

    One whose output has no probabilities becomes ``not_finite``, with an error that says why. One whose features alone
    are not finite, or too large for float16, stays ``ok`` without an embedding, and its error says so.
    """
    good = [row for row in rows if row.status == OK]
    for start in range(0, len(good), batch_size):
        batch = good[start : start + batch_size]
        out = forward(pixels[start : start + batch_size])
        logits, features = out if isinstance(out, tuple) else (out, None)
        probs = softmax(logits)
        best = probs.argmax(axis=1)
        for row, p, k in zip(batch, probs, best, strict=True):
            row.probs, row.label, row.confidence = p, classes[k], p[k]
        if features is not None:
            _embed(batch, features)
        for number in np.flatnonzero(np.isnan(probs[:, 0])).tolist():
            row = batch[number]
            row.status, row.error = NOT_FINITE, why_not_finite(logits[number], classes)
            row.probs = row.label = row.confidence = row.embedding = None
            row.embedding_size = row.embedding_size and 0
    return rows


def _embed(rows: Sequence[Row], features: Features) -> None:
    with np.errstate(over="ignore"):
        half = features.astype("<f2")
    for row, values, finite in zip(rows, half, np.isfinite(half).all(axis=1), strict=True):
        row.embedding, row.embedding_size = (values.tobytes(), len(values)) if finite else (None, 0)
        if not finite:
            row.error = "no embedding: the model's features are not finite in float16"


def to_table(rows: list[Row], run: str) -> pa.Table:
    """Rows as a table of `FILE_SCHEMA`, stamped with the run and the time."""
    columns: dict[str, Any] = {"run": pa.repeat(run, len(rows)), "labelled_at": [datetime.now(UTC)] * len(rows)}
    for name in FILE_SCHEMA.names:
        if name not in columns:
            columns[name] = list(map(attrgetter(name), rows))
    return pa.table({name: columns[name] for name in FILE_SCHEMA.names}, schema=FILE_SCHEMA)
