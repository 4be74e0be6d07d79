"""How an image inside another file is named.

- A member of a tar shard: ``s3://bucket/shard-0001.tar!/path/in.jpg``, as Java and Commons VFS spell it (`tar`).
- A row of a Parquet file: ``s3://bucket/train.parquet#column=image&row=123`` (`parquet`).
- A row of a Lance dataset by its row id: ``s3://bucket/faces.lance#column=image&rowid=123`` (`lance`).
- A face in any of these pictures: ``photo.jpg#face=412.0,208.5,96.4,-7.3``. It says how the crop is cut, so that the
  same crop is cut again without a detector (see `Face`).

Each format names and parses its own images; the name of an image inside a file has ``!/`` or ``#`` in it.

A member's identity is its shard's and its range, ``etag@offset+size``, so that one ranged request reads the member.
Without it the shard's headers are walked once per process. A rewritten shard or table is new work as a whole, because
nothing tells which of its images changed before all have been read; selection counts equal pictures once.

URIs are compared as `resolve` returns them: a picture that a manifest or a list names is spelled as a listing spells
it. Two names of one file (links, a file system that ignores case) stay two; comparing contents finds them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ray_fer import storage
from ray_fer.data.formats import Place, parse
from ray_fer.errors import UserError

RANGE_PATTERN = r"(?s)^(.*)@(\d+)\+(\d+)$"
"""The pattern of `Range.identity`, for columns of identities."""
_RANGE = re.compile(RANGE_PATTERN)
FACE_FRAGMENT = r"#face=-?\d+\.\d,-?\d+\.\d,\d+\.\d,-?\d+\.\d$"
"""The pattern of what `Face.uri_in` appends, for columns of URIs."""
_FACE = re.compile(FACE_FRAGMENT)


@dataclass(frozen=True, slots=True)
class Range:
    """What a member's identity says: which content of the shard, and where the member is in it, in bytes."""

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
        cx: the centre's distance in pixels from the picture's left edge.
        cy: the centre's distance in pixels from the picture's top edge.
        side: in pixels.
        angle: in degrees, by which the crop's horizontal is turned clockwise against the picture's.
    """

    cx: float
    cy: float
    side: float
    angle: float

    def rounded(self) -> Face:
        """The face with its numbers to one decimal, as its URI has them: only so the URI cuts the same face again."""
        numbers = (round(float(value), 1) + 0.0 for value in (self.cx, self.cy, self.side, self.angle))
        return Face(*numbers)

    def uri_in(self, picture: str) -> str:
        """Its URI, where ``picture`` is the URI of the picture."""
        return f"{picture}#face={self.cx:.1f},{self.cy:.1f},{self.side:.1f},{self.angle:.1f}"


def split_face(uri: str) -> tuple[str, Face | None]:
    """The URI of the picture that ``uri`` lies in, and the face in it; None where ``uri`` is the whole picture."""
    if "#face=" in uri and (found := _FACE.search(uri)):
        face = Face(*map(float, found[0].removeprefix("#face=").split(",")))
        if face.side > 0 and found.end() == len(uri):
            return uri[: found.start()], face
    return uri, None


def place_of(uri: str) -> Place:
    """The place of the picture that ``uri`` is, or is a face in."""
    picture, _ = split_face(uri)
    return parse(picture) or Place(picture)


def parse_range(identity: str) -> Range | None:
    """The range in a member's identity, or None where it is none."""
    found = _RANGE.fullmatch(identity)
    return Range(found[1], int(found[2]), int(found[3])) if found else None


def resolve(folder: str, given: str) -> str:
    """The URI of what a file in ``folder`` names as ``given``, in the spelling of a listing.

    Relative paths are resolved against the folder, also on S3; ``file:`` URIs and ``~`` become absolute paths, and
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
    place = parse(picture) or Place(picture)
    uri = replace(place, file=_resolve_file(folder, place.file)).uri
    return face.uri_in(uri) if face else uri


def _is_plain(path: str) -> bool:
    """Whether ``path`` is a loose file's in its one spelling; False for a few that are, too."""
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
