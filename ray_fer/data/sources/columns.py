"""Text, CSV and Parquet files of lists, read a page at a time."""

from __future__ import annotations

import csv
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from fsspec.compression import compr
from fsspec.utils import infer_compression

from ray_fer import storage
from ray_fer.data.sources import pages
from ray_fer.data.sources.etags import plain_etags
from ray_fer.data.sources.files import OPENING_ERRORS, open_parquet
from ray_fer.data.sources.pages import KEY_SCHEMA
from ray_fer.data.text import decoded
from ray_fer.errors import UserError, as_user_error

LIST_ERRORS = (*OPENING_ERRORS, UnicodeError, csv.Error, EOFError, zlib.error, lzma.LZMAError)
_UNKNOWN_SIZES = pa.array(["", "nan", "NaN", "None", "null"])


def guarded(file: str) -> AbstractContextManager[None]:
    """Turns the errors of reading ``file``, and of asking for what it names, into a `UserError` that names it."""
    return as_user_error(f"source={file}: cannot be read", LIST_ERRORS)


def ending(file: str) -> str:
    """The extension of a file that may be gzipped, like ``.csv``."""
    name = file.lower().removesuffix(".gz")
    return name[name.rfind(".") :]


@contextmanager
def open_unpacked(file: str) -> Iterator[Any]:
    """A file, unpacked where it is packed.

    Gzip is recognised by content: some files are delivered without the extension, others unpacked on the way.
    """
    fs, path = storage.filesystem(file)
    with fs.open(path, "rb") as opened:
        packed = opened.read(2) == b"\x1f\x8b"
        opened.seek(0)
        kind = "gzip" if packed else infer_compression(path.removesuffix(".gz"))
        if kind is None:
            yield opened
        else:
            with compr[kind](opened, mode="rb") as unpacked:
                yield unpacked


def text_lines(file: str) -> Iterator[str]:
    """Yields the lines of a text file in UTF-8, with their ends; the file is unpacked where it is packed.

    Raises:
        UserError: naming the file and the row that is not UTF-8.
    """
    with open_unpacked(file) as opened:
        lines = io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="")
        for row, line in enumerate(lines, 1):
            try:
                line.encode()
            except UnicodeEncodeError:
                try:
                    decoded(line.encode("utf-8", "surrogateescape"), row)
                except UserError as error:
                    raise UserError(f"source={file}: cannot be read ({error})") from None
            yield line


def column_names(file: str) -> list[str]:
    """The columns of a CSV, or of a Parquet file; of a struct its fields, like ``image.path``."""
    if ending(file) == ".parquet":
        with open_parquet(file) as (table, _):
            return [part.name for field in table.schema_arrow for part in field.flatten()]
    return next(filter(None, csv.reader(text_lines(file))), [])


def batches(file: str, names: Sequence[str], wanted: Sequence[str], headless: bool = False) -> Iterator[pa.Table]:
    """Yields some columns of a CSV or Parquet file, a page at a time.

    Args:
        file: URI.
        names: of all its columns.
        wanted: which of them.
        headless: whether it is a CSV whose first line is a row.

    Raises:
        UserError: where several columns have a wanted name.
    """
    for name in wanted:
        if (count := names.count(name)) > 1:
            raise UserError(f"source={file}: column={name}: {count} columns are called that")
    if ending(file) == ".parquet":
        with open_parquet(file) as (table, _):
            for batch in table.iter_batches(pages.PAGE_ROWS, columns=list(wanted), use_threads=False):
                yield pa.Table.from_batches([batch]).flatten()
        return
    with open_unpacked(file) as opened:
        reader = pyarrow.csv.open_csv(
            opened,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=list(names) if headless else None),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(wanted), column_types=dict.fromkeys(names, pa.string())
            ),
        )
        for batch in reader:
            yield from pages.sliced(pa.Table.from_batches([batch]))


def plain(name: str) -> str:
    """The plain spelling of a column's name: ``ETag``, ``e_tag`` and ``etag`` are one."""
    return name.strip().lower().replace("_", "")


def keys_of(uri: Any, identity: Any, size: Any) -> pa.Table:
    """A table of `KEY_SCHEMA` from columns of strings, with ETags in their plain spelling; 0 and "" are unknown.

    Raises:
        pyarrow.ArrowInvalid: naming the URI whose size is no whole number.
    """
    identity = plain_etags(pc.fill_null(identity, ""))
    size = _sizes(uri, size)
    return pa.Table.from_arrays([uri, identity, size], schema=KEY_SCHEMA)


def _sizes(uri: Any, size: Any) -> Any:
    size = pc.utf8_trim_whitespace(pc.fill_null(size, ""))
    size = pc.if_else(pc.is_in(size, value_set=_UNKNOWN_SIZES), "0", size)
    size = pc.replace_substring_regex(size, r"^(\d+)\.0*$", r"\1")  # how columns with gaps are saved
    wrong = pc.invert(pc.match_substring_regex(size, r"^\d{1,18}$"))
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise pa.ArrowInvalid(f"size {size[row].as_py()!r} of {uri[row].as_py()} is no whole number of bytes")
    return size.cast(pa.int64())
