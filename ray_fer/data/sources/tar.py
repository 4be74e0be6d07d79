"""WebDataset shards: the images in tar files, read in place.

A tar has no index: its headers lie between the contents, so that listing a shard on S3 reads on from header to header
in blocks, all of it where members are smaller than a block. That is done once per content of a shard and machine: the
index is kept in the temporary folder. Locally, the headers alone are read, and only a long index is kept.

Of several members with one name only the last is there, as for tar itself: appending to a shard replaces. So a shard is
listed once its headers have been read to the end, and memory holds its index meanwhile, about 20 bytes and the name of
every member.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import logging
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import botocore.exceptions
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.data.decode import has_image_extension
from ray_fer.data.names import are_hidden
from ray_fer.data.sources import pages
from ray_fer.data.sources.ahead import interleaved
from ray_fer.data.sources.files import open_file
from ray_fer.data.sources.objects import local_identity
from ray_fer.data.sources.pages import KEY_SCHEMA, Key
from ray_fer.data.sources.uris import Member, parse
from ray_fer.errors import one_line

log = logging.getLogger(__name__)

SHARDS_AT_ONCE = 8
LARGEST_HEADER = 1 << 20
LONG_INDEX = 50_000
"""Members of a local shard whose headers take a second or so to walk."""
_LOOKED_UP = 64
_MEMBERS = pa.schema([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
_SCANNING_ERRORS = (OSError, tarfile.TarError, botocore.exceptions.BotoCoreError)


def list_members(shards: Sequence[str], identities: Sequence[str], counts: Counter[str]) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the images in ``shards``, several of which are read at once.

    A shard that is damaged is listed up to the damage, with a warning; one that cannot be read is passed over and left
    to the next run.

    Args:
        shards: URIs of tar files.
        identities: theirs as listed; of what was listed before, the kept index is taken.
        counts: ``skipped`` grows by the members without an image's extension and the shards that cannot be read,
            ``unlisted`` by the latter.
    """
    lock = threading.Lock()

    def members_of(key: tuple[str, str]) -> Iterator[pa.Table]:
        shard, listed = key
        try:
            found = _index_of(shard, listed)
            for members in pages.sliced(found.members):
                images = members.filter(pc.and_not(_are_images(members["name"]), are_hidden(members["name"])))
                with lock:
                    counts["skipped"] += members.num_rows - images.num_rows
                if images.num_rows:
                    yield found.keys(images)
            if found.damage:
                raise found.damage
        except _SCANNING_ERRORS as error:
            log.warning("%s: cannot be listed, or not to its end (%s)", shard, one_line(error))
            with lock:
                counts["skipped"] += 1
                counts["unlisted"] += 1

    keys = list(zip(shards, identities, strict=True))
    if not any(map(storage.is_remote, shards)):
        return itertools.chain.from_iterable(map(members_of, keys))
    return interleaved(keys, members_of, SHARDS_AT_ONCE)


def _are_images(names: pa.ChunkedArray) -> pa.Array:
    return pa.array([has_image_extension(name) for name in names.to_pylist()], pa.bool_())


@dataclass(frozen=True, eq=False)
class _Index:
    """What is in one content of a shard.

    Attributes:
        shard: its URI.
        identity: the shard's.
        members: table of `_MEMBERS` of the regular files; of several with one name the last.
        damage: why there may be more.
    """

    shard: str
    identity: str
    members: pa.Table
    damage: Exception | None = None

    def keys(self, members: pa.Table) -> pa.Table:
        """Some of the members as a table of `KEY_SCHEMA`."""
        columns = [members["name"], members["offset"].cast(pa.string()), members["size"].cast(pa.string())]
        name, offset, size = (column.combine_chunks() for column in columns)
        uris = pc.binary_join_element_wise(Member(self.shard, "").uri, name, "")
        ranges = pc.binary_join_element_wise(offset, size, "+")
        identities = pc.binary_join_element_wise(self.identity, ranges, "@")
        return pa.Table.from_arrays([uris, identities, members["size"]], schema=KEY_SCHEMA)


def _index_of(shard: str, listed: str) -> _Index:
    """The index of a shard, the kept one where there is one.

    Args:
        shard: URI.
        listed: its identity; empty for whichever content is there.

    Raises:
        OSError, tarfile.TarError, botocore.exceptions.BotoCoreError: when it cannot be opened.
    """
    if listed and (kept := _kept_index(shard, listed)) is not None:
        return _Index(shard, listed, kept)
    opened, identity = open_file(shard, cache="readahead")
    with opened as file:
        if identity != listed and (kept := _kept_index(shard, identity)) is not None:
            return _Index(shard, identity, kept)
        members, damage = _walked(file)
    index = _Index(shard, identity, last_of_each_name(members), damage)
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
    """Every regular file in a shard, as a table of `_MEMBERS`, and what ended the walk before its end."""
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
    except _SCANNING_ERRORS as error:
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
    """Name, offset and size of each."""
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


def _keep_index(index: _Index) -> None:
    place = _place_of_index(index.shard, index.identity)
    sink = io.BytesIO()
    pq.write_table(index.members, sink, compression="zstd")
    try:
        storage.write_bytes(str(place), sink.getvalue())
    except OSError as error:
        log.warning("%s: the index of %s is not kept (%s)", place, index.shard, error.strerror)


def locate(uri: str, shard_identity: str = "") -> Key | None:
    """The key of the member ``uri``, found through its shard's headers, which are walked once per process.

    Args:
        uri: of a member.
        shard_identity: of the shard as it is now; empty for whichever content of it was seen last.

    Returns:
        None where the shard has no such member.

    Raises:
        OSError, tarfile.TarError, botocore.exceptions.BotoCoreError: when the shard cannot be read.
    """
    member = parse(uri)
    assert isinstance(member, Member)
    if not shard_identity and not storage.is_remote(uri):
        shard_identity = local_identity(os.stat(member.shard))
    index = _index(member.shard, shard_identity)
    place = pc.index(index.members["name"], member.name).as_py()
    if place < 0:
        return None
    row = index.keys(index.members.slice(place, 1)).to_pylist()[0]
    return row["uri"], row["identity"], row["size"]


def forget_index(shard: str, identity: str) -> None:
    """Walks the headers of a shard anew where they are wanted again; reading it has shown that it has others."""
    _index.cache_clear()
    _place_of_index(shard, identity).unlink(missing_ok=True)


@functools.lru_cache(maxsize=_LOOKED_UP)
def _index(shard: str, identity: str) -> _Index:
    """As `_index_of`; of a damaged shard what was listed of it."""
    index = _index_of(shard, identity)
    if index.damage and not isinstance(index.damage, tarfile.TarError):  # it may be read another time
        raise index.damage
    return index
