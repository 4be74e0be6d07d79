"""Image columns of Lance datasets: encoded bytes, Lance's blobs, or Hugging Face's struct of bytes and path.

A row is named by its row id, and what says that its image is another one is its identity:

- Where the dataset has stable row ids, the version that last changed the row. Appended and updated rows are new work,
  deleting others and compaction change nothing; an added column counts as a change of every row.
- Where it has none (Lance's default), the name of the data file that holds the column, and a row id says where in it.
  Appended rows are new work, deleting others and adding columns change nothing; what compaction or an update moved to
  another file is new.

A dataset that was overwritten is new in both cases. One with stable row ids that was removed and made anew in its place
starts at version 1 again: its rows pass for those of before.

For reading, a dataset is opened once per process, as it stands then. It is opened anew when a row is not there or is
not what was listed. Rows are read from the version that was opened, and their identities are those of that version.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.read import UNKNOWN, Item, Read, ReadBatch, Stat, bounded, failed
from ray_fer.data.sources import pages
from ray_fer.data.sources.pages import KEY_SCHEMA
from ray_fer.data.sources.rows import RowBatch, TableRow, column_problem, holds_images, only_column
from ray_fer.data.sources.spec import Format, Source
from ray_fer.errors import UserError, one_line

LANCE_ERRORS = (OSError, ValueError, RuntimeError, pa.ArrowException)
"""What opening and reading a dataset raises."""
_CHANGED_AT = "_row_last_updated_at_version"
Image = tuple[str, bytes | None]
"""Identity and bytes of a row."""
_KEPT = 4
_ROW = re.compile(r"(.*)#column=([^&#]*)&rowid=(\d+)", re.DOTALL)

_kept: OrderedDict[tuple[str, str], LanceColumn] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class LanceRow(TableRow):
    """An image in a Lance dataset: the row of ``column`` whose row id is ``number``."""

    format: ClassVar[str] = "lance"

    @property
    def uri(self) -> str:
        """Its URI, in which the column's name is percent-encoded."""
        return f"{_prefix(self.file, self.column)}{self.number}"


def _prefix(dataset: str, column: str) -> str:
    return f"{dataset}#column={quote(column, safe='')}&rowid="


class Lance(Format):
    """Lance datasets with a column of images."""

    extensions = (".lance",)
    takes_folders = True
    has_column = True

    def check(self, source: Source) -> None:
        """Refuses patterns."""
        if source.glob:
            raise UserError(
                f"source={source.uri}: a pattern names objects, and a Lance dataset is a folder; name each dataset"
            )

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the rows of the dataset as it is now.

        Only row ids and versions are read, and of blobs their sizes; the size of other images is the mean of their
        file.
        """
        try:
            dataset = _open(source.uri)
            name = source.column or only_column(source.uri, _plain_schema(dataset.schema))
            if not _is_image_column(dataset.schema, name):
                raise UserError(f"source={source.uri}: {column_problem(dataset.schema, name)}")
            yield from LanceColumn(source.uri, name, dataset).rows()
        except LANCE_ERRORS as error:
            raise UserError(f"source={source.uri}: cannot be read as Lance ({one_line(error)})") from None

    def parse(self, uri: str) -> LanceRow | None:
        """The row that ``uri`` names."""
        found = _ROW.fullmatch(uri)
        return LanceRow(found[1], unquote(found[2]), int(found[3])) if found else None

    def stat(self, places: Sequence[LanceRow]) -> list[Stat]:
        """Looks the rows up in their datasets as they are now."""
        found: dict[LanceRow, Stat] = {}
        for file, column in sorted({(row.file, row.column) for row in places}):
            numbers = [row.number for row in places if (row.file, row.column) == (file, column)]
            try:
                stats = LanceColumn(file, column).stats(numbers)
            except LANCE_ERRORS:  # the reader will say why
                continue
            found |= {LanceRow(file, column, number): stat for number, stat in stats.items()}
        return [found.get(row, UNKNOWN) for row in places]

    def batch(self, item: Item, place: LanceRow, before: ReadBatch | None) -> ReadBatch:
        """Rows of a column, in any order, are read together by their row ids."""
        return before if isinstance(before, _Rows) and before.add(item, place) else _Rows(item, place)


class _Rows(RowBatch):
    """Rows of one column of a dataset."""

    def read(self, max_bytes: int) -> list[Read]:
        with _lock:
            column = _kept.get((self.file, self.column))
        images: dict[int, Image] = {}
        try:
            if column is not None:
                images = column.take(self.numbers)
        except LANCE_ERRORS:  # its version was cleaned away
            images = {}
        if column is None or not self._as_listed(images):
            try:
                images = _opened(self.file, self.column).take(self.numbers)
            except LANCE_ERRORS as error:
                return [failed(item, error) for item in self.items]
        pairs = zip(self.items, self.numbers, strict=True)
        return [_read(item, images.get(number), max_bytes) for item, number in pairs]

    def _as_listed(self, images: dict[int, Image]) -> bool:
        found = (images.get(number) for number in self.numbers)
        pairs = zip(self.items, found, strict=True)
        return all(image is not None and item.identity in ("", image[0]) for item, image in pairs)


def _read(item: Item, image: Image | None, max_bytes: int) -> Read:
    if image is None:
        return Read(item, item.identity, None, "missing", "its dataset has no such row now")
    identity, data = image
    if data is None:
        return Read(item, identity, None, "undecodable", "the row holds null")
    return bounded(item, identity, data, max_bytes)


def _opened(uri: str, name: str) -> LanceColumn:
    column = LanceColumn(uri, name)
    with _lock:
        _kept[uri, name] = column
        _kept.move_to_end((uri, name))
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return column


class LanceColumn:
    """An image column of a dataset, as it stood when it was opened.

    Args:
        uri: the dataset's folder or prefix.
        column: its name.
        dataset: None to open it.

    Raises:
        UserError: when Lance is not installed.
        OSError, ValueError, RuntimeError, pa.ArrowException: when it cannot be read or has no such column.
    """

    def __init__(self, uri: str, column: str, dataset: Any = None) -> None:
        self._dataset = dataset or _open(uri)
        if not _is_image_column(self._dataset.schema, column):
            raise OSError(0, f"its dataset has no column of images {column!r} now")
        self._uri, self._column = uri, column
        self._is_blob = _is_blob(self._dataset.schema.field(column))
        self._versions = [_CHANGED_AT] if self._dataset.has_stable_row_ids else []
        fields = _field_ids(self._dataset.lance_schema, column)
        self._files: dict[int, tuple[str, int]] = {}
        for fragment in self._dataset.get_fragments():
            held = [file for file in fragment.data_files() if fields.intersection(file.fields)]
            names = "+".join(file.path.rsplit("/", 1)[-1].removesuffix(".lance") for file in held)
            size = sum(file.file_size_bytes or 0 for file in held) // max(1, fragment.physical_rows)
            self._files[fragment.fragment_id] = (names or "none", size)

    def rows(self) -> Iterator[pa.Table]:
        """Tables of `KEY_SCHEMA` of all rows."""
        prefix = _prefix(self._uri, self._column)
        for batch in self._scanner(batch_size=pages.PAGE_ROWS, scan_in_order=True).to_batches():
            table = pa.Table.from_batches([batch])
            identities, sizes = self._stats(table)
            uris = pc.binary_join_element_wise(prefix, table["_rowid"].cast(pa.string()).combine_chunks(), "")
            yield from pages.sliced(pa.Table.from_arrays([uris, identities, sizes], schema=KEY_SCHEMA))

    def stats(self, numbers: Sequence[int]) -> dict[int, tuple[str, int]]:
        """Identity and size of the rows among ``numbers`` that there are, by row id."""
        table = self._scanner(filter=_among(numbers)).to_table()
        stats = (column.to_pylist() for column in self._stats(table))
        return dict(zip(table["_rowid"].to_pylist(), zip(*stats, strict=True), strict=True))

    def take(self, numbers: Sequence[int]) -> dict[int, Image]:
        """The images of the rows among ``numbers`` that there are, by row id."""
        columns = [self._column, *self._versions]
        table = self._scanner(columns, filter=_among(numbers), blob_handling="all_binary").to_table()
        images = table[self._column].combine_chunks()
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        identities, _ = self._stats(table, sized=False)
        pairs = zip(identities.to_pylist(), images.to_pylist(), strict=True)
        return dict(zip(table["_rowid"].to_pylist(), pairs, strict=True))

    def _scanner(self, columns: list[str] | None = None, **options: Any) -> Any:
        if columns is None:
            columns = [*([self._column] if self._is_blob else []), *self._versions]
        return self._dataset.scanner(columns=columns, with_row_id=True, with_row_address=True, **options)

    def _stats(self, table: pa.Table, sized: bool = True) -> tuple[pa.Array, pa.Array]:
        """Identities and sizes of scanned rows."""
        fragments, which = np.unique(table["_rowaddr"].to_numpy() >> np.uint64(32), return_inverse=True)
        files = [self._files[int(fragment)] for fragment in fragments]
        if self._versions:
            identities = pc.binary_join_element_wise("v", table[_CHANGED_AT].cast(pa.string()).combine_chunks(), "")
        else:
            identities = pa.array([name for name, _ in files], pa.string()).take(pa.array(which))
        if sized and self._is_blob:
            sizes = pc.fill_null(pc.struct_field(table[self._column].combine_chunks(), "size"), 0).cast(pa.int64())
        else:
            sizes = pa.array([size for _, size in files], pa.int64()).take(pa.array(which))
        return identities, sizes


def _open(uri: str) -> Any:
    try:
        lance = import_module("lance")
    except ImportError:
        raise UserError(f"source={uri}: to read Lance datasets, pip install 'ray-fer[lance]'") from None
    try:
        return lance.dataset(uri, storage_options=storage.lance_options(uri))
    except ValueError as error:
        if "not found" in str(error).lower():
            raise FileNotFoundError(f"there is no dataset at {uri}") from None
        raise


def _among(numbers: Sequence[int]) -> str:
    return f"_rowid IN ({', '.join(map(str, numbers))})"


def _is_image_column(schema: pa.Schema, column: str) -> bool:
    if column not in schema.names:
        return False
    field = schema.field(column)
    return _is_blob(field) or holds_images(field.type)


def _is_blob(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"lance-encoding:blob") == b"true" or _is_blob_v2(field.type)


def _is_blob_v2(kind: pa.DataType) -> bool:
    return str(getattr(kind, "extension_name", "")).startswith("lance.blob")


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """``schema`` with blobs as what they are read as."""
    return pa.schema([field.with_type(pa.large_binary()) if _is_blob_v2(field.type) else field for field in schema])


def _field_ids(schema: Any, column: str) -> set[int]:
    """The fields in which a column's bytes are stored."""
    field = next(field for field in schema.fields() if field.name() == column)
    inner = {child.name(): child.id() for child in field.children()}
    return {inner["bytes"]} if "bytes" in inner else {field.id(), *inner.values()}
