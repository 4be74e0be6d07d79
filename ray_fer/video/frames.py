"""Frames of video files and clips of manifests, squashed to the square that the model sees, one at a time.

A video is never held in memory: each frame is decoded, turned upright, squashed by the same filter as a picture
(`ray_fer.data.decode`), and forgotten. Frames are numbered from 0 in the order in which they are shown. Their times
come from the time stamps, so that a variable frame rate is no special case, and continue where recordings were glued
together. Transparency and the shape of pixels are ignored.

Videos from the wild end early. A damaged or cut file gives the frames up to the damage and says so in `Video.problem`,
as far as the container promises anything: a transport stream or raw H.264 may end anywhere.

Decoding 640 x 360 H.264 and squashing it to 112 pixels takes about 2.5 ms a frame on one core.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_fer import storage
from ray_fer.data.loading import MAX_PICTURE_BYTES, Pixels, decode_read
from ray_fer.data.manifests import Manifest
from ray_fer.data.names import is_hidden
from ray_fer.data.read import Item, read_objects
from ray_fer.errors import UserError
from ray_fer.video.container import Container, as_shown, open_container

VIDEO_EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".ogv"}
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its number from 0, its pixels uint8 RGB (S, S, 3), and seconds since the first frame."""

    index: int
    pixels: Pixels
    time_s: float


class Video:
    """An iterable over the frames of one video file.

    Args:
        uri: A local file, or an ``s3://`` object, which is held in memory while it is open.
        size: Side S in pixels of the squares that frames are squashed to.

    Attributes:
        problem: After the iteration, why the frames are not all that the file promised; None if they are.

    Raises:
        UserError: On iteration, naming the file, when there is none, or none with a video stream.
    """

    def __init__(self, uri: str, size: int) -> None:
        self.uri = uri
        self.problem: str | None = None
        self._error: str | None = None
        self._size = size

    def __iter__(self) -> Iterator[Frame]:
        with open_container(self.uri) as container:
            clock, index, time_s = container.clock(), 0, 0.0
            self.problem = self._error = None
            for frame in self._decoded(container):
                time_s = clock(None if frame.time is None else float(frame.time))
                yield Frame(index, _squash(frame, self._size), time_s)
                index += 1
            self.problem = container.missing(index, time_s, self._error)
        if index == 0:
            raise UserError(f"{self.uri}: not one frame can be decoded" + (f": {self.problem}" if self.problem else ""))
        if self.problem:
            log.warning("%s: %s", self.uri, self.problem)

    def _decoded(self, container: Container) -> Iterator[Any]:
        """Yield every frame in the order of showing, up to the damage if there is any."""
        try:
            for packet in container.opened.demux(container.film):
                if packet.is_corrupt and not container.may_leap:  # in a transport stream, so is one before a joint
                    self._error = "a frame is cut"
                yield from packet.decode()
        except av.FFmpegError as error:
            self._error = error.strerror
            # A decoder that reorders frames still holds some from before the damage.
            with suppress(av.FFmpegError):
                yield from container.film.codec_context.decode(None)


def is_video(uri: str) -> bool:
    """Return whether the name of a file is that of a video."""
    return os.path.splitext(uri)[1].lower() in VIDEO_EXTENSIONS


def find_videos(sources: Sequence[str]) -> list[str]:
    """List the video files of ``sources``: files as they are, of a folder or prefix all with a video extension.

    Raises:
        UserError: When a source does not exist, or when there is no video in any of them.
    """
    found: list[str] = []
    for source in sources:
        fs, path = storage.filesystem(source)
        if fs.isdir(path):
            below = [name for name in fs.find(path) if not is_hidden(name.removeprefix(path).lstrip("/"))]
            names = sorted(filter(is_video, below))
            found += [f"s3://{name}" if storage.is_remote(source) else name for name in names]
        elif fs.exists(path):
            found.append(storage.normalise(source))
        else:
            raise UserError(f"source={source}: no such file or folder")
    if not found:
        raise UserError(f"source={','.join(sources)}: no video file there ({' '.join(sorted(VIDEO_EXTENSIONS))})")
    return list(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class Clip:
    """The M rows of a manifest that are frames of one video, in the order of time.

    Attributes:
        name: The manifest's ``video``, else the file.
        uris: One video file, or M pictures.
        frames: Frame numbers, int64 (M,), strictly increasing; in a video file they count from 0.
        rows: The rows of the manifest, int64 (M,).
    """

    name: str
    uris: tuple[str, ...]
    frames: NDArray[np.int64]
    rows: NDArray[np.int64]


def clips_of(manifest: Manifest) -> list[Clip]:
    """Group the rows of a manifest of video frames into clips, sorted by name.

    A row is a picture of one frame, or it names a video file and a frame of it.

    Raises:
        UserError: When a row lacks its frame, a picture its video, or when a frame is there twice.
    """
    if manifest.frames is None:
        raise UserError("data: the manifest has no column `frame`, so it is not about videos")
    members: dict[tuple[str, str], list[int]] = {}
    for row, (uri, frame) in enumerate(zip(manifest.uris, manifest.frames, strict=True)):
        is_file = is_video(uri)
        name = manifest.videos[row] if manifest.videos is not None else ""
        if frame < 0 or not (name or is_file):
            raise UserError(f"data: {uri} has no `{'frame' if frame < 0 else 'video'}` in the manifest")
        members.setdefault((name or uri, uri if is_file else ""), []).append(row)
    clips: list[Clip] = []
    for (name, file), listed in sorted(members.items()):
        if len(clips) and clips[-1].name == name:
            raise UserError(f"data: video {name} is more than one file in the manifest")
        rows = np.array(sorted(listed, key=lambda row: manifest.frames[row]), np.int64)  # type: ignore[index]
        frames = np.array([manifest.frames[row] for row in rows], np.int64)
        if (twice := np.flatnonzero(np.diff(frames) == 0)).size:
            raise UserError(f"data: frame {frames[twice[0]]} of video {name} is there twice")
        clips.append(Clip(name, (file,) if file else tuple(manifest.uris[row] for row in rows), frames, rows))
    return clips


def read_clip(clip: Clip, size: int) -> Iterator[tuple[int, Pixels | str]]:
    """Yield every frame of a clip: its number, and its pixels uint8 (S, S, 3) or why there are none.

    Of a video file these are all its frames, listed in the manifest or not, because a temporal model needs the
    neighbours too. The listed frames that the file turned out not to have come last.

    Raises:
        UserError: When the clip is a video file that cannot be opened.
    """
    if len(clip.uris) == 1 and is_video(clip.uris[0]):
        video, last = Video(clip.uris[0], size), -1
        for frame in video:
            last = frame.index
            yield frame.index, frame.pixels
        for absent in clip.frames[clip.frames > last]:
            yield int(absent), f"missing: {video.problem or f'the video has {last + 1} frames'}"
        return
    reads = read_objects((Item(uri, "", 0) for uri in clip.uris), MAX_PICTURE_BYTES)
    for index, read in zip(clip.frames, reads, strict=True):
        pixels = np.empty((size, size, 3), np.uint8)
        yield int(index), decode_read(read, pixels) or pixels


def _squash(frame: Any, size: int) -> Pixels:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    # Turning the small square is free.
    return np.ascontiguousarray(as_shown(np.asarray(image), frame))
