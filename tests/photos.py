"""Photos with drawn faces at known places."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ray_fer.synthetic.action_units import neutral_vector
from ray_fer.synthetic.face import render_face
from ray_fer.synthetic.identity import draw_identity
from ray_fer.synthetic.nuisance import Nuisance

WIDTH, HEIGHT = 640, 480
_WALL = (120, 130, 120)


class Drawn(NamedTuple):
    """A face: who, its centre, its side in pixels and by how many degrees it is turned clockwise."""

    person: int
    cx: float
    cy: float
    side: int
    angle: float = 0.0


ONE = (Drawn(0, 300.0, 220.0, 150),)
THREE = (Drawn(1, 120.0, 130.0, 120, -15.0), Drawn(2, 330.0, 300.0, 200), Drawn(3, 530.0, 120.0, 96, 15.0))


def photo(faces: Sequence[Drawn], kind: str = "JPEG", orientation: int = 1) -> bytes:
    """A photo of ``faces`` on a wall; one that is stored turned, as EXIF's ``orientation`` says, is upright again."""
    image = Image.new("RGB", (WIDTH, HEIGHT), _WALL)
    for face in faces:
        square = _drawn(face.person).resize((face.side, face.side), Image.Resampling.BICUBIC)
        turned = square.rotate(-face.angle, Image.Resampling.BICUBIC, expand=True, fillcolor=_WALL)
        image.paste(turned, (round(face.cx - turned.width / 2), round(face.cy - turned.height / 2)))
    if orientation == 6:  # to be turned clockwise by whoever shows it
        image = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@functools.cache
def _drawn(person: int) -> Image.Image:
    return Image.fromarray(render_face(draw_identity(np.random.default_rng(person)), neutral_vector(), Nuisance(), 256))
