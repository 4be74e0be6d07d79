"""Where the reading of a column of a Parquet file has arrived.

A row group can only be read from its start. So the place that was reached is kept, a page at a time is in memory, and
the next rows go on from there, also in the process's next unit. However large its row groups, a file is decoded about
once per process that labels it. Rows asked for in no order cost a part of a row group each.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.data.sources.files import local_identity, open_file, parquet_file
from ray_fer.data.sources.rows import TABLE_BYTES, TABLE_ROWS, column_problem

_KEPT = 4


def leaf_column(table: pq.ParquetFile, column: str) -> int | None:
    """Number of the Parquet column that holds the bytes of the image column ``column``; None where it is none."""
    if column_problem(table.schema_arrow, column):
        return None
    paths = [table.schema.column(i).path for i in range(len(table.schema))]
    wanted = f"{column}.bytes" if pa.types.is_struct(table.schema_arrow.field(column).type) else column
    return paths.index(wanted)


class Cursor:
    """A column of an open Parquet file and how far it has been read."""

    def __init__(self, file: str, column: str) -> None:
        self.file, self.column = file, column
        self._opened, self.identity = open_file(file)
        try:
            self._table = parquet_file(self._opened)
            leaf = leaf_column(self._table, column)
            if leaf is None:
                raise OSError(0, f"its table has no column of images {column!r} now")
        except BaseException:
            self._opened.close()
            raise
        self._path = self._table.schema.column(leaf).path
        groups = [self._table.metadata.row_group(number) for number in range(self._table.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups])
        bytes_per_row = [group.column(leaf).total_uncompressed_size // max(1, group.num_rows) for group in groups]
        self._batch_rows = [max(1, min(TABLE_ROWS, TABLE_BYTES // max(1, size))) for size in bytes_per_row]
        self.rows = self._table.metadata.num_rows
        self._group = -1
        self._first = 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    def value(self, number: int) -> bytes | None:
        """The bytes that row ``number`` holds; None where it holds null."""
        group = int(np.searchsorted(self._ends, number, side="right"))
        if group != self._group or number < self._first:
            self._group = group
            self._first = int(self._ends[group - 1]) if group else 0
            self._batch = None
            self._batches = self._table.iter_batches(
                self._batch_rows[group], row_groups=[group], columns=[self._path], use_threads=False
            )
        while self._batch is None or number >= self._first + len(self._batch):
            if self._batch is not None:
                self._first += len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                raise OSError(0, "its table ends before the rows do that it declares")
            column = batch.column(0)
            self._batch = column if column.type.num_fields == 0 else pc.struct_field(column, [0])
        value: bytes | None = self._batch[number - self._first].as_py()
        return value

    def current(self) -> bool:
        """Whether the file is still the one that was opened, as far as that shows without a request."""
        if storage.is_remote(self.file):
            return True  # every request says which content it wants
        try:
            return local_identity(os.stat(self.file)) == self.identity
        except OSError:
            return False

    def close(self) -> None:
        """Closes the file."""
        self._opened.close()


_kept: OrderedDict[tuple[str, str], Cursor] = OrderedDict()
_lock = threading.Lock()


def take_cursor(file: str, column: str) -> Cursor | None:
    """The cursor that was kept for a column, for one reader at a time; None where there is none that still holds."""
    with _lock:
        cursor = _kept.pop((file, column), None)
    if cursor is not None and not cursor.current():
        cursor.close()
        return None
    return cursor


def keep_cursor(cursor: Cursor) -> None:
    """Keeps a cursor for the next reader of its column; the least recent of too many is closed."""
    key = (cursor.file, cursor.column)
    with _lock:
        others = [_kept.pop(key)] if key in _kept else []
        _kept[key] = cursor
        while len(_kept) > _KEPT:
            others.append(_kept.popitem(last=False)[1])
    for other in others:
        other.close()
