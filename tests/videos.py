"""Small videos that tests make for themselves: one colour per frame."""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import numpy as np

from ray_fer.synthetic.dataset import encode_mp4

COLOURS = {"neutral": (40, 40, 200), "anger": (200, 40, 40), "happiness": (40, 200, 40)}


def colour_frames(labels: list[str], size: int = 32) -> np.ndarray:
    """uint8 (T, S, S, 3): each frame in the colour of its label, with a little noise."""
    rng = np.random.default_rng(len(labels))
    frames = np.array([COLOURS[label] for label in labels])[:, None, None] + rng.normal(0, 4, (len(labels), 1, 1, 3))
    return np.broadcast_to(frames, (len(labels), size, size, 3)).clip(0, 255).astype(np.uint8)


def colour_video(labels: list[str], fps: int = 10) -> bytes:
    """An MP4 of `colour_frames`."""
    return encode_mp4(colour_frames(labels), fps)


def streamable_video(labels: list[str], fps: int = 10) -> bytes:
    """The same with its index in front and every frame a key frame, so that a cut file still opens."""
    # To a file: moving the index to the front means reading again what was written.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"g": "1", "threads": "1"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for frame in colour_frames(labels):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()


def grey_frames(count: int, size: int = 64) -> np.ndarray:
    """uint8 (T, S, S, 3): each frame in a grey of its own, four levels above the one before."""
    return np.broadcast_to((4 * np.arange(count) % 250)[:, None, None, None], (count, size, size, 3)).astype(np.uint8)


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    fps: int = 25,
    first: int = 0,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A video of uint8 (T, H, W, 3) in the container that the ending names; ``first`` is the first time stamp."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=fps, options={"threads": "1", **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = first + number
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path
