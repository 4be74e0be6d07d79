"""The segments of a JPEG file: its orientation, the number of its scans, and the file without what warns in vain.

libjpeg warns of stray bytes, unknown revisions and damaged profiles in the same way as of lost pixels. `mended` writes
the file again from nothing but the segments that pixels depend on; what libjpeg warns of there is lost coded data.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

START = b"\xff\xd8"
MAX_SCANS = 64
"""Every scan of a progressive JPEG walks the whole picture (30 ms for 50 Mpx) and may be 75 bytes long, so that a small
file could take hours. Encoders write about ten."""

_END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # in coded data, 0xff is followed by 0 or is a restart
_END_OF_CODED_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MAX_SEGMENTS = 10_000
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_PROGRESSIVE = frozenset({0xC2, 0xCA})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
_IGNORED = frozenset({*range(0xE0, 0xF0), 0xFE})
_SEGMENTS = _FRAMES | _TABLES | _IGNORED | {0xDA}
_FILM = b"ftyp"  # the type of an MP4's first box, behind its length of four bytes
_COEFFICIENTS = 64
_OTHER_CODED_DATA = tuple(bytes(i * step % 251 + 1 for i in range(1, 1000)) for step in (197, 90))
_PADDING = (b"", b"\0", b"\0\t\n\r ")
_MIN_PADDING = 8  # bytes; up to seven behind coded data are overlooked by libjpeg itself


def has_too_many_scans(data: bytes) -> bool:
    """Counts scans up to the picture's end only: phones append a film, in which the marker's bytes occur by chance."""
    if data.count(_SCAN) <= MAX_SCANS:
        return False
    position, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or data[found.end() - 1] == 0xD9:
            return False
        scans += data[found.end() - 1] == 0xDA
        if scans > MAX_SCANS:
            return True
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return True


def orientation(data: bytes) -> int:
    """Finds the EXIF segment by hopping over the headers; a plain JPEG costs one or two microseconds."""
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker == b"\xff":
            position += 1
            continue
        if marker == b"\xda":
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xe1" and data.startswith(b"Exif\0\0", position + 4):
            return exif_orientation(data[position + 4 : end])
        position = end
    return 1


def exif_orientation(exif: bytes) -> int:
    """Reads tag 0x0112 from the first directory of an EXIF block; damage of any kind reads as 1, upright."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if tiff.startswith(b"II*\0"):
        order = "little"
    elif tiff.startswith(b"MM\0*"):
        order = "big"
    else:
        return 1

    def number(start: int, length: int) -> int:
        return int.from_bytes(tiff[start : start + length], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(tiff)), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
            return value if 1 <= value <= 8 else 1
    return 1


@dataclass
class Mended:
    """A JPEG file as `mended` writes it.

    Attributes:
        data: The file, with an end marker.
        complete: Whether it had an end marker, or every coefficient of every component is coded to its last bit.
        scans: The number of scans.
        progressive: Whether these refine each other.
    """

    data: bytes
    complete: bool
    scans: int
    progressive: bool

    def loss(self, pixels_of: Callable[[bytes], NDArray[np.uint8]]) -> str | None:
        """Says which share of the picture is missing, or None if nothing is missing at its end.

        What a decoder makes up for missing coded data depends on what follows: the end, or any other coded data.

        Args:
            pixels_of: A decoder that takes no offence, to uint8 (H, W, C).
        """
        cut, body = pixels_of(self.data), self.data[: -len(_END)]
        rows = np.flatnonzero(
            sum((cut != pixels_of(body + other + _END)).any(axis=(1, 2)) for other in _OTHER_CODED_DATA)
        )
        if not rows.size and self.complete:
            return None
        share = max(1, round(100 * (1 - int(rows[0]) / len(cut)))) if rows.size else 0
        if self.progressive and self.scans > 1:
            missing = f"it ends in scan {self.scans}: the last {share} % of the rows"
            return f"{missing} lack detail" if share else f"it ends after scan {self.scans}: all rows lack detail"
        return f"the last {share} % of the rows are missing" if share else "a component is missing"


@dataclass
class _Component:
    horizontal: int
    vertical: int
    # How many low bits are still unknown; None: never coded.
    unknown_bits: list[int | None] = field(default_factory=lambda: [None] * _COEFFICIENTS)


@dataclass
class _Picture:
    """What the segments so far say."""

    width: int = 0
    height: int = 0
    progressive: bool = False
    restart_interval: int = 0
    scans: int = 0
    components: dict[int, _Component] = field(default_factory=dict)

    def read_frame(self, marker: int, body: bytes) -> bool:
        if len(body) < 6 or len(body) < 6 + 3 * body[5]:
            return False
        self.progressive = marker in _PROGRESSIVE
        self.height, self.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        for i in range(6, 6 + 3 * body[5], 3):
            self.components[body[i]] = _Component(body[i + 1] >> 4, body[i + 1] & 15)
        return all(c.horizontal and c.vertical for c in self.components.values())

    def read_scan(self, body: bytes) -> bytes | None:
        """Notes which bits the scan codes; None if it is none of this frame's, else the header that libjpeg expects."""
        count = body[0] if body else 0
        ids = body[1 : 1 + 2 * count : 2]
        if not 1 <= count <= 4 or len(body) < 4 + 2 * count or not all(i in self.components for i in ids):
            return None
        if not self.progressive:  # there are encoders that leave these at zero, which means the same
            body = body[: 1 + 2 * count] + bytes([0, _COEFFICIENTS - 1, 0])
        first, last, low = body[1 + 2 * count], body[2 + 2 * count], body[3 + 2 * count] & 15
        for i in ids:
            for coefficient in range(first, min(last, _COEFFICIENTS - 1) + 1):
                self.components[i].unknown_bits[coefficient] = low
        self.scans += 1
        return body

    def is_complete(self) -> bool:
        return all(bits == 0 for component in self.components.values() for bits in component.unknown_bits)

    def restarts(self, ids: bytes) -> int:
        """How many restart markers a scan of these components has."""
        if not self.restart_interval:
            return 0
        across = max(component.horizontal for component in self.components.values())
        down = max(component.vertical for component in self.components.values())
        if len(ids) == 1:  # coded block by block, without the padding to whole minimum coded units
            only = self.components[ids[0]]
            width, height = -(-self.width * only.horizontal // across), -(-self.height * only.vertical // down)
            across = down = 1
        else:
            width, height = self.width, self.height
        units = -(-width // (8 * across)) * -(-height // (8 * down))
        return max(0, -(-units // self.restart_interval) - 1)


def mended(data: bytes) -> Iterator[Mended]:
    """Writes a JPEG again from the segments that its pixels depend on, and its EXIF block.

    Left out are profiles, comments, thumbnails, stray bytes before a marker, a start marker that is there twice, and
    what follows the picture; restart markers are numbered as they should be, and the end marker is there.

    Coded data does not say where it ends. Bytes between it and the next marker, or behind it in a file without an end
    marker, are left out if they are zeros, white space, or a film. There is one file for each reading of them, the
    plainest first. The one that libjpeg decodes without a warning is right: from coded data that is cut, bits are
    missing.

    Yields:
        Nothing for what has no frame, no scan, or more than `MAX_SCANS` scans.
    """
    film = data.find(_FILM, data.find(_SCAN) + 1) - 4
    tried = set()
    for end in (len(data), film) if film > 0 else (len(data),):
        for padding in _PADDING:
            file = _written(data[:end], padding)
            if file is not None and file.data not in tried:
                tried.add(file.data)
                yield file


def _written(data: bytes, padding: bytes) -> Mended | None:
    """Writes the file again; `padding` are the bytes to strip from the end of coded data."""
    picture = _Picture()
    parts = [START]
    position, stray, ended, adobe = 2, False, False, b""
    while data.startswith(START, position):
        position += 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or (picture.scans == 0 and START in data[position : found.start()]):
            break  # a start marker among stray bytes is a thumbnail's, whose segments would follow
        stray = stray or found.start() > position
        marker, body_at = data[found.end() - 1], found.end() + 2
        if marker == 0xD9:
            ended = picture.scans > 0
            position = found.end()
            break
        end = found.end() + int.from_bytes(data[found.end() : body_at], "big")
        if marker not in _SEGMENTS or end < body_at or end > len(data) or (picture.components and marker in _FRAMES):
            if picture.scans:
                break
            position = found.end()  # by chance among stray bytes, or a damaged length
            stray = True
            continue
        body = data[body_at:end]
        position = end
        if marker == 0xDA:
            header = picture.read_scan(body)
            if header is None or picture.scans > MAX_SCANS:
                return None
            if picture.scans == 1 and adobe:
                parts.append(_adobe(adobe, len(picture.components)))
            following = _END_OF_CODED_DATA.search(data, end)
            position = following.start() if following else len(data)
            coded = _stripped(data[end:position].rstrip(b"\xff"), padding)
            parts += [_segment(marker, header), _renumbered(coded, picture.restarts(header[1 : 1 + 2 * header[0] : 2]))]
            if data.startswith(START, position):
                break
        elif marker in _FRAMES:
            if not picture.read_frame(marker, body):
                return None
            parts.append(_segment(marker, body))
        else:
            if marker == 0xDD:
                picture.restart_interval = int.from_bytes(body[:2], "big")
            if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
                adobe = body[:12]
            parts.append(_kept(marker, body))
    if picture.scans == 0 or (stray and _goes_on(data, position)):
        return None
    parts.append(_END)
    return Mended(b"".join(parts), ended or picture.is_complete(), picture.scans, picture.progressive)


def _stripped(coded: bytes, padding: bytes) -> bytes:
    short = coded.rstrip(padding) if padding else coded
    if len(coded) - len(short) < _MIN_PADDING:
        return coded
    return short + b"\0" if short.endswith(b"\xff") else short  # a zero behind 0xff belongs to that


def _goes_on(data: bytes, position: int) -> bool:
    """Whether more of the same file follows, so that what ended there was the thumbnail in a damaged segment."""
    return data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] not in (b"\xd8", b"\xff", b"")


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _kept(marker: int, body: bytes) -> bytes:
    """The segment if pixels depend on it: tables, EXIF, and the mark that colours are stored as JFIF has them."""
    if marker in _TABLES or (marker == 0xE1 and body.startswith(b"Exif\0\0")):
        return _segment(marker, body)
    if marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        return _segment(marker, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    return b""


def _adobe(body: bytes, components: int) -> bytes:
    """Adobe's mark of how colours are stored; libjpeg takes a transform that it does not know for the usual one."""
    usual = 2 if components == 4 else 1
    return _segment(0xEE, body[:11] + bytes([body[11] if body[11] <= 2 else usual]))


def _renumbered(coded: bytes, restarts: int) -> bytes:
    """Numbers the restart markers from 0 modulo 8 if there are as many as there should be."""
    if restarts == 0 or len(_RESTART.findall(coded)) != restarts:
        return coded
    numbers = iter(range(restarts))
    return _RESTART.sub(lambda _: bytes([0xFF, 0xD0 + next(numbers) % 8]), coded)
