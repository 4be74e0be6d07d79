"""The canvas a face is drawn on: face coordinates in, pixels out.

Polygons are drawn with Pillow at 2-3 times the wanted size and averaged down, which is the only anti-aliasing. Furrows
and shading go to grey layers that are blurred and multiplied in.
"""

import contextlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ray_fer.synthetic.action_units import AU_INDEX, AUS, AuVector, combine
from ray_fer.synthetic.geometry import Points, landmarks, project
from ray_fer.synthetic.identity import Colour, Identity
from ray_fer.synthetic.nuisance import Nuisance

MID = 128
"""Grey level of the shading layer that leaves a pixel as it is."""


@cache
def _spline_matrix(count: int, closed: bool, steps: int) -> Points:
    """Weights that turn `count` control points into Catmull-Rom curve points, `steps` per span."""
    t = np.linspace(0, 1, steps, endpoint=False)
    basis = 0.5 * np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3])
    spans = count if closed else count - 1
    matrix = np.zeros((spans * steps + (not closed), count))
    for span in range(spans):
        for k in range(4):
            index = span + k - 1
            column = index % count if closed else min(max(index, 0), count - 1)
            matrix[span * steps : (span + 1) * steps, column] += basis[k]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def smooth(points: Points, closed: bool = False, steps: int = 4) -> Points:
    """A curve through the points of shape (n, 2): a point every `1 / steps` of a span, shape (m, 2)."""
    return _spline_matrix(len(points), closed, steps) @ points


def rgb(colour: Colour, factor: float = 1.0) -> tuple[int, int, int]:
    """A colour as Pillow wants it, made lighter or darker by a factor."""
    red, green, blue = (int(min(max(channel * factor, 0), 255)) for channel in colour)
    return red, green, blue


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The first colour with a share of the second."""
    red, green, blue = (a + share * (b - a) for a, b in zip(first, second, strict=True))
    return red, green, blue


class Painter:
    """A canvas in IOD coordinates: colour, and a grey layer of shading."""

    def __init__(self, identity: Identity, vector: AuVector, nuisance: Nuisance, size: int) -> None:
        self.identity, self.nuisance, self.pose = identity, nuisance, nuisance.pose
        self.scale = 3 if size <= 96 else 2
        self.side = size * self.scale
        self.unit = self.pose.iod * self.side
        self.points = landmarks(identity, vector)
        effective = combine(vector)
        self.side_au = [{au: float(row[AU_INDEX[au]]) for au in AUS} for row in effective]
        self.au = {au: (self.side_au[0][au] + self.side_au[1][au]) / 2 for au in AUS}
        self.canvas = Image.new("RGB", (self.side, self.side), rgb(nuisance.background))
        self.draw = ImageDraw.Draw(self.canvas)
        self.shade = Image.new("L", (self.side, self.side), MID)
        self.shader = ImageDraw.Draw(self.shade)
        self.soft = Image.new("L", (size, size), MID)
        self.softer = ImageDraw.Draw(self.soft)

    def pixels(self, points: Points) -> list[float]:
        """Points in IOD, shape (n, 2), as x, y, x, y, ... in pixels of the large canvas."""
        flat: list[float] = project(points, self.pose, self.side).ravel().tolist()
        return flat

    def polygon(self, points: Points, colour: Colour) -> None:
        """Fill an area of the colour canvas."""
        self.draw.polygon(self.pixels(points), fill=rgb(colour))

    @contextlib.contextmanager
    def within(
        self, contour: Points, colour: tuple[int, int, int]
    ) -> Iterator[tuple[ImageDraw.ImageDraw, NDArray[np.float64]]]:
        """Let the block draw on an area that a closed contour cuts out; the area is pasted when the block ends.

        Args:
            contour: Points in IOD, shape (n, 2).
            colour: RGB that fills the area first.

        Yields:
            What draws on the area, and the area's upper left corner on the large canvas, shape (2,).
        """
        pixels = project(contour, self.pose, self.side)
        corner = np.floor(pixels.min(axis=0)) - 1
        width, height = (np.ceil(pixels.max(axis=0)) + 1 - corner).astype(int).tolist()
        area = Image.new("RGB", (width, height), colour)
        yield ImageDraw.Draw(area), corner
        mask = Image.new("L", area.size, 0)
        ImageDraw.Draw(mask).polygon((pixels - corner).ravel().tolist(), fill=255)
        self.canvas.paste(area, (int(corner[0]), int(corner[1])), mask)

    def furrow(self, points: Points, strength: float, width: float = 0.035) -> None:
        """A crease of the skin: strength 0 (none) to 1 (black)."""
        level = strength * self.identity.wrinkle_scale
        if level > 0.02:
            fill = int(MID * (1 - min(level, 1.0)))
            self.shader.line(self.pixels(smooth(points)), fill=fill, width=max(1, round(width * self.unit)))

    def shadow(self, centre: tuple[float, float], radii: tuple[float, float], level: float) -> None:
        """A soft spot, darker (level < 0) or lighter. It is drawn on the small layer, because it is blurred anyway."""
        x, y = project(np.array([centre]), self.pose, self.soft.width)[0]
        rx, ry = radii[0] * self.pose.iod * self.soft.width, radii[1] * self.pose.iod * self.soft.width
        self.softer.ellipse((x - rx, y - ry, x + rx, y + ry), fill=int(MID * (1 + level)))

    def finish(self) -> NDArray[np.float32]:
        """The shaded picture: RGB in [0, 255], shape (size, size, 3)."""
        size = self.soft.width
        shading = _layer(self.shade.reduce(self.scale), size * 0.006) * _layer(self.soft, size * 0.035)
        flat = np.asarray(self.canvas.reduce(self.scale), np.float32)
        shaded: NDArray[np.float32] = flat * np.clip(shading, 0.2, 1.8)[:, :, None]
        return shaded


def _layer(layer: Image.Image, sigma: float) -> NDArray[np.float32]:
    return np.asarray(layer.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / np.float32(MID)


def arc(x: float, y: float, length: float, bend: float) -> Points:
    """A horizontal stroke about (x, y), shape (3, 2), in IOD; a positive bend arches it upwards."""
    return np.array([(x - length / 2, y), (x, y - bend), (x + length / 2, y)])
