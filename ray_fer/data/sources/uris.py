"""How an image inside another file is named.

- A member of a tar shard: ``s3://bucket/shard-0001.tar!/path/in.jpg``, as Java and Commons VFS spell it. What follows
  the first ``.tar!/`` is the member's name as it stands in the shard, unescaped, as the keys of loose objects are.
- A row of a table: ``s3://bucket/train.parquet#column=image&row=123``; the column's name is percent-encoded.
- A row of a Lance dataset by its row id: ``s3://bucket/faces.lance#column=image&rowid=123``.
- A face in any of these pictures: ``photo.jpg#face=412.0,208.5,96.4,-7.3``, which says how the crop is cut, so that
  whoever holds it needs no detector to cut the same one again (see `Face`).

A member's identity is its shard's and its range, ``etag@offset+size``: who holds it reads the member by one ranged
request. Without it the shard's headers are walked once per process. A rewritten shard or table is new work as a whole,
because nothing tells which of its images changed before all have been read; selection counts equal pictures once.

Whoever compares URIs compares what `resolve` returns, in which a picture that a manifest or a list names is spelled as
a listing spells it. Two names of one file (links, a file system that ignores case) stay two: contents tell them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from ray_fer import storage
from ray_fer.errors import UserError

_MEMBER = re.compile(r"(.*?\.tar)!/(.*)", re.DOTALL | re.IGNORECASE)
_ROW = re.compile(r"(.*)#column=([^&#]*)&row(id)?=(\d+)", re.DOTALL)
RANGE_PATTERN = r"(?s)^(.*)@(\d+)\+(\d+)$"
"""The pattern of `Range.identity`, for columns of identities."""
_RANGE = re.compile(RANGE_PATTERN)
FACE_FRAGMENT = r"#face=-?\d+\.\d,-?\d+\.\d,\d+\.\d,-?\d+\.\d$"
"""The pattern of what `Face.uri_in` appends, for columns of URIs."""
_FACE = re.compile(FACE_FRAGMENT)


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


@dataclass(frozen=True, slots=True)
class Face:
    """A square crop of the upright picture. Parts of it may lie beyond the picture.

    Attributes:
        cx: of its centre, in pixels from the picture's left edge.
        cy: of its centre, in pixels from the picture's top edge.
        side: in pixels.
        angle: in degrees, by which the crop's horizontal is turned clockwise against the picture's.
    """

    cx: float
    cy: float
    side: float
    angle: float

    def rounded(self) -> Face:
        """What its URI says: a decimal of everything. Only a rounded face is cut again from its URI as it was."""
        numbers = (round(float(value), 1) + 0.0 for value in (self.cx, self.cy, self.side, self.angle))
        return Face(*numbers)

    def uri_in(self, picture: str) -> str:
        """Its URI, where ``picture`` is the URI of the picture."""
        return f"{picture}#face={self.cx:.1f},{self.cy:.1f},{self.side:.1f},{self.angle:.1f}"


def row_prefix(file: str, column: str) -> str:
    """The URIs of a column's rows up to their numbers."""
    return f"{file}#column={quote(column, safe='')}&row="


def lance_prefix(dataset: str, column: str) -> str:
    """The URIs of a Lance column's rows up to their row ids."""
    return f"{dataset}#column={quote(column, safe='')}&rowid="


def split_face(uri: str) -> tuple[str, Face | None]:
    """The URI of the picture that ``uri`` lies in, and which face of it; None where it is the whole picture."""
    if "#face=" in uri and (found := _FACE.search(uri)):
        face = Face(*map(float, found[0].removeprefix("#face=").split(",")))
        if face.side > 0 and found.end() == len(uri):
            return uri[: found.start()], face
    return uri, None


def parse(uri: str) -> Member | Row | None:
    """What inside which file the picture ``uri`` (see `split_face`) is, or None for a loose object."""
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


def resolve(folder: str, given: str) -> str:
    """The URI of what a file in ``folder`` names as ``given``, in the spelling of a listing.

    Relative paths are worked out against the folder, also on S3; ``file:`` URIs and ``~`` become absolute paths, and
    local paths lose ``//``, ``./`` and ``../``. What follows ``s3://`` is literal, and so is a member's name in its
    shard, which may begin with ``./``.

    Args:
        folder: normalised (see `storage.normalise`).
        given: a path or URI, of a member, row or face too.

    Raises:
        UserError: for what can name no object.
    """
    # Of most rows of a manifest there is nothing to find out.
    if _is_plain(given):
        return given if given[0] == "/" else f"{folder}/{given}"
    picture, face = split_face(given)
    match parse(picture):
        case Member(shard, name):
            uri = Member(_resolve_file(folder, shard), name).uri
        case Row() as row:
            uri = replace(row, file=_resolve_file(folder, row.file)).uri
        case _:
            uri = _resolve_file(folder, picture)
    return face.uri_in(uri) if face else uri


def _is_plain(path: str) -> bool:
    """Whether ``path`` is in its one spelling and of a loose file; no for some that are."""
    strange = ":" in path or "#" in path or "!" in path or "//" in path or "/." in path or "\0" in path
    return not strange and path[:1] not in "~." and path[-1] != "/"


def _resolve_file(folder: str, given: str) -> str:
    if given.startswith("s3://"):
        uri = given  # normalising would take a key's last slash
    elif storage.is_absolute(given):
        return storage.normalise(given)
    elif not storage.is_remote(folder):
        return storage.normalise(f"{folder}/{given}")
    else:
        uri = _below(folder, given)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not (bucket and key) or "\0" in key:
        raise UserError(f"{given!r} names no object")
    return uri


def _below(folder: str, path: str) -> str:
    bucket, *parts = folder.removeprefix("s3://").split("/")
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise UserError(f"{path} leads out of the bucket {bucket}")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "s3://" + "/".join([bucket, *parts])
