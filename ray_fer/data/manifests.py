"""Labelled pictures as a manifest: a CSV or Parquet file of `path` and `label`, or a folder per class.

A manifest is what a person edits by hand and exports from a spreadsheet, so everything that can be wrong with it is
told in one line with the row as an editor counts it (the CSV's header is line 1). It is read whole: a million rows
take about a second and 150 MB, and sampling by class needs every label anyway.

Columns: `path` (a URI, or relative to the manifest's folder), `label` (class name in any case or alias; an index where
the classes are declared; empty or -1 for no label), and optionally `subject`, `group` (near-duplicates), `split`,
`video`, `frame`. Others are ignored, and so are case and spaces in the names of columns. Paths are resolved as those in
lists of URIs are (`resolve`), so that one picture has one spelling, and one label.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import botocore.exceptions
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.data.decode import has_image_extension
from ray_fer.data.sources.uris import resolve, split_face
from ray_fer.data.text import decoded, whole
from ray_fer.errors import UserError, one_line
from ray_fer.expressions import canonical, class_name, class_order

_T = TypeVar("_T")

_REQUIRED = ("path", "label")
_NAMES = ("subject", "group", "split", "video")
_OPTIONAL = (*_NAMES, "frame")
_PARSER_ROW = re.compile(r"Row #(\d+): (.*)")
_PACKED = (".tar", ".parquet")  # hold pictures that a folder cannot name
_READING_ERRORS = (OSError, botocore.exceptions.BotoCoreError)


@dataclass(frozen=True, eq=False)
class Manifest:
    """Labelled pictures, in file order.

    Attributes:
        uris: Where each of the N pictures is.
        labels: int64 (N,), index into `classes`; -1 where there is no label.
        classes: Class names; their order is the meaning of `labels`.
        subjects: The person in each picture, "" where unknown; None where the source does not tell. Likewise `groups`
            (cluster of near-duplicates) and `videos`.
        frames: Position of each picture in its video, -1 where unknown.
    """

    uris: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    subjects: list[str] | None = None
    videos: list[str] | None = None
    frames: list[int] | None = None
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.uris)

    def take(self, indices: NDArray[Any]) -> "Manifest":
        """The rows at `indices`, an integer array, or where a boolean array (N,) is true."""
        rows = np.arange(len(self))[indices].tolist()

        return replace(
            self,
            uris=[self.uris[row] for row in rows],
            labels=self.labels[rows],
            subjects=_pick(self.subjects, rows),
            videos=_pick(self.videos, rows),
            frames=_pick(self.frames, rows),
            groups=_pick(self.groups, rows),
        )

    def labeled(self) -> "Manifest":
        """Only the rows that have a label."""
        return self.take(self.labels >= 0)

    def counts(self) -> NDArray[np.int64]:
        """Labelled rows per class, int64 (C,)."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes)).astype(np.int64)


def _pick(values: list[_T] | None, rows: list[int]) -> list[_T] | None:
    return None if values is None else [values[row] for row in rows]


def read_manifest(uri: str, classes: Sequence[str] | None = None, split: str | None = None) -> Manifest:
    """Read a manifest, or a folder with one sub-folder per class.

    Args:
        uri: A `.csv` or `.parquet` file, or a folder; local or s3://.
        classes: The class set and its order; a label outside it is an error. Without, it is the expressions that occur
            in the whole file (so that all splits agree), in canonical order.
        split: Keep only the rows whose `split` column says this (of a folder: its sub-folder of this name).

    Raises:
        UserError: What is missing or wrong, in one line with the column or row.
    """
    known = None if classes is None else declared_classes(classes)
    if _is_folder(uri):
        from ray_fer.data.layouts import read_image_folder  # layouts builds on this module

        return read_image_folder(uri, known, split)
    table = _Table(uri, _REQUIRED)
    labels, known = _labels(table, known)
    frames = table.optional("frame")
    manifest = Manifest(
        uris=_uris(table),
        labels=labels,
        classes=known,
        subjects=table.optional("subject"),
        videos=table.optional("video"),
        frames=None if frames is None else [_frame(table, row, text) for row, text in enumerate(frames)],
        groups=table.optional("group"),
    )
    _check_duplicates(table, manifest)
    return manifest if split is None else manifest.take(_split_rows(table, split))


def named_pictures(uri: str) -> list[str]:
    """URIs of the pictures that a manifest names, or that lie in a folder at any depth, whatever their labels.

    Args:
        uri: as of `read_manifest`; the manifest needs no column `label`.

    Raises:
        UserError: for a file that is no manifest, and a path in it that can name no picture.
    """
    if not _is_folder(uri):
        return _uris(_Table(uri, ("path",)))
    from ray_fer.data.layouts import find_files  # layouts builds on this module

    root = storage.normalise(uri)
    names = find_files(root)
    if packed := next((name for name in names if name.lower().endswith(_PACKED)), None):
        raise UserError(f"{uri}: holds {packed}, whose pictures only a manifest can name, as {packed}!/a.jpg")
    pictures = [name for name in names if has_image_extension(name)]
    if not pictures:
        raise UserError(f"{uri}: no picture in the folder")
    return [f"{root}/{name}" for name in pictures]


def _is_folder(uri: str) -> bool:
    if uri.lower().endswith((".csv", ".parquet")):
        return False
    try:
        found = storage.is_dir(uri)
    except _READING_ERRORS as error:
        raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None
    if not found:
        raise UserError(f"{uri}: no .csv or .parquet file and no folder")
    return True


def declared_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """A class set as the user gives it: aliases resolved, custom names kept.

    Raises:
        UserError: for an empty set or a class that is there twice.
    """
    names = tuple(class_name(name) for name in classes)
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None or not names:
        raise UserError(f"classes: {repeated} is there twice" if names else "classes: none")
    return names


def write_manifest(uri: str, manifest: Manifest, splits: Sequence[str] | None = None) -> None:
    """Write a manifest as CSV; pictures under the CSV's folder get relative paths, so that the folder can move."""
    folder = _parent(uri)
    columns: dict[str, Sequence[object]] = {
        "path": [_relative(folder, path) for path in manifest.uris],
        "label": [manifest.classes[label] if label >= 0 else "" for label in manifest.labels.tolist()],
    }
    optional = (manifest.subjects, manifest.groups, splits, manifest.videos, manifest.frames)
    columns |= {name: values for name, values in zip(_OPTIONAL, optional, strict=True) if values is not None}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    storage.write_bytes(uri, text.getvalue().encode())


def _relative(folder: str, uri: str) -> str:
    """``uri`` from ``folder``, where that names the same: a key may have ``..`` in it."""
    path = uri.removeprefix(f"{folder}/")
    return path if resolve(folder, path) == uri else uri


def check_disjoint(train: Manifest, val: Manifest, names: str = "training and validation") -> None:
    """Make sure that no picture (whichever of its faces), subject, group or video is on both sides of a split.

    Args:
        train: one side.
        val: the other.
        names: of both sides, for the message.

    Raises:
        UserError: naming the first that is.
    """
    for what in ("uris", "subjects", "groups", "videos"):
        ours, theirs = getattr(train, what), getattr(val, what)
        if ours is None or theirs is None:
            continue
        if what == "uris":
            ours, theirs = ([split_face(uri)[0] for uri in uris] for uris in (ours, theirs))
        shared = sorted(set(ours).intersection(theirs) - {""})
        if shared:
            name = "picture" if what == "uris" else what.removesuffix("s")
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise UserError(f"{name} {shared[0]}{more} in both {names}: the score would be a leak")


class _Table:
    """The columns of a manifest as text ("" for null), and errors that know their row.

    Blanks around a value are dropped; not around a path in Parquet, which no person has typed.
    """

    def __init__(self, uri: str, required: Sequence[str]) -> None:
        self.uri = uri
        try:
            data = storage.read_bytes(uri)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise UserError(f"{uri}: cannot read the manifest ({type(error).__name__})") from None
        except _READING_ERRORS as error:
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
        return UserError(f"{self.uri}: row {self.number(row)}: {message}")

    def number(self, row: int) -> int:
        """The number by which a person finds row `row`: a CSV's line (quotes and blank lines count), else from 1."""
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
        return self.columns[name].to_pylist() if name in self.columns else None

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
        """Those of the file's columns that are ours, with what we call them."""
        ours = {name: name.strip().lower() for name in names}
        counts = Counter(ours[name] for name in names)
        for name in (*_REQUIRED, *_OPTIONAL):
            if counts[name] > 1:
                raise UserError(f"two columns `{name}`")
        for name in required:
            if not counts[name]:
                raise UserError(f"no column `{name}` (has: {' '.join(', '.join(names).splitlines())[:300]})")
        return {theirs: name for theirs, name in ours.items() if name in _REQUIRED or name in _OPTIONAL}

    def _unreadable(self, error: Exception) -> UserError:
        """What a reader says, with the row as `number` counts it where it names one."""
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
        # In text, too: the subject 12 is 12.0 in the file whose column has gaps.
        numbers = pc.match_substring_regex(column, r"^\d+\.0+$")
        if name in _NAMES and pc.any(numbers).as_py() and pc.all(pc.or_(numbers, pc.equal(column, ""))).as_py():
            column = pc.replace_substring_regex(column, r"\.0+$", "")
        return column


def _csv_reader(text: str) -> Any:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    return csv.reader(io.StringIO(text, newline=""))


def _labels(table: _Table, classes: tuple[str, ...] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as indices, and the classes; each distinct spelling is looked up once."""
    encoded = pc.dictionary_encode(table.columns["label"])
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    spellings: list[str] = encoded.dictionary.to_pylist()
    names: list[str | None] = []
    for code, spelling in enumerate(spellings):
        try:
            names.append(_label_name(spelling, classes))
        except UserError as error:
            raise table.error(int(np.argmax(codes == code)), str(error)) from None
    order = class_order(name for name in names if name is not None) if classes is None else classes
    index = np.array([-1 if name is None else order.index(name) for name in names], np.int64)
    return index[codes], order


def _label_name(spelling: str, classes: tuple[str, ...] | None) -> str | None:
    """The class that a cell of the label column means; None for no label."""
    index = whole(spelling)
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


def _parent(uri: str) -> str:
    return storage.normalise(uri).rsplit("/", 1)[0]


def _uris(table: _Table) -> list[str]:
    folder = _parent(table.uri)
    uris = []
    for row, path in enumerate(table.columns["path"].to_pylist()):
        if not path:
            raise table.error(row, "empty path")
        try:
            uris.append(resolve(folder, path))
        except UserError as error:
            raise table.error(row, str(error)) from None
    return uris


def _frame(table: _Table, row: int, text: str) -> int:
    if not text:
        return -1
    if (number := whole(text)) is None:
        raise table.error(row, f"frame {text!r} is not a number")
    return number


def _check_duplicates(table: _Table, manifest: Manifest) -> None:
    """The same picture (of a video file: the same frame) must not have two labels."""
    keys: Sequence[object] = manifest.uris
    if manifest.frames is not None:
        keys = list(zip(manifest.uris, manifest.frames, strict=True))
    if len(set(keys)) == len(keys):
        return
    first: dict[object, int] = {}
    for row, key in enumerate(keys):
        seen = first.setdefault(key, row)
        if manifest.labels[seen] != manifest.labels[row]:
            raise table.error(row, f"{manifest.uris[row]} has another label than in row {table.number(seen)}")


def _split_rows(table: _Table, split: str) -> NDArray[np.bool_]:
    if "split" not in table.columns:
        raise UserError(f"{table.uri}: split {split!r} is wanted, but there is no column `split`")
    column = table.columns["split"]
    rows: NDArray[np.bool_] = pc.equal(column, split).to_numpy(zero_copy_only=False)
    if not rows.any():
        there = ", ".join(sorted(pc.unique(column).to_pylist()))
        raise UserError(f"{table.uri}: no row of split {split!r} (there are: {there})")
    return rows
