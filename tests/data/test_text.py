from __future__ import annotations

import pytest

from ray_fer.data.text import decoded, parse_int, row_at
from ray_fer.errors import UserError


def test_utf_8_is_read_with_and_without_a_mark() -> None:
    assert decoded("ä\r\n".encode()) == decoded(b"\xef\xbb\xbf" + "ä\r\n".encode()) == "ä\r\n"
    assert decoded(b"") == ""


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (b"\xff", 1),
        (b"a\r\nb\xe4\n", 2),
        (b"a\rb\r\xe4", 3),
        (b"\n\n\n\xe4", 4),
        ("é\n".encode() + b"\xe9", 2),
        (b"a\n\0", 2),
    ],
)
def test_a_row_is_counted_as_an_editor_does(data: bytes, row: int) -> None:
    with pytest.raises(UserError, match=f"^row {row}: "):
        decoded(data)


def test_only_line_ends_end_a_row() -> None:
    assert row_at("a\x0b\x0c\u2028\x85b") == 1
    assert row_at("a\r\n\r\n") == 3


@pytest.mark.parametrize(
    ("cell", "number"),
    [("3", 3), ("3.0", 3), ("3.", 3), ("-1.00", -1), ("+2", 2), ("007", 7), ("", None), (".0", None), ("3.01", None)],
)
def test_parse_int_numbers(cell: str, number: int | None) -> None:
    assert parse_int(cell) == number
