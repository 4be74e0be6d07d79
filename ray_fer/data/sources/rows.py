"""Images in the rows of tables, as Parquet files and Lance datasets hold them: their places, batches and columns.

A column holds images as encoded bytes, or as Hugging Face's struct of bytes and path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from ray_fer.data.formats import Place
from ray_fer.data.read import Item, ReadBatch
from ray_fer.errors import UserError

TABLE_ROWS = 256
TABLE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class TableRow(Place):
    """An image in ``column`` of the table ``file``; how ``number`` counts the rows is up to the format."""

    exact_size: ClassVar[bool] = False

    column: str
    number: int


class RowBatch(ReadBatch):
    """Rows of one column of a table.

    Attributes:
        column: its name.
        numbers: of the rows.
    """

    ascending: ClassVar[bool] = False
    """Whether the numbers of a batch ascend."""

    def __init__(self, item: Item, place: TableRow) -> None:
        super().__init__(place.file, item)
        self.column, self.numbers = place.column, [place.number]

    def add(self, item: Item, place: TableRow) -> bool:
        """Adds a further row where it belongs to the batch; says whether it does."""
        fits = (self.file, self.column) == (place.file, place.column)
        fits = fits and not (self.ascending and place.number <= self.numbers[-1])
        # Rows of a group are given one size, so that this needs no sum.
        if fits and len(self.numbers) < min(TABLE_ROWS, TABLE_BYTES // max(1, item.size)):
            self.items.append(item)
            self.numbers.append(place.number)
            return True
        return False


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images."""
    if pa.types.is_struct(kind):
        return [_is_binary(field.type) for field in kind if field.name == "bytes"] == [True]
    return _is_binary(kind)


def image_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns that may hold encoded images."""
    return [field.name for field in schema if holds_images(field.type)]


def only_column(file: str, schema: pa.Schema) -> str:
    """The name of the only column that holds images.

    Raises:
        UserError: where there is none, or several.
    """
    names = image_columns(schema)
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
