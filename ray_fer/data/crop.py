"""Aligned square crops of faces out of pictures that are not crops yet.

A crop depends on nothing but the picture's bytes, the `Face` and the crop's side S. So training cuts from a face's URI
the very pixels that labelling saw, without the detector. A JPEG is shrunk inside the inverse DCT
by the smallest m/8 that leaves the face S pixels, so a large face in a large photo costs a fraction of its decoding.
Then the face's surroundings are shrunk by Pillow's BILINEAR filter (a triangle as wide as the shrink: antialiased) to
two pixels per pixel of the crop, and turned by bilinear interpolation. The last filter, which shrinks to S, leaves
crops as sharp as those that `decode` makes of ready ones (half a level apart on average). Beyond the picture the crop
is `BACKGROUND`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_fer.data import jpeg
from ray_fer.data.decode import (
    BACKGROUND,
    LEADING_PADDING,
    MAX_PIXELS,
    Opened,
    Pixels,
    decode_into,
    one_error,
    open_picture,
    to_rgb,
    upright,
)
from ray_fer.data.uris import Face, split_face

Matrix = NDArray[np.float64]

_EIGHTHS = 8
_OVERSAMPLING = 2
_MARGIN = 2  # pixels that interpolation and the triangle look at beyond the square


def decode_uri(uri: str, data: bytes, size: int) -> Pixels:
    """Decodes what ``uri`` names to uint8 (size, size, 3); see `decode_uri_into`."""
    out = np.empty((size, size, 3), np.uint8)
    decode_uri_into(uri, data, out)
    return out


def decode_uri_into(uri: str, data: bytes, out: Pixels) -> None:
    """Decodes what ``uri`` names, the whole picture squashed or a face cut out of it.

    Args:
        uri: of the picture, or of a face in it.
        data: the picture, encoded.
        out: uint8 (S, S, 3).

    Raises:
        DecodeError: as `ray_fer.data.decode.decode`; ``out`` is then as it was.
    """
    _, face = split_face(uri)
    if face is None:
        decode_into(data, out)
    else:
        Picture(data).cut_into(face, out)


class Picture:
    """An encoded picture that squares are cut out of. It is decoded once for every scale of libjpeg's that they need.

    Args:
        data: encoded.
        max_pixels: as for `ray_fer.data.decode.decode`.
    """

    def __init__(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
        self._data, self._max_pixels = data, max_pixels
        self._shrinkable = data.lstrip(LEADING_PADDING).startswith(jpeg.START)
        self._opened: dict[int, Opened] = {}

    def shrunk(self, side: int) -> tuple[Pixels, float]:
        """The upright picture with no side longer than ``side``, never enlarged.

        Returns:
            uint8 (H, W, 3), and how many of its pixels are one of the picture.

        Raises:
            DecodeError: as `ray_fer.data.decode.decode`.
        """

        def least(height: int, width: int) -> tuple[int, int]:
            return _least(height, width, _eighths(side / max(height, width)))

        opened = open_picture(self._data, least, max_pixels=self._max_pixels)
        self._opened[round(opened.scale * _EIGHTHS)] = opened  # a face may need this very scale
        with one_error():
            scale = min(1.0, side / max(opened.width, opened.height))
            size = max(1, round(opened.width * scale)), max(1, round(opened.height * scale))
            pixels = _rgb(opened.image.resize(size, Image.Resampling.BILINEAR, opened.box))
            pixels = upright(pixels, opened.orientation)
        return pixels, scale

    def cut_into(self, face: Face, out: Pixels) -> None:
        """Cuts ``face`` to ``out`` uint8 (S, S, 3).

        Raises:
            DecodeError: as `ray_fer.data.decode.decode`; ``out`` is then as it was.
        """
        opened = self._at(_eighths(len(out) / face.side))
        with one_error():
            out[...] = _cut(opened, face, len(out))

    def _at(self, eighths: int) -> Opened:
        eighths = eighths if self._shrinkable else _EIGHTHS
        if eighths not in self._opened:
            self._opened[eighths] = open_picture(
                self._data, lambda height, width: _least(height, width, eighths), max_pixels=self._max_pixels
            )
        return self._opened[eighths]


def cut_image(image: Image.Image, face: Face, size: int) -> Pixels:
    """Cuts ``face`` out of an upright L, RGB or RGBA image to uint8 (size, size, 3), a bit blurred, for a detector."""
    return _cut(Opened(image, 1, 1.0, *image.size), face, size, oversampling=1)


def _eighths(scale: float) -> int:
    """The least m with m/8 >= ``scale``, from 1 to 8."""
    return min(max(math.ceil(scale * _EIGHTHS), 1), _EIGHTHS)


def _least(height: int, width: int, eighths: int) -> tuple[int, int]:
    return -(-height * eighths // _EIGHTHS), -(-width * eighths // _EIGHTHS)


def _rgb(image: Image.Image) -> Pixels:
    pixels = to_rgb(image)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _cut(opened: Opened, face: Face, size: int, oversampling: int = _OVERSAMPLING) -> Pixels:
    """``face`` as uint8 (size, size, 3)."""
    to_stored = _turn(opened) @ _square(face, size)
    to_stored[:2] *= opened.scale
    corners = to_stored @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]], np.float64)
    pixels_per_pixel = face.side * opened.scale / size
    margin = _MARGIN * max(1.0, pixels_per_pixel)
    left, top = (max(0, math.floor(low - margin)) for low in corners[:2].min(axis=1))
    ends = zip(opened.image.size, corners[:2].max(axis=1), strict=True)
    right, bottom = (min(limit, math.ceil(high + margin)) for limit, high in ends)
    if left >= right or top >= bottom:
        return np.full((size, size, 3), BACKGROUND, np.uint8)
    shrink = min(1.0, oversampling / pixels_per_pixel)
    near = max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))
    surroundings = opened.image.resize(near, Image.Resampling.BILINEAR, (left, top, right, bottom))
    to_near = np.array([[near[0] / (right - left), 0, 0], [0, near[1] / (bottom - top), 0], [0, 0, 1]])
    to_near[:2, 2] = -to_near[0, 0] * left, -to_near[1, 1] * top
    turned = Image.fromarray(_rgb(surroundings)).transform(
        (size * oversampling, size * oversampling),
        Image.Transform.AFFINE,
        (to_near @ to_stored @ np.diag([1 / oversampling, 1 / oversampling, 1]))[:2].ravel().tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=(BACKGROUND,) * 3,
    )
    return np.asarray(turned.resize((size, size), Image.Resampling.HAMMING))


def _square(face: Face, size: int) -> Matrix:
    """Takes (x, y, 1) in pixels of the crop to the upright picture's."""
    step = face.side / size
    cos, sin = step * math.cos(math.radians(face.angle)), step * math.sin(math.radians(face.angle))
    half = size / 2
    return np.array(
        [
            [cos, -sin, face.cx - half * (cos - sin)],
            [sin, cos, face.cy - half * (sin + cos)],
            [0, 0, 1],
        ]
    )


def _turn(opened: Opened) -> Matrix:
    """Takes (x, y, 1) in pixels of the upright picture to those of the picture as it is stored: `upright` undone."""
    mirrored_x, mirrored_y = opened.orientation in (2, 3, 6, 7), opened.orientation in (3, 4, 7, 8)
    transposed = opened.orientation >= 5
    width, height = (opened.height, opened.width) if transposed else (opened.width, opened.height)
    x = [-1, 0, width] if mirrored_x else [1, 0, 0]
    y = [0, -1, height] if mirrored_y else [0, 1, 0]
    return np.array([y, x, [0, 0, 1]] if transposed else [x, y, [0, 0, 1]], np.float64)
