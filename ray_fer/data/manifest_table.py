"""The file of a manifest, CSV or Parquet: its columns as text, and errors that name the row."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.data.text import decoded, parse_int
from ray_fer.data.uris import resolve
from ray_fer.errors import STORE_ERRORS, UserError, one_line
from ray_fer.expressions import canonical, class_name, class_order

REQUIRED = ("path", "label")
_NAMES = ("subject", "group", "split", "video")
_OPTIONAL = (*_NAMES, "frame")
_PARSER_ROW = re.compile(r"Row #(\d+): (.*)")


class ManifestTable:
    """The columns of a manifest as text, "" for null.

    Blanks around a value are dropped; not around a path in Parquet, which no person has typed.

    Args:
        uri: of the file.
        required: columns that it must have.

    Raises:
        UserError: when it cannot be read, lacks a column, or has no row.
    """

    def __init__(self, uri: str, required: Sequence[str]) -> None:
        self.uri = uri
        try:
            data = storage.read_bytes(uri)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise UserError(f"{uri}: cannot read the manifest ({type(error).__name__})") from None
        except STORE_ERRORS as error:
            raise UserError(f"{uri}: cannot read the manifest ({one_line(error)})") from None
        self._csv: str | None = None
        try:
            if uri.lower().endswith(".csv"):
                self._csv = decoded(data)
            table = self._read_parquet(data, required) if self._csv is None else self._read_csv(self._csv, required)
        except UserError as error:
            raise UserError(f"{uri}: {error}") from None
        except (pa.ArrowException, OSError, csv.Error) as error:
            raise self._unreadable(error) from None
        self.columns = {name: self._strings(table.column(name).combine_chunks(), name) for name in table.column_names}
        if table.num_rows == 0:
            raise UserError(f"{uri}: the manifest is empty")

    def error(self, row: int, message: str) -> UserError:
        """The error that something is wrong with row ``row``."""
        return UserError(f"{self.uri}: row {self.number(row)}: {message}")

    def number(self, row: int) -> int:
        """The number by which a person finds row ``row``: a CSV's line (quotes and blank lines count), else from 1."""
        if self._csv is None:
            return row + 1
        reader = _csv_reader(self._csv)
        filled = -2  # the header is row -1
        start = 1
        for fields in reader:
            filled += bool(fields)
            if filled == row:
                return start
            start = reader.line_num + 1
        raise AssertionError(f"row {row} of {self.uri}")

    def optional(self, name: str) -> list[str] | None:
        """The column ``name``, None where there is none."""
        return self.columns[name].to_pylist() if name in self.columns else None

    def uris(self) -> list[str]:
        """The URI of each row's picture, resolved against the manifest's folder."""
        folder = storage.normalise(self.uri).rsplit("/", 1)[0]
        uris = []
        for row, path in enumerate(self.columns["path"].to_pylist()):
            if not path:
                raise self.error(row, "empty path")
            try:
                uris.append(resolve(folder, path))
            except UserError as error:
                raise self.error(row, str(error)) from None
        return uris

    def labels(self, classes: tuple[str, ...] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Labels as indices into the classes, int64 (N,), -1 for none; and the classes, where they are not declared."""
        encoded = pc.dictionary_encode(self.columns["label"])
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        spellings: list[str] = encoded.dictionary.to_pylist()
        names: list[str | None] = []
        for code, spelling in enumerate(spellings):
            try:
                names.append(_label_name(spelling, classes))
            except UserError as error:
                raise self.error(int(np.argmax(codes == code)), str(error)) from None
        order = class_order(name for name in names if name is not None) if classes is None else classes
        index = np.array([-1 if name is None else order.index(name) for name in names], np.int64)
        return index[codes], order

    def frames(self) -> list[int] | None:
        """The column ``frame`` as numbers, -1 where it is empty; None where there is none."""
        frames = self.optional("frame")
        return None if frames is None else [self._frame(row, text) for row, text in enumerate(frames)]

    def in_split(self, split: str) -> NDArray[np.bool_]:
        """Which rows are of ``split``, bool (N,)."""
        if "split" not in self.columns:
            raise UserError(f"{self.uri}: split {split!r} is wanted, but there is no column `split`")
        column = self.columns["split"]
        rows: NDArray[np.bool_] = pc.equal(column, split).to_numpy(zero_copy_only=False)
        if not rows.any():
            there = ", ".join(sorted(pc.unique(column).to_pylist()))
            raise UserError(f"{self.uri}: no row of split {split!r} (there are: {there})")
        return rows

    def _read_csv(self, text: str, required: Sequence[str]) -> pa.Table:
        header: list[str] = next(filter(None, _csv_reader(text)), [])
        wanted = self._wanted(header, required)
        data = text.encode()
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            # One block: rows longer than a block and quoted line breaks need no care, and the file is in memory anyway.
            read_options=pyarrow.csv.ReadOptions(block_size=max(len(data), 1), use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
        return table.rename_columns(list(wanted.values()))

    def _read_parquet(self, data: bytes, required: Sequence[str]) -> pa.Table:
        file = pyarrow.parquet.ParquetFile(pa.BufferReader(data))
        wanted = self._wanted(file.schema_arrow.names, required)
        table = file.read(columns=list(wanted)).select(list(wanted))
        return table.rename_columns(list(wanted.values()))

    def _wanted(self, names: Sequence[str], required: Sequence[str]) -> dict[str, str]:
        """The file's names of the columns that a manifest has, with the plain names."""
        ours = {name: name.strip().lower() for name in names}
        counts = Counter(ours[name] for name in names)
        for name in (*REQUIRED, *_OPTIONAL):
            if counts[name] > 1:
                raise UserError(f"two columns `{name}`")
        for name in required:
            if not counts[name]:
                raise UserError(f"no column `{name}` (has: {' '.join(', '.join(names).splitlines())[:300]})")
        return {theirs: name for theirs, name in ours.items() if name in REQUIRED or name in _OPTIONAL}

    def _unreadable(self, error: Exception) -> UserError:
        """The error that a reader raised, with the row as `number` counts it where the reader names one."""
        said = one_line(error)
        found = _PARSER_ROW.search(said) if self._csv is not None else None
        return self.error(int(found[1]) - 2, found[2]) if found else UserError(f"{self.uri}: {said}")

    def _strings(self, column: pa.Array, name: str) -> pa.Array:
        try:
            if pa.types.is_floating(column.type):  # how pandas stores integers with gaps
                column = pc.cast(pc.if_else(pc.is_nan(column), None, column), pa.int64())
            column = pc.fill_null(pc.cast(column, pa.string()), "")
            if name != "path" or self._csv is not None:
                column = pc.utf8_trim_whitespace(column)
        except pa.ArrowException:
            raise UserError(f"{self.uri}: column `{name}` is {column.type}, not text") from None
        # Text may have the same: the subject 12 is 12.0 in the file whose column has gaps.
        numbers = pc.match_substring_regex(column, r"^\d+\.0+$")
        if name in _NAMES and pc.any(numbers).as_py() and pc.all(pc.or_(numbers, pc.equal(column, ""))).as_py():
            column = pc.replace_substring_regex(column, r"\.0+$", "")
        return column

    def _frame(self, row: int, text: str) -> int:
        if not text:
            return -1
        if (number := parse_int(text)) is None:
            raise self.error(row, f"frame {text!r} is not a number")
        return number


def _csv_reader(text: str) -> Any:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    return csv.reader(io.StringIO(text, newline=""))


def _label_name(spelling: str, classes: tuple[str, ...] | None) -> str | None:
    """The class that a cell of the label column means; None for no label."""
    index = parse_int(spelling)
    if not spelling or index == -1:
        return None
    if classes is None:
        if index is not None:
            raise UserError(f"label {spelling} is an index: declare the classes that it counts")
        return canonical(spelling)
    name = {known.lower(): known for known in classes}.get(class_name(spelling).lower())
    if name is not None:
        return name
    if index is None or index < 0:
        raise UserError(f"unknown class {spelling!r} (known: {', '.join(classes)})")
    if index >= len(classes):
        raise UserError(f"label {spelling} is beyond the {len(classes)} classes {', '.join(classes)}")
    return classes[index]
