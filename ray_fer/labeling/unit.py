"""From the keys of a unit to rows and crops: read → decode.

Several teachers share what is read and decoded. An object is decoded once, to a crop of every size that is wanted of
it. The columns ``teachers`` and ``attempts`` of the keys tell which teachers lack a key, and which try of each this
is; `ledger.claim_missing` makes them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ray_fer.data.crop import Picture
from ray_fer.data.decode import DecodeError, Pixels, decode_into_each
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.labeling.table import NO_FACE, TRANSIENT
from ray_fer.models.face_detector import face_detector

# The bits of a key without the column ``teachers``.
EVERY_TEACHER = -1


@dataclass(slots=True)
class Row:
    """The outcome of one image or of one face in it. Fields that are not listed are columns of `table.FILE_SCHEMA`.

    Attributes:
        attempts: Number of this try of each teacher, from 1.
        attempt: Number of this try of the teacher that the row is for, from 1.
        further_face: Whether the row is about another face than the first one of its picture.
        listed_as: Listed URI and identity if another identity was read, else None.
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
        rows: A row for each object, or for each face that was found in it.
        teachers: For each row the bits of the teachers that lack it.
        pixels: For each size S the crops uint8 (B, S, S, 3) of the rows that are ``ok`` and wanted in that size, in the
            order of the rows.
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
        keys: Columns (uri, identity, size, source). The column ``teachers`` may be missing if every teacher lacks every
            key, and ``attempts`` if every try is the first.
        image_sizes: Side in pixels of each teacher's crops.
        batch_size: Number of rows in a batch. A batch may have more, because the faces of a picture stay together.
        max_pixels: Pictures with more pixels are not decoded.
        max_bytes: Objects with more bytes are not read.
        faces: Whether a picture yields a row and crops for each face that is found in it, instead of one row.

    Raises:
        UserError: If faces are to be found and no detector is installed.
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
    if read.status in TRANSIENT:  # no content was read, so the row is about the listed one
        row.identity = read.item.identity
    elif read.identity != read.item.identity:
        row.listed_as, row.attempts = (read.item.uri, read.item.identity), first_try
        row.listed_identity = read.item.identity or None
    return row


def _faces_of(row: Row, picture: Picture, crops: _Crops, sizes: Sequence[int]) -> list[Row]:
    """Returns a row for every face in ``picture`` and adds its crops, or one row if there is no face."""
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
    """Buffers for crops of several sizes, which grow because a picture may have any number of faces.

    Attributes:
        taken: Number of crops of each size.
    """

    def __init__(self, sizes: Collection[int], rows: int) -> None:
        self._room = {size: np.empty((rows, size, size, 3), np.uint8) for size in sizes}
        self.taken = dict.fromkeys(sizes, 0)

    def take(self, sizes: Collection[int]) -> list[Pixels]:
        """Returns the buffers of the next crop in each of ``sizes``, uint8 (S, S, 3) each."""
        outs = []
        for size in sizes:
            room, taken = self._room[size], self.taken[size]
            if taken == len(room):
                self._room[size] = room = np.concatenate([room, np.empty_like(room)])
            outs.append(room[taken])
            self.taken[size] = taken + 1
        return outs

    def pixels(self) -> dict[int, Pixels]:
        """Returns the crops of each size, uint8 (B, S, S, 3)."""
        return {size: room[: self.taken[size]] for size, room in self._room.items()}


def teachers_of(keys: pa.Table) -> list[int]:
    """Returns for each key the bits of the teachers that lack it."""
    if "teachers" not in keys.column_names:
        return [EVERY_TEACHER] * keys.num_rows
    bits: list[int] = keys["teachers"].to_pylist()
    return bits


def attempts_of(keys: pa.Table, teachers: int) -> list[list[int]]:
    """Returns for each key the number of this try of each of the ``teachers``, from 1."""
    if "attempts" not in keys.column_names:
        return [[1] * teachers] * keys.num_rows
    flat = keys["attempts"].combine_chunks().flatten().to_numpy()
    numbers: list[list[int]] = flat.reshape(-1, teachers).tolist()
    return numbers


def wanted_sizes(image_sizes: Sequence[int]) -> dict[int, int]:
    """Returns the sizes in ``image_sizes``, each with the bits of the teachers that want it."""
    wanted = dict.fromkeys(image_sizes, 0)
    for teacher, size in enumerate(image_sizes):
        wanted[size] |= 1 << teacher
    return wanted


def joined(batches: Sequence[Decoded], image_sizes: Sequence[int]) -> Decoded:
    """Returns several batches as one, without a copy if there is only one."""
    if len(batches) == 1 and batches[0].pixels:
        return batches[0]
    pixels = {}
    for size in set(image_sizes):
        none = np.empty((0, size, size, 3), np.uint8)
        pixels[size] = np.concatenate([none, *(batch.pixels[size] for batch in batches if batch.pixels)])
    rows = [row for batch in batches for row in batch.rows]
    teachers = [bits for batch in batches for bits in batch.teachers]
    return Decoded(rows, teachers, pixels)
