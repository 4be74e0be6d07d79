"""Decodes text files as people and programs save them, and parses the whole numbers in their cells."""

from __future__ import annotations

import codecs
import re

from ray_fer.errors import UserError

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_LINE_END = re.compile(r"\r\n|\r|\n")
# What fits into 64 bits.
_WHOLE = re.compile(r"([+-]?\d{1,18})(?:\.0*)?", re.ASCII)


def decoded(data: bytes, first: int = 1) -> str:
    """Decodes ``data``, which is UTF-8 with or without a byte order mark.

    Other encodings are not guessed: most bytes are a letter in several, and a path with a wrong letter is another path.

    Args:
        data: a file's bytes, or some of its rows.
        first: the number of the first of these rows.

    Raises:
        UserError: naming the row that is not UTF-8.
    """
    if data.startswith(_WIDE):
        raise UserError(f"row {first}: the text is UTF-16 or UTF-32; save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = row_at(data[: error.start].decode(), first)
        raise UserError(f"row {row}: not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8") from None
    if "\0" in text:
        raise UserError(f"row {row_at(text[: text.index(chr(0))], first)}: a NUL byte; save the file as UTF-8")
    return text


def row_at(before: str, first: int = 1) -> int:
    """The number of the row that follows the text ``before``, whose first row has the number ``first``."""
    return len(_LINE_END.findall(before)) + first


def parse_int(cell: str) -> int | None:
    """Parses a whole number, also as ``3.0``, which is how columns with gaps are saved; None where there is none."""
    found = _WHOLE.fullmatch(cell)
    return int(found[1]) if found else None
