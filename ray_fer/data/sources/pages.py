"""The pages of a listing.

A page is an Arrow table of at most a few thousand images, so that labelling starts before the last key is listed and
memory does not grow with the bucket. Every image comes with its *identity*: the ETag on S3, size and modification time
on a local file system, and for an image inside a shard or a table that of the file around it. An image whose identity
has changed is new work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

PAGE_ROWS = 5000
FIRST_PAGE_ROWS = 256

KEY_SCHEMA = pa.schema([("uri", pa.string()), ("identity", pa.string()), ("size", pa.int64())])
PAGE_SCHEMA = KEY_SCHEMA.append(pa.field("source", pa.string()))

Key = tuple[str, str, int]
"""URI, identity and size in bytes."""


def key_table(keys: list[Key]) -> pa.Table:
    """Keys as a table of `KEY_SCHEMA`."""
    columns = zip(*keys, strict=True) if keys else ([], [], [])
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=KEY_SCHEMA)


def key_tables(keys: Iterable[Key]) -> Iterator[pa.Table]:
    """Yields tables of `KEY_SCHEMA`, none empty; the first is small, because a user waits for it.

    Where ``keys`` raises, the keys before are yielded before the exception is passed on.
    """
    rows: list[Key] = []
    limit = min(FIRST_PAGE_ROWS, PAGE_ROWS)
    try:
        for key in keys:
            rows.append(key)
            if len(rows) == limit:
                full, rows, limit = rows, [], PAGE_ROWS
                yield key_table(full)
    except Exception:
        if rows:
            yield key_table(rows)
        raise
    if rows:
        yield key_table(rows)


def sliced(table: pa.Table) -> Iterator[pa.Table]:
    """``table`` in pieces of at most `PAGE_ROWS`."""
    for start in range(0, table.num_rows, PAGE_ROWS):
        yield table.slice(start, PAGE_ROWS)
