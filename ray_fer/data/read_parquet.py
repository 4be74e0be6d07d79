"""Reading images from Parquet files, neighbouring rows together.

A row group can only be read from its start. So the place that was reached is kept, a page at a time is in memory, and
the next rows go on from there, also in the process's next unit: however large its row groups, a file is decoded about
once per process that labels it. Rows asked for in no order cost a part of a row group each.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.items import READING_ERRORS, Item, Read, bounded, failed
from ray_fer.data.runs import TABLE_BYTES, TABLE_ROWS, Rows
from ray_fer.data.sources import local_identity
from ray_fer.data.sources.files import open_file, parquet_file
from ray_fer.data.sources.parquet import leaf_column

_KEPT = 4


def read_rows(run: Rows, max_bytes: int) -> list[Read]:
    """Reads rows of a table."""
    reads: list[Read] = []
    cursor = _taken(run.place, run.column)
    fresh = cursor is None
    while len(reads) < len(run.items):
        item, number = run.items[len(reads)], run.numbers[len(reads)]
        try:
            if cursor is None:
                cursor = _Cursor(run.place, run.column)
            reads.append(_read(cursor, item, number, max_bytes))
        except READING_ERRORS as error:
            if cursor is not None:
                cursor.close()
                cursor = None
            if not fresh:  # overwritten since it was opened: once more, from the file as it is now
                fresh = True
                continue
            reads += [failed(item, error) for item in run.items[len(reads) :]]
    if cursor is not None:
        _keep(cursor)
    return reads


def _read(cursor: _Cursor, item: Item, number: int, max_bytes: int) -> Read:
    if number >= cursor.rows:
        return Read(item, cursor.identity, None, "missing", f"its table has {cursor.rows} rows now")
    data = cursor.value(number)
    if data is None:
        return Read(item, cursor.identity, None, "undecodable", "the row holds null")
    return bounded(item, cursor.identity, data, max_bytes)


class _Cursor:
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
        """What row ``number`` holds."""
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
        """Whether the file is still the one that was opened, as far as can be told without a request."""
        if storage.is_remote(self.file):
            return True  # every request says which content it wants
        try:
            return local_identity(os.stat(self.file)) == self.identity
        except OSError:
            return False

    def close(self) -> None:
        """Lets go of the file."""
        self._opened.close()


_kept: OrderedDict[tuple[str, str], _Cursor] = OrderedDict()
_lock = threading.Lock()


def _taken(file: str, column: str) -> _Cursor | None:
    """The cursor that was kept for a column, for one reader at a time."""
    with _lock:
        cursor = _kept.pop((file, column), None)
    if cursor is not None and not cursor.current():
        cursor.close()
        return None
    return cursor


def _keep(cursor: _Cursor) -> None:
    key = (cursor.file, cursor.column)
    with _lock:
        others = [_kept.pop(key)] if key in _kept else []
        _kept[key] = cursor
        while len(_kept) > _KEPT:
            others.append(_kept.popitem(last=False)[1])
    for other in others:
        other.close()
