"""Files that are images, or hold images or lists: their identity, and how they are opened for reading."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import botocore.exceptions
import pyarrow as pa
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.data.read import UNKNOWN, Stat
from ray_fer.data.sources.etags import object_identity
from ray_fer.data.sources.s3_requests import head_objects

# At 100 MB/s and 10 ms a request, reading over 1 MiB costs as much as asking anew.
BLOCK_BYTES = 1 << 20
COLUMN_CHUNK_BYTES = 4 << 20
OPENING_ERRORS = (OSError, pa.ArrowException, botocore.exceptions.BotoCoreError)
"""What opening and reading the files raises."""


def local_identity(status: os.stat_result) -> str:
    """Identity of a local file: its size and modification time in nanoseconds."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def stat_files(uris: Sequence[str]) -> list[Stat]:
    """Identity and size of each file, local or on S3; an empty identity for what cannot be found.

    Raises:
        botocore.exceptions.BotoCoreError: when the store cannot be asked at all.
    """
    files = list(dict.fromkeys(uris))
    remote = [uri for uri in files if storage.is_remote(uri)]
    found = {uri: _stat_local(uri) for uri in files if not storage.is_remote(uri)}
    found |= zip(remote, head_objects(remote), strict=True)
    return [found[uri] for uri in uris]


def _stat_local(path: str) -> Stat:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # the reader will say why
        return UNKNOWN
    return local_identity(status), status.st_size


def open_file(uri: str, cache: str = "none") -> tuple[Any, str]:
    """A seekable file, and its identity; on S3 every later request has to answer with that content.

    Args:
        uri: local or ``s3://``.
        cache: fsspec's kind of cache for S3: ``none``, or ``readahead`` in blocks.
    """
    fs, path = storage.filesystem(uri)
    if storage.is_remote(uri):
        remote = fs.open(path, "rb", block_size=BLOCK_BYTES, cache_type=cache)
        identity = object_identity(remote.details, remote.size)
        if not remote.details.get("ETag"):  # s3fs would wait for an empty one
            remote.details.pop("ETag", None)
        return remote, identity
    local = open(path, "rb")  # noqa: SIM115 - the caller closes it
    return local, local_identity(os.fstat(local.fileno()))


def parquet_file(opened: Any) -> pq.ParquetFile:
    """A Parquet file whose column chunks are read piece by piece, whatever the size of its row groups."""
    return pq.ParquetFile(opened, buffer_size=COLUMN_CHUNK_BYTES, pre_buffer=False)


@contextmanager
def open_parquet(uri: str) -> Iterator[tuple[pq.ParquetFile, str]]:
    """`parquet_file` of a URI, and its identity."""
    opened, identity = open_file(uri)
    with opened:
        yield parquet_file(opened), identity
