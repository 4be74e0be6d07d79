"""Image columns of Parquet files: encoded bytes, or Hugging Face's struct of bytes and path.

Only footers are read here; what is given as an image's size is the mean of its row group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer.data.sources import pages
from ray_fer.data.sources.files import open_parquet
from ray_fer.data.sources.pages import KEY_SCHEMA
from ray_fer.data.sources.uris import row_prefix
from ray_fer.errors import UserError


def list_rows(file: str, column: str | None) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the images in a column of ``file``.

    Args:
        file: URI of a Parquet file.
        column: None for the only one that holds images.

    Raises:
        UserError: naming the file, when it has no such column.
        OSError, pa.ArrowException, botocore.exceptions.BotoCoreError: when it cannot be read.
    """
    with open_parquet(file) as (table, identity):
        name = column or only_column(file, table.schema_arrow)
        leaf = leaf_column(table, name)
        if leaf is None:
            raise UserError(f"source={file}: {column_problem(table.schema_arrow, name)}")
        prefix, first = row_prefix(file, name), 0
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            size = group.column(leaf).total_uncompressed_size // max(1, group.num_rows)
            for start in range(first, first + group.num_rows, pages.PAGE_ROWS):
                yield _page(prefix, start, min(start + pages.PAGE_ROWS, first + group.num_rows), identity, size)
            first += group.num_rows


def leaf_column(table: pq.ParquetFile, column: str) -> int | None:
    """Number of the Parquet column that holds the bytes of the image column ``column``; None where it is none."""
    if column not in table.schema_arrow.names or not holds_images(table.schema_arrow.field(column).type):
        return None
    paths = [table.schema.column(i).path for i in range(len(table.schema))]
    wanted = f"{column}.bytes" if pa.types.is_struct(table.schema_arrow.field(column).type) else column
    return paths.index(wanted)


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def only_column(file: str, schema: pa.Schema) -> str:
    """The name of the only column that holds images.

    Raises:
        UserError: where there is none, or several.
    """
    names = [field.name for field in schema if holds_images(field.type)]
    if len(names) != 1:
        found = f"several columns of bytes ({', '.join(names)})" if names else "no column of bytes"
        raise UserError(f"source={file}: {found}; say which with column=…, or format=list for a list of URIs")
    return str(names[0])


def column_problem(schema: pa.Schema, name: str) -> str:
    """Why the column ``name`` holds no images."""
    if name not in schema.names:
        return f"column={name}: no such column, there are {', '.join(schema.names)}"
    kind = schema.field(name).type
    hint = "; for a list of URIs say format=list" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else ""
    return f"column={name}: holds {kind}, not the bytes of images{hint}"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _page(prefix: str, start: int, end: int, identity: str, size: int) -> pa.Table:
    rows = pa.array(np.arange(start, end)).cast(pa.string())
    uris = pc.binary_join_element_wise(prefix, rows, "")
    count = end - start
    columns = [uris, pa.repeat(identity, count), pa.repeat(pa.scalar(size, pa.int64()), count)]
    return pa.Table.from_arrays(columns, schema=KEY_SCHEMA)
