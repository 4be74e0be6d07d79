"""An image column of a Lance dataset: which rows it has, their identities and sizes, and their images.

Blobs are read as bytes. What the identity of a row is made of is in `lance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.sources import pages
from ray_fer.data.sources.pages import KEY_SCHEMA
from ray_fer.data.sources.rows import holds_images
from ray_fer.errors import UserError

LANCE_ERRORS = (OSError, ValueError, RuntimeError, pa.ArrowException)
"""What opening and reading a dataset raises."""
Image = tuple[str, bytes | None]
"""Identity and bytes of a row."""
_CHANGED_AT = "_row_last_updated_at_version"


def row_prefix(dataset: str, column: str) -> str:
    """The URIs of a column's rows up to their row ids."""
    return f"{dataset}#column={quote(column, safe='')}&rowid="


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
        self._dataset = dataset or open_dataset(uri)
        if not is_image_column(self._dataset.schema, column):
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
        prefix = row_prefix(self._uri, self._column)
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


def open_dataset(uri: str) -> Any:
    """Opens a dataset as it is now; raises as `LanceColumn`."""
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


def is_image_column(schema: pa.Schema, column: str) -> bool:
    """Whether there is such a column, and it may hold encoded images."""
    if column not in schema.names:
        return False
    field = schema.field(column)
    return _is_blob(field) or holds_images(field.type)


def _is_blob(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"lance-encoding:blob") == b"true" or _is_blob_v2(field.type)


def _is_blob_v2(kind: pa.DataType) -> bool:
    return str(getattr(kind, "extension_name", "")).startswith("lance.blob")


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """``schema`` with blobs as what they are read as."""
    return pa.schema([field.with_type(pa.large_binary()) if _is_blob_v2(field.type) else field for field in schema])


def _field_ids(schema: Any, column: str) -> set[int]:
    """The fields in which a column's bytes are stored."""
    field = next(field for field in schema.fields() if field.name() == column)
    inner = {child.name(): child.id() for child in field.children()}
    return {inner["bytes"]} if "bytes" in inner else {field.id(), *inner.values()}
