"""Image columns of Parquet files.

A listing reads footers alone, and gives the mean of its row group as an image's size. How rows are read is in
`parquet_cursor`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer.data.read import READING_ERRORS, Item, Read, ReadBatch, Stat, bounded, failed
from ray_fer.data.sources import pages
from ray_fer.data.sources.file_sets import files_of, list_each
from ray_fer.data.sources.files import OPENING_ERRORS, open_parquet, stat_files
from ray_fer.data.sources.lists import list_uris
from ray_fer.data.sources.pages import KEY_SCHEMA
from ray_fer.data.sources.parquet_cursor import Cursor, keep_cursor, leaf_column, take_cursor
from ray_fer.data.sources.rows import RowBatch, TableRow, column_problem, image_columns, only_column
from ray_fer.data.sources.spec import ImageFormat, Source
from ray_fer.errors import UserError, one_line

FOOTERS = 16
_LOOKED_AT = 16
_ROW = re.compile(r"(.*)#column=([^&#]*)&row=(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row(TableRow):
    """An image in a Parquet file: row ``number``, from 0, of ``column``."""

    format: ClassVar[str] = "parquet"

    @property
    def uri(self) -> str:
        """Its URI, in which the column's name is percent-encoded."""
        return f"{row_prefix(self.file, self.column)}{self.number}"


def row_prefix(file: str, column: str) -> str:
    """The URIs of a column's rows up to their numbers."""
    return f"{file}#column={quote(column, safe='')}&row="


class Parquet(ImageFormat):
    """Parquet files with a column of images."""

    extensions = (".parquet",)
    takes_folders = True
    endings = (".parquet",)
    has_column = True
    includes_files = True

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the rows of the files of ``source``; of a column of paths the images that these name."""
        files = files_of(source, counts)
        column = source.column or (common_column(source.uri, files) if len(files) > 1 else None)

        def rows(file: str) -> Iterator[pa.Table]:
            try:
                yield from list_rows(file, column)
            except PathsOnlyError as paths:
                yield from list_uris(file, paths.column, counts)
            except OPENING_ERRORS as error:
                counts["unlisted"] += 1
                raise UserError(f"source={file}: cannot be read as Parquet ({one_line(error)})") from None

        yield from list_each(source, files, rows, counts)

    def parse(self, uri: str) -> Row | None:
        """The row that ``uri`` names."""
        found = _ROW.fullmatch(uri)
        return Row(found[1], unquote(found[2]), int(found[3])) if found else None

    def stat(self, places: Sequence[Row]) -> list[Stat]:
        """Looks at the files: a row's identity and size are its file's."""
        return stat_files([place.file for place in places])

    def batch(self, item: Item, place: Row, before: ReadBatch | None) -> ReadBatch:
        """Rows of a column in ascending order are read together."""
        return before if isinstance(before, _Rows) and before.add(item, place) else _Rows(item, place)


class _Rows(RowBatch):
    """Rows of one column of a Parquet file."""

    ascending = True

    def read(self, max_bytes: int) -> list[Read]:
        reads: list[Read] = []
        cursor = take_cursor(self.file, self.column)
        fresh = cursor is None
        while len(reads) < len(self.items):
            item, number = self.items[len(reads)], self.numbers[len(reads)]
            try:
                if cursor is None:
                    cursor = Cursor(self.file, self.column)
                reads.append(_read(cursor, item, number, max_bytes))
            except READING_ERRORS as error:
                if cursor is not None:
                    cursor.close()
                    cursor = None
                if not fresh:  # overwritten since it was opened: once more, from the file as it is now
                    fresh = True
                    continue
                reads += [failed(item, error) for item in self.items[len(reads) :]]
        if cursor is not None:
            keep_cursor(cursor)
        return reads


def _read(cursor: Cursor, item: Item, number: int, max_bytes: int) -> Read:
    if number >= cursor.rows:
        return Read(item, cursor.identity, None, "missing", f"its table has {cursor.rows} rows now")
    data = cursor.value(number)
    if data is None:
        return Read(item, cursor.identity, None, "undecodable", "the row holds null")
    return bounded(item, cursor.identity, data, max_bytes)


class PathsOnlyError(UserError):
    """A column of Hugging Face's structs with the pictures' paths and without their bytes.

    Attributes:
        column: the one of the paths, as `lists.list_uris` takes it.
    """

    def __init__(self, file: str, column: str) -> None:
        super().__init__(f"source={file}: column={column}: holds the paths of images, not images")
        self.column = column


def list_rows(file: str, column: str | None) -> Iterator[pa.Table]:
    """Yields tables of `KEY_SCHEMA` of the images in a column of ``file``.

    Args:
        file: URI of a Parquet file.
        column: None for the only one that holds images.

    Raises:
        PathsOnlyError: when the column names images that lie elsewhere.
        UserError: naming the file, when it has no such column, or one of nulls.
        OSError, pa.ArrowException, botocore.exceptions.BotoCoreError: when it cannot be read.
    """
    with open_parquet(file) as (table, identity):
        name = column or only_column(file, table.schema_arrow)
        leaf = leaf_column(table, name)
        if leaf is None:
            raise UserError(f"source={file}: {column_problem(table.schema_arrow, name)}")
        _check_filled(file, table, name, leaf)
        prefix, first = row_prefix(file, name), 0
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            size = group.column(leaf).total_uncompressed_size // max(1, group.num_rows)
            for start in range(first, first + group.num_rows, pages.PAGE_ROWS):
                yield _page(prefix, start, min(start + pages.PAGE_ROWS, first + group.num_rows), identity, size)
            first += group.num_rows


def common_column(place: str, files: Sequence[str]) -> str | None:
    """The column that holds the images in most of ``files``, by the footers of some that lie evenly among them.

    Args:
        place: URI of the source, for messages.
        files: URIs.

    Returns:
        None where none of them has exactly one column of images.

    Raises:
        UserError: where they have different ones, none of them more than half.
    """
    names: Counter[str] = Counter()
    for file in files[:: -(-len(files) // FOOTERS)]:
        try:
            with open_parquet(file) as (table, _):
                names.update(found if len(found := image_columns(table.schema_arrow)) == 1 else ())
        except OPENING_ERRORS:  # listing it will say why
            continue
    if not names:
        return None
    (name, count), *_ = names.most_common()
    if 2 * count <= names.total():
        raise UserError(f"source={place}: several columns of bytes ({', '.join(names)}); say which with column=…")
    return name


def _check_filled(file: str, table: pq.ParquetFile, column: str, leaf: int) -> None:
    """Raises where a column holds not a single image, as its footer or, without statistics, its first rows tell."""
    groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
    known = [group.column(leaf).statistics for group in groups]
    if all(each is not None and each.has_null_count for each in known):
        nulls, rows = sum(each.null_count for each in known), sum(group.num_rows for group in groups)
    else:
        path = table.schema.column(leaf).path
        first = next(table.iter_batches(_LOOKED_AT, columns=[path], use_threads=False), None)
        held = first.column(0) if first is not None else pa.nulls(0)
        held = pc.struct_field(held, [0]) if pa.types.is_struct(held.type) else held
        nulls, rows = held.null_count, len(held)
    if not rows or nulls < rows:
        return
    kind = table.schema_arrow.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        raise PathsOnlyError(file, f"{column}.path")
    raise UserError(f"source={file}: column={column}: holds nothing but nulls")


def _page(prefix: str, start: int, end: int, identity: str, size: int) -> pa.Table:
    rows = pa.array(np.arange(start, end)).cast(pa.string())
    uris = pc.binary_join_element_wise(prefix, rows, "")
    count = end - start
    columns = [uris, pa.repeat(identity, count), pa.repeat(pa.scalar(size, pa.int64()), count)]
    return pa.Table.from_arrays(columns, schema=KEY_SCHEMA)
