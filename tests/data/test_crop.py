"""Crops against the plane: pictures whose colours are coordinates, so that a pixel says where it was taken from."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from ray_fer.data.crop import Picture, decode_uri
from ray_fer.data.decode import BACKGROUND, DecodeError, decode
from ray_fer.data.uris import Face

WIDTH, HEIGHT = 240, 180
FACES = [
    Face(120.0, 90.0, 80.0, 0.0),
    Face(100.3, 71.9, 64.0, 20.0),
    Face(130.0, 95.5, 90.2, -37.5),
    Face(70.0, 100.0, 20.0, 160.0),  # smaller than the crop
]


def coordinates(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Red is x, green is y: a pixel of value v lies v + 0.5 pixels from the left, or from the top."""
    x, y = np.meshgrid(np.arange(width) * WIDTH / width, np.arange(height) * HEIGHT / height)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 50)], axis=-1).round().astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def expected(face: Face, size: int) -> np.ndarray:
    """Where the centres of the crop's pixels lie in the upright picture, as (x, y) in (size, size, 2)."""
    steps = (np.arange(size) + 0.5) / size - 0.5
    offsets = steps[None, :] + 1j * steps[:, None]
    points = complex(face.cx, face.cy) + face.side * offsets * np.exp(1j * math.radians(face.angle))
    return np.stack([points.real, points.imag], axis=-1)


def cut(data: bytes, face: Face, size: int) -> np.ndarray:
    out = np.zeros((size, size, 3), np.uint8)
    Picture(data).cut_into(face, out)
    return out


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("size", [24, 33])
def test_pixels_come_from_where_the_face_says(face: Face, size: int) -> None:
    found = cut(encoded(coordinates()), face, size)
    wanted = expected(face, size) - 0.5
    inside = (slice(1, -1), slice(1, -1))  # at its edges the filter sees less
    assert np.abs(found[..., :2] - wanted)[inside].max() < 1.3
    # Interpolation rounds down, by half a level on average; half a pixel more or less would be a shift.
    bias = np.mean((found[..., :2] - wanted)[inside], axis=(0, 1))
    assert (bias > -0.7).all()
    assert (bias < 0.2).all()
    assert (np.abs(found[..., 2].astype(int) - 50) <= 1).all()


@pytest.mark.parametrize("times", [3, 9])
def test_large_jpegs_are_shrunk_inside_the_dct_to_the_same_place(times: int) -> None:
    data = encoded(coordinates(WIDTH * times + times // 2, HEIGHT * times), "JPEG")
    stretch = (WIDTH * times + times // 2) / WIDTH
    for face in FACES[:3]:
        large = Face(face.cx * stretch, face.cy * times, face.side * times, 0.0)
        found = cut(data, large, 24)
        wanted = expected(large, 24) / (stretch, times) - 0.5
        assert np.abs(np.mean(found[..., :2] - wanted, axis=(0, 1))).max() < 0.7


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_faces_are_told_in_the_upright_picture(orientation: int, kind: str) -> None:
    image = coordinates()
    data = encoded(image, kind, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    face = Face(80.0, 75.0, 60.0, 25.0)
    assert np.abs(cut(data, face, 20).astype(int) - cut(encoded(turned), face, 20)).max() <= 3
    small, scale = Picture(data).shrunk(120)
    assert small.shape == (*(side // 2 for side in turned.size[::-1]), 3)
    assert scale == 0.5
    assert np.abs(small.astype(int) - np.asarray(turned.reduce(2))).mean() < 1.5


def test_a_whole_square_is_what_decode_gives() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((200, 200), Image.Resampling.BICUBIC)
    for kind in ("PNG", "JPEG"):
        data = encoded(image, kind)
        difference = cut(data, Face(100.0, 100.0, 200.0, 0.0), 50).astype(int) - decode(data, 50)
        assert np.abs(difference).mean() < 1.5


def test_what_lies_beyond_the_picture_is_background() -> None:
    data = encoded(Image.new("RGB", (WIDTH, HEIGHT), (200, 10, 90)))
    found = cut(data, Face(0.0, 90.0, 80.0, 0.0), 40)
    assert (found[:, :19] == BACKGROUND).all()
    assert (found[:, 21:] == (200, 10, 90)).all()
    assert (cut(data, Face(-500.0, 90.0, 80.0, 30.0), 40) == BACKGROUND).all()
    corner = cut(data, Face(float(WIDTH), float(HEIGHT), 60.0, 45.0), 40)
    assert (corner[20, 2] == (200, 10, 90)).all()  # an eighth turn: the picture is what lies to the left
    assert (corner[20, 38] == BACKGROUND).all()


def test_fine_stripes_become_grey_and_not_a_pattern() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    found = cut(encoded(Image.fromarray(stripes)), Face(200.0, 200.0, 240.0, 10.0), 24)
    assert np.abs(found.astype(int) - 127).max() < 12


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_pixels_can_be_cut(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((HEIGHT, WIDTH), 100 << 8, np.uint16))
    elif mode == "RGBA":
        image = Image.new("RGBA", (WIDTH, HEIGHT), (10, 200, 30, 0))
    else:
        image = Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)).convert(mode)
    found = cut(encoded(image, "JPEG" if mode == "CMYK" else "PNG"), FACES[1], 16)
    assert np.abs(found.astype(int) - (BACKGROUND if mode == "RGBA" else 100)).max() <= 4


def test_a_uri_names_the_picture_or_a_face_of_it() -> None:
    data = encoded(coordinates())
    face = FACES[1]
    assert (decode_uri(face.uri_in("a.png"), data, 20) == cut(data, face, 20)).all()
    assert (decode_uri("a.png", data, 20) == decode(data, 20)).all()


def test_damage_is_a_decode_error() -> None:
    data = encoded(coordinates(), "JPEG")
    for damaged in (b"", b"no picture", data[: len(data) // 2]):
        with pytest.raises(DecodeError, match="undecodable"):
            cut(damaged, FACES[0], 20)
        with pytest.raises(DecodeError, match="undecodable"):
            Picture(damaged).shrunk(100)
    with pytest.raises(DecodeError, match="too_large"):
        Picture(data, max_pixels=100).shrunk(100)
