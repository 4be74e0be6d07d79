"""Image columns of Parquet files: encoded bytes, or Hugging Face's struct of bytes and path.

Only footers are read here; what is given as an image's size is the mean of its row group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer.data.sources import pages
from ray_fer.data.sources.files import READING_ERRORS, open_parquet
from ray_fer.data.sources.pages import KEY_SCHEMA
from ray_fer.data.sources.uris import row_prefix
from ray_fer.errors import UserError

FOOTERS = 16
_LOOKED_AT = 16


class PathsOnlyError(UserError):
    """A column of Hugging Face's structs with the pictures' paths and without their bytes.

    Attributes:
        column: the one of the paths, as `lists.list_uris` takes it.
    """

    def __init__(self, file: str, column: str) -> None:
        super().__init__(f"source={file}: column={column}: holds the paths of images, not images")
        self.column = column


def list_rows(file: str, column: str | None) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the images in a column of ``file``.

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
                names.update(found if len(found := _image_columns(table.schema_arrow)) == 1 else ())
        except READING_ERRORS:  # whoever lists it will say why
            continue
    if not names:
        return None
    (name, count), *_ = names.most_common()
    if 2 * count <= names.total():
        raise UserError(f"source={place}: several columns of bytes ({', '.join(names)}); say which with column=…")
    return name


def leaf_column(table: pq.ParquetFile, column: str) -> int | None:
    """Number of the Parquet column that holds the bytes of the image column ``column``; None where it is none."""
    if column_problem(table.schema_arrow, column):
        return None
    paths = [table.schema.column(i).path for i in range(len(table.schema))]
    wanted = f"{column}.bytes" if pa.types.is_struct(table.schema_arrow.field(column).type) else column
    return paths.index(wanted)


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


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images."""
    if pa.types.is_struct(kind):
        return [_is_binary(field.type) for field in kind if field.name == "bytes"] == [True]
    return _is_binary(kind)


def _image_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if holds_images(field.type)]


def only_column(file: str, schema: pa.Schema) -> str:
    """The name of the only column that holds images.

    Raises:
        UserError: where there is none, or several.
    """
    names = _image_columns(schema)
    if len(names) != 1:
        found = f"several columns of bytes ({', '.join(names)})" if names else "no column of bytes"
        raise UserError(
            f"source={file}: {found}; say which with column=…, or format=list for a list of URIs, in a sources.yaml"
        )
    return str(names[0])


def column_problem(schema: pa.Schema, name: str) -> str | None:
    """Why the column ``name`` holds no images; None where it may."""
    if name not in schema.names:
        return f"column={name}: no such column, there are {', '.join(schema.names)}"
    if (count := schema.names.count(name)) > 1:
        return f"column={name}: {count} columns are called that"
    kind = schema.field(name).type
    if holds_images(kind):
        return None
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain)
    hint = "; for a list of URIs say format=list" if is_text else ""
    return f"column={name}: holds {kind}, not the bytes of images{hint}"


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _page(prefix: str, start: int, end: int, identity: str, size: int) -> pa.Table:
    rows = pa.array(np.arange(start, end)).cast(pa.string())
    uris = pc.binary_join_element_wise(prefix, rows, "")
    count = end - start
    columns = [uris, pa.repeat(identity, count), pa.repeat(pa.scalar(size, pa.int64()), count)]
    return pa.Table.from_arrays(columns, schema=KEY_SCHEMA)
