"""The index of a tar shard: which members it has, and where.

A tar has no index: its headers lie between the contents, so that listing a shard on S3 reads on from header to header
in blocks, all of it where members are smaller than a block. That is done once per content of a shard and machine: the
index is kept in the temporary folder. Locally, the headers alone are read, and only a long index is kept.

Of several members with one name only the last is there, as for tar itself: appending to a shard replaces. So a shard is
listed once its headers have been read to the end. Memory holds its index meanwhile, about 20 bytes and the name of
every member.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import botocore.exceptions
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.data.formats import Place
from ray_fer.data.sources import pages
from ray_fer.data.sources.files import local_identity, open_file
from ray_fer.data.sources.pages import KEY_SCHEMA, Key

log = logging.getLogger(__name__)

LARGEST_HEADER = 1 << 20
LONG_INDEX = 50_000
"""Members of a local shard whose headers take a second or so to walk."""
INDEX_ERRORS = (OSError, tarfile.TarError, botocore.exceptions.BotoCoreError)
"""What making an index raises."""
_LOOKED_UP = 64
_MEMBERS = pa.schema([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])


@dataclass(frozen=True, slots=True)
class Member(Place):
    """An image in the tar shard ``file``."""

    format: ClassVar[str] = "webdataset"

    name: str

    @property
    def uri(self) -> str:
        """Its URI."""
        return f"{self.file}!/{self.name}"


@dataclass(frozen=True, eq=False)
class Index:
    """The members of one content of a shard.

    Attributes:
        shard: its URI.
        identity: the shard's.
        members: table of `_MEMBERS` of the regular files; of several with one name the last.
        damage: the error that ended the walk before the shard's end; None where it reached the end.
    """

    shard: str
    identity: str
    members: pa.Table
    damage: Exception | None = None

    def keys(self, members: pa.Table) -> pa.Table:
        """``members`` (of `_MEMBERS`) as a table of `KEY_SCHEMA`."""
        columns = [members["name"], members["offset"].cast(pa.string()), members["size"].cast(pa.string())]
        name, offset, size = (column.combine_chunks() for column in columns)
        uris = pc.binary_join_element_wise(Member(self.shard, "").uri, name, "")
        ranges = pc.binary_join_element_wise(offset, size, "+")
        identities = pc.binary_join_element_wise(self.identity, ranges, "@")
        return pa.Table.from_arrays([uris, identities, members["size"]], schema=KEY_SCHEMA)


def index_of(shard: str, listed: str) -> Index:
    """The index of a shard, the kept one where there is one.

    Args:
        shard: URI.
        listed: its identity; empty for whichever content is there.

    Raises:
        OSError, tarfile.TarError, botocore.exceptions.BotoCoreError: when it cannot be opened.
    """
    if listed and (kept := _kept_index(shard, listed)) is not None:
        return Index(shard, listed, kept)
    opened, identity = open_file(shard, cache="readahead")
    with opened as file:
        if identity != listed and (kept := _kept_index(shard, identity)) is not None:
            return Index(shard, identity, kept)
        members, damage = _walked(file)
    index = Index(shard, identity, last_of_each_name(members), damage)
    if not damage and (storage.is_remote(shard) or members.num_rows >= LONG_INDEX):
        _keep_index(index)
    return index


def last_of_each_name(members: pa.Table) -> pa.Table:
    """``members`` (of `_MEMBERS`, in the order of the shard) without those that a later one of the same name replaces.

    ``./a.jpg`` and ``a.jpg`` are one name, for they are unpacked to one file.
    """
    name = members["name"]
    if pc.any(pc.match_substring_regex(name, r"(^|/)\.?/")).as_py():
        name = pa.array([os.path.normpath(f"/{each}") for each in name.to_pylist()], pa.string())
    return members.filter(pl.Series(pl.from_arrow(name)).is_last_distinct().to_arrow())


def _walked(file: Any) -> tuple[pa.Table, Exception | None]:
    """Every regular file in a shard, as a table of `_MEMBERS`, and the error that ended the walk before its end."""
    rows: list[tuple[str, int, int]] = []
    parts, damage = [_MEMBERS.empty_table()], None

    def pack() -> None:
        if rows:
            columns = [pa.array(column) for column in zip(*rows, strict=True)]
            parts.append(pa.Table.from_arrays(columns, schema=_MEMBERS))
            rows.clear()

    try:
        for row in _walk_headers(file):
            rows.append(row)
            if len(rows) == pages.PAGE_ROWS:
                pack()
    except INDEX_ERRORS as error:
        damage = error
    pack()
    return pa.concat_tables(parts), damage


class _Headers:
    """A file as tarfile reads it, of which no header may be larger than `LARGEST_HEADER`."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> Any:
        if size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.tell()}")
        return self._file.read(size)


def _walk_headers(file: Any) -> Iterator[tuple[str, int, int]]:
    try:
        yield from _regular_files(_Headers(file))
    except (ValueError, OverflowError, RecursionError) as error:  # what tarfile raises is up to the bytes
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from None


def _regular_files(file: _Headers) -> Iterator[tuple[str, int, int]]:
    """Yields name, offset and size of each regular file."""
    with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would hold them all in memory
            if member.isreg() and member.sparse is None:
                # As for local files: a name that is not UTF-8 is kept readable.
                name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                yield name, member.offset_data, member.size
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {tar.offset}")


def _place_of_index(shard: str, identity: str) -> Path:
    # The last line tells this kind of index from those that hold all members of a name.
    name = hashlib.sha256(f"{shard}\n{identity}\n{','.join(_MEMBERS.names)}".encode()).hexdigest()[:32]
    return storage.node_cache() / "tar" / f"{name}.parquet"


def _kept_index(shard: str, identity: str) -> pa.Table | None:
    place = _place_of_index(shard, identity)
    try:
        return pq.read_table(place, schema=_MEMBERS) if place.exists() else None
    except (OSError, pa.ArrowException):
        return None


def _keep_index(index: Index) -> None:
    place = _place_of_index(index.shard, index.identity)
    sink = io.BytesIO()
    pq.write_table(index.members, sink, compression="zstd")
    try:
        storage.write_bytes(str(place), sink.getvalue())
    except OSError as error:
        log.warning("%s: the index of %s is not kept (%s)", place, index.shard, error.strerror)


def locate(member: Member, shard_identity: str = "") -> Key | None:
    """The key of a member, found through its shard's headers, which are walked once per process.

    Args:
        member: its place.
        shard_identity: of the shard as it is now; empty for whichever content of it was seen last.

    Returns:
        None where the shard has no such member.

    Raises:
        OSError, tarfile.TarError, botocore.exceptions.BotoCoreError: when the shard cannot be read.
    """
    if not shard_identity and not storage.is_remote(member.file):
        shard_identity = local_identity(os.stat(member.file))
    index = _index(member.file, shard_identity)
    place = pc.index(index.members["name"], member.name).as_py()
    if place < 0:
        return None
    row = index.keys(index.members.slice(place, 1)).to_pylist()[0]
    return row["uri"], row["identity"], row["size"]


def forget_index(shard: str, identity: str) -> None:
    """Forgets the headers of a shard, once reading it has shown that it has others."""
    _index.cache_clear()
    _place_of_index(shard, identity).unlink(missing_ok=True)


@functools.lru_cache(maxsize=_LOOKED_UP)
def _index(shard: str, identity: str) -> Index:
    """As `index_of`; of a damaged shard the index of what was listed of it."""
    index = index_of(shard, identity)
    if index.damage and not isinstance(index.damage, tarfile.TarError):  # reading it may succeed later
        raise index.damage
    return index
