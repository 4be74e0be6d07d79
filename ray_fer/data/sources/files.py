"""Files that hold images or lists, opened for reading with the identity of what is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.exceptions
import pyarrow as pa
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.data.sources.etags import object_identity
from ray_fer.data.sources.objects import local_identity

# At 100 MB/s and 10 ms a request, reading over 1 MiB costs as much as asking anew.
BLOCK_BYTES = 1 << 20
COLUMN_CHUNK_BYTES = 4 << 20
READING_ERRORS = (OSError, pa.ArrowException, botocore.exceptions.BotoCoreError)
"""What opening and reading them raises."""


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
