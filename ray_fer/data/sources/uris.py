"""How an image inside another file is named.

- A member of a tar shard: ``s3://bucket/shard-0001.tar!/path/in.jpg``, as Java and Commons VFS spell it. What follows
  the first ``.tar!/`` is the member's name as it stands in the shard, unescaped, as the keys of loose objects are.
- A row of a table: ``s3://bucket/train.parquet#column=image&row=123``; the column's name is percent-encoded.
- A row of a Lance dataset by its row id: ``s3://bucket/faces.lance#column=image&rowid=123``.

A member's identity is its shard's and its range, ``etag@offset+size``: who holds it reads the member by one ranged
request. Without it the shard's headers are walked once per process. A rewritten shard or table is new work as a whole,
because nothing tells which of its images changed before all have been read; selection counts equal pictures once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_MEMBER = re.compile(r"(.*?\.tar)!/(.*)", re.DOTALL | re.IGNORECASE)
_ROW = re.compile(r"(.*)#column=([^&#]*)&row(id)?=(\d+)", re.DOTALL)
_RANGE = re.compile(r"(.*)@(\d+)\+(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a tar shard."""

    shard: str
    name: str

    @property
    def uri(self) -> str:
        """Its URI."""
        return f"{self.shard}!/{self.name}"


@dataclass(frozen=True, slots=True)
class Row:
    """An image in a table: row ``number``, from 0, of ``column`` of the Parquet file ``file``."""

    file: str
    column: str
    number: int

    @property
    def uri(self) -> str:
        """Its URI."""
        return f"{row_prefix(self.file, self.column)}{self.number}"


@dataclass(frozen=True, slots=True)
class LanceRow(Row):
    """An image in a Lance dataset: the row of ``file`` whose row id is ``number``."""

    @property
    def uri(self) -> str:
        """Its URI."""
        return f"{lance_prefix(self.file, self.column)}{self.number}"


@dataclass(frozen=True, slots=True)
class Range:
    """What a member's identity says: which content of the shard, and where in it, in bytes."""

    shard_identity: str
    offset: int
    size: int

    @property
    def identity(self) -> str:
        """The member's identity."""
        return f"{self.shard_identity}@{self.offset}+{self.size}"


def row_prefix(file: str, column: str) -> str:
    """The URIs of a column's rows up to their numbers."""
    return f"{file}#column={quote(column, safe='')}&row="


def lance_prefix(dataset: str, column: str) -> str:
    """The URIs of a Lance column's rows up to their row ids."""
    return f"{dataset}#column={quote(column, safe='')}&rowid="


def parse(uri: str) -> Member | Row | None:
    """What inside which file ``uri`` names, or None for a loose object."""
    if "!/" in uri and (found := _MEMBER.fullmatch(uri)):
        return Member(*found.groups())
    if "#column=" in uri and (found := _ROW.fullmatch(uri)):
        file, column, by_id, number = found.groups()
        return (LanceRow if by_id else Row)(file, unquote(column), int(number))
    return None


def parse_range(identity: str) -> Range | None:
    """The range in a member's identity, or None where it is none."""
    found = _RANGE.fullmatch(identity)
    return Range(found[1], int(found[2]), int(found[3])) if found else None
