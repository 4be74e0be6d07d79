"""Tar shards and tables of pictures that tests make for themselves."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def tar_of(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar shard of ``members`` in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet_of(columns: Mapping[str, pa.Array | list[object]], rows_per_group: int = 1000) -> bytes:
    """A Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink, row_group_size=rows_per_group)
    return sink.getvalue()


def hugging_face(pictures: Sequence[bytes | None]) -> pa.Array:
    """An image column as ``datasets`` writes it."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(pictures)], kind)
