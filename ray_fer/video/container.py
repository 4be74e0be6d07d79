"""What FFmpeg leaves to a player: which stream is the film, its orientation, its times, and what is missing.

A container promises frames by its index, if that lists them all, or bytes by the size that it declares. A number of
frames in a header promises nothing: it counts frames that an edit list leaves out, and writers guess it.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.errors import UserError

_NO_FILM = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
_USUAL_RATE = 25
_JITTER = 3  # frames that a time stamp may go back without being the first of another recording
_LEAP_S = 10.0  # as FFmpeg's own programs have it
_HEAD = 1 << 16

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_FLV_FILE_SIZE = b"\0\x08filesize\0"
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@dataclass(frozen=True)
class Container:
    """An open video file.

    Attributes:
        opened: PyAV's container.
        film: Its stream of moving pictures.
        size: In bytes.
        declared_size: What the file says that its size is; None if it says nothing.
        frames: How many frames its index promises to show; of a container that only lists key frames, their number.
        lists_all: Whether the index lists every frame.
    """

    opened: Any
    film: Any
    size: int
    declared_size: int | None
    frames: int
    lists_all: bool

    def clock(self) -> Clock:
        """Make a clock for the film's frames."""
        return Clock(self._step, self.may_leap)

    @property
    def _step(self) -> float:
        return 1 / float(self.film.average_rate or self.film.guessed_rate or _USUAL_RATE)

    def _lasts(self, end_s: float) -> bool:
        """Return whether the film is as long as its Matroska header says; of others, FFmpeg only estimates it."""
        if not self.opened.format.name.startswith("matroska") or self.opened.duration is None:
            return False
        return bool(end_s + 2 * self._step > self.opened.duration / av.time_base)

    @property
    def may_leap(self) -> bool:
        """Return whether time stamps may start anew or leap, as in a transport stream."""
        return bool(self.opened.format.flags & av.format.Flags.ts_discont.value)

    def missing(self, shown: int, end_s: float, error: str | None) -> str | None:
        """Say why the frames shown are not all that the file promises, or None if they are.

        Args:
            shown: The number of frames.
            end_s: The time of the last one.
            error: What ended the decoding before the file ended.
        """
        if self.lists_all and shown >= self.frames:
            return None  # what is damaged lies behind the last frame
        if error:
            return f"damaged after {shown} frames ({error})"
        if shown < self.frames:
            return f"ends after {shown} of {self.frames} frames"
        if self.declared_size is not None and self.declared_size > self.size and not self._lasts(end_s):
            return f"ends after {shown} frames, with {self.size} of {self.declared_size} bytes"
        return None


@contextmanager
def open_container(uri: str) -> Iterator[Container]:
    """Open a local file, or an S3 object, which is held in memory.

    Raises:
        UserError: Naming the file, when it does not exist or holds no film; the cover of a record is no film.
    """
    try:
        if storage.is_remote(uri):
            data = storage.read_bytes(uri)
            opened, head, size = av.open(io.BytesIO(data)), data[:_HEAD], len(data)
        else:
            path = storage.normalise(uri)
            with open(path, "rb") as file:
                head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
            opened = av.open(path)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{uri}: not a readable video ({error.strerror or error})") from None
    with opened:
        films = [stream for stream in opened.streams.video if not stream.disposition & _NO_FILM]
        if not films:
            cover = ", only a cover" if opened.streams.video else ""
            raise UserError(f"{uri}: no video stream in it{cover}")
        films = [stream for stream in films if stream.codec_context is not None]
        if not films:
            raise UserError(f"{uri}: nothing here decodes its video stream")
        best = opened.streams.best("video")
        film = best if best in films else films[0]
        entries = film.index_entries
        frames = sum(not entry.is_discard and entry.size > 0 for entry in entries)
        yield Container(opened, film, size, declared_size(head), frames, len(entries) >= film.frames > 0)


def declared_size(head: bytes) -> int | None:
    """Return the size in bytes that the head of a Matroska, AVI, FLV or ASF file declares, or None if it has none."""
    if head.startswith(_EBML):
        at = head.find(_SEGMENT)
        if at < 0 or len(head) < at + 12:
            return None
        length = 9 - head[at + 4].bit_length()
        if length > 8:
            return None
        size = int.from_bytes(head[at + 4 : at + 4 + length], "big") & ((1 << 7 * length) - 1)
        return None if size == (1 << 7 * length) - 1 else at + 4 + length + size  # all ones: unknown, a live recording
    if head.startswith(b"RIFF") and len(head) >= 8:
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if 0 < size < 0xFFFFFFFF else None
    if head.startswith(b"FLV"):
        at = head.find(_FLV_FILE_SIZE)
        value = head[at + len(_FLV_FILE_SIZE) :][:8] if at >= 0 else b""
        number = struct.unpack(">d", value)[0] if len(value) == 8 else 0.0
        return int(number) if 0 < number < 1 << 53 else None
    at = head.find(_ASF_FILE_PROPERTIES)
    if head.startswith(b"\x30\x26\xb2\x75") and 0 <= at <= len(head) - 92:
        size, broadcast = struct.unpack_from("<Q", head, at + 40)[0], head[at + 88] & 1
        return size if size and not broadcast else None
    return None


class Clock:
    """Turns time stamps into seconds since the first frame, which never go back.

    Stamps start anew, or leap in a container whose stamps may, where recordings were glued together or the counter ran
    over; the next frame then follows after one frame's time. A stamp that goes back by a few frames is out of order.

    Args:
        step: Seconds per frame, for frames without a stamp too.
        may_leap: Whether stamps may leap forward, as in a transport stream.
    """

    def __init__(self, step: float, may_leap: bool) -> None:
        self._step, self._may_leap = step, may_leap
        self._stamp: float | None = None
        self._position = -step
        self._latest = 0.0

    def __call__(self, stamp: float | None) -> float:
        """Return the time of the next frame from its stamp in seconds, None if it has none."""
        gap = self._step
        if stamp is not None and self._stamp is not None:
            gap = stamp - self._stamp
            if gap < -_JITTER * self._step or (self._may_leap and gap > _LEAP_S):
                gap = self._step
        if stamp is not None:
            self._stamp = stamp
        elif self._stamp is not None:
            self._stamp += self._step
        self._position += gap
        self._latest = max(self._latest, self._position)
        return self._latest


def as_shown(pixels: NDArray[np.uint8], frame: Any) -> NDArray[np.uint8]:
    """Turn and mirror pixels (S, S, C) of a frame as its display matrix says, to the nearest of the eight orientations.

    The matrix takes a stored pixel (x, y) to (a x + c y, b x + d y).
    """
    side_data = frame.side_data.get(Type.DISPLAYMATRIX)
    if side_data is None or len(bytes(side_data)) < 36:
        return pixels
    a, b, _, c, d = struct.unpack_from("=5i", bytes(side_data))
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
