"""WebDataset shards: the images in tar files, read in place.

A tar has no index: its headers lie between the contents, so that listing a shard on S3 reads on from header to header
in blocks, all of it where members are smaller than a block. That is done once per content of a shard and machine: the
index is kept in the temporary folder. Locally, the headers alone are read.
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
from pathlib import Path
from typing import Any, BinaryIO, cast

import botocore.exceptions
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.data.decode import has_image_extension
from ray_fer.data.sources import pages
from ray_fer.data.sources.ahead import interleaved
from ray_fer.data.sources.files import open_file
from ray_fer.data.sources.objects import local_identity
from ray_fer.data.sources.pages import Key, key_table, key_tables
from ray_fer.data.sources.uris import Member, Range, parse
from ray_fer.errors import one_line

log = logging.getLogger(__name__)

SHARDS_AT_ONCE = 8
LARGEST_HEADER = 1 << 20
_LOOKED_UP = 64
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
            for table in _members(shard, listed):
                images = table.filter(pa.array([has_image_extension(uri) for uri in table["uri"].to_pylist()]))
                with lock:
                    counts["skipped"] += table.num_rows - images.num_rows
                if images.num_rows:
                    yield images
        except _SCANNING_ERRORS as error:
            log.warning("%s: cannot be listed, or not to its end (%s)", shard, one_line(error))
            with lock:
                counts["skipped"] += 1
                counts["unlisted"] += 1

    keys = list(zip(shards, identities, strict=True))
    if not any(map(storage.is_remote, shards)):
        return itertools.chain.from_iterable(map(members_of, keys))
    return interleaved(keys, members_of, SHARDS_AT_ONCE)


def _members(shard: str, listed: str) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the regular files in a shard, from the kept index where there is one."""
    if (kept := _kept_index(shard, listed)) and kept.exists():
        yield from map(_table, pq.ParquetFile(kept).iter_batches(pages.PAGE_ROWS))
        return
    opened, identity = open_file(shard, cache="readahead")
    with opened as file:
        kept = _kept_index(shard, identity)
        tables: list[pa.Table] = []
        for table in key_tables(_walk_headers(file, shard, identity)):
            if kept:
                tables.append(table)
            yield table
    if kept:
        sink = io.BytesIO()
        pq.write_table(pa.concat_tables([key_table([]), *tables]), sink, compression="zstd")
        try:
            storage.write_bytes(str(kept), sink.getvalue())
        except OSError as error:
            log.warning("%s: the index of %s is not kept (%s)", kept, shard, error.strerror)


def _table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


class _Headers:
    """A file as tarfile reads it, of which no header may be larger than `LARGEST_HEADER`."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> Any:
        if size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.tell()}")
        return self._file.read(size)


def _walk_headers(file: Any, shard: str, identity: str) -> Iterator[Key]:
    try:
        yield from _regular_files(_Headers(file), shard, identity)
    except (ValueError, OverflowError, RecursionError) as error:  # what tarfile raises is up to the bytes
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from None


def _regular_files(file: _Headers, shard: str, identity: str) -> Iterator[Key]:
    with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would hold them all in memory
            if member.isreg() and member.sparse is None:
                # As for local files: a name that is not UTF-8 is kept readable.
                name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                place = Range(identity, member.offset_data, member.size)
                yield Member(shard, name).uri, place.identity, member.size
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {tar.offset}")


def _kept_index(shard: str, identity: str) -> Path | None:
    if not storage.is_remote(shard):
        return None
    name = hashlib.sha256(f"{shard}\n{identity}".encode()).hexdigest()[:32]
    return storage.node_cache() / "tar" / f"{name}.parquet"


def locate(uri: str, shard_identity: str = "") -> Key | None:
    """The key of the member ``uri``, found through its shard's headers, which are walked once per process.

    Args:
        uri: of a member.
        shard_identity: of the shard as it is now; empty for whichever content of it was seen last.

    Returns:
        None where the shard has no such member; of several with one name the last, as tar itself takes it.

    Raises:
        OSError, tarfile.TarError, botocore.exceptions.BotoCoreError: when the shard cannot be read.
    """
    member = parse(uri)
    assert isinstance(member, Member)
    if not shard_identity and not storage.is_remote(uri):
        shard_identity = local_identity(os.stat(member.shard))
    index = _index(member.shard, shard_identity)
    places = pc.indices_nonzero(pc.equal(index["uri"], uri))
    if not len(places):
        return None
    row = index.slice(places[-1].as_py(), 1).to_pylist()[0]
    return row["uri"], row["identity"], row["size"]


def forget_index(shard: str, identity: str) -> None:
    """Walks the headers of a shard anew where they are wanted again; reading it has shown that it has others."""
    _index.cache_clear()
    if kept := _kept_index(shard, identity):
        kept.unlink(missing_ok=True)


@functools.lru_cache(maxsize=_LOOKED_UP)
def _index(shard: str, identity: str) -> pa.Table:
    """All members of a shard; ``identity`` tells its contents apart."""
    return pa.concat_tables([key_table([]), *_members(shard, identity)]).combine_chunks()
