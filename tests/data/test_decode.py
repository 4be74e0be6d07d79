"""decode: the same picture from every encoding of it, and nothing but `DecodeError` from everything else."""

import functools
import io
import pickle
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ray_fer.data.decode import (
    BACKGROUND,
    DecodeError,
    _check_pixels,
    _dct_scale,
    decode,
    decode_into,
    decode_into_each,
    has_image_extension,
    one_error,
    starts_like_picture,
    to_rgb,
)

pytestmark = pytest.mark.filterwarnings("error")

Pixels = NDArray[np.uint8]


def picture(height: int = 96, width: int = 128, seed: int = 0) -> Pixels:
    """Smooth colours and a little noise (H, W, 3): what a photograph is to a codec."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | Pixels, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def squashed(pixels: Pixels, size: int) -> Pixels:
    image = Image.fromarray(pixels).convert("RGB")
    squashed: Pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return squashed


def distance(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(np.int64) - b).mean())


def status(data: bytes, **options: int) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, 32, **options)
    assert len(caught.value.message) <= 200
    assert "\n" not in caught.value.message
    assert caught.value.message
    return caught.value.status


LOSSLESS: dict[str, Callable[[Pixels], bytes]] = {
    "png": lambda a: encoded(a, "PNG"),
    "apng": lambda a: encoded(a, "PNG", save_all=True, append_images=[Image.fromarray(255 - a)]),
    "webp": lambda a: encoded(a, "WEBP", lossless=True),
    "webp animated": lambda a: encoded(
        a, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - a)]
    ),
    "bmp": lambda a: encoded(a, "BMP"),
    "tiff": lambda a: encoded(a, "TIFF"),
    "tiff lzw": lambda a: encoded(a, "TIFF", compression="tiff_lzw"),
    "tiff pages": lambda a: encoded(a, "TIFF", save_all=True, append_images=[Image.fromarray(255 - a)]),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_agree_exactly(name: str) -> None:
    pixels = picture()
    np.testing.assert_array_equal(decode(LOSSLESS[name](pixels), 40), squashed(pixels, 40))


def test_same_size_is_not_resampled() -> None:
    pixels = picture(48, 48)
    np.testing.assert_array_equal(decode(encoded(pixels, "PNG"), 48), pixels)


def test_decode_into_writes_a_batch_row_even_when_strided() -> None:
    data = encoded(picture(), "JPEG")
    batch = np.zeros((3, 32, 32, 3), np.uint8)
    decode_into(data, batch[1])
    np.testing.assert_array_equal(batch[1], decode(data, 32))
    assert not batch[0].any()
    assert not batch[2].any()
    strided = np.zeros((32, 32, 6), np.uint8)
    decode_into(data, strided[..., ::2])
    np.testing.assert_array_equal(strided[..., ::2], batch[1])


# ------------------------------------------------------------------------------------------------------------- JPEG


def natural(side: int) -> Pixels:
    """Noise (side, side, 3) with amplitudes falling as 1/f^1.2, as in photographs; about 50 levels of contrast."""
    rng = np.random.default_rng(side)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    amplitude = np.maximum(frequency, 1 / side) ** -1.2
    grey = np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), (side, side))
    tint = np.array([1.0, 0.9, 0.8])
    pixels: Pixels = (grey[..., None] / grey.std() * 50 * tint + 128).clip(0, 255).astype(np.uint8)
    return pixels


DCT_SIDES = [112, 113, 128, 150, 223, 256, 350, 700, 1100]


@pytest.mark.parametrize("side", DCT_SIDES)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_dct_scaling_matches_full_decode_and_resize(side: int, options: dict[str, object]) -> None:
    data = encoded(natural(side), "JPEG", quality=92, **options)
    full = Image.fromarray(simplejpeg.decode_jpeg(data))
    triangle = np.asarray(full.resize((112, 112), Image.Resampling.BILINEAR))
    assert distance(decode(data, 112), triangle) < 5.5
    area = np.asarray(full.resize((112, 112), Image.Resampling.BOX))
    assert distance(decode(data, 112), area) < 8.5


@pytest.mark.parametrize("side", DCT_SIDES)
def test_dct_scaling_shifts_nothing(side: int) -> None:
    """Where the low-pass does not matter, only a shift or a stretch could make a difference."""
    blocks = np.random.default_rng(side).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC))
    data = encoded(smooth, "JPEG", quality=95, subsampling=0)
    assert distance(decode(data, 112), squashed(simplejpeg.decode_jpeg(data), 112)) < 0.7


def each(data: bytes, *sides: int, cover: int) -> list[Pixels]:
    outs = [np.empty((side, side, 3), np.uint8) for side in sides]
    decode_into_each(data, outs, cover)
    return outs


@pytest.mark.parametrize("side", DCT_SIDES)
@pytest.mark.parametrize("small", [24, 48, 64])
def test_a_smaller_crop_beside_a_larger_one_is_like_the_one_decoded_alone(side: int, small: int) -> None:
    """The tolerance is that of the scaled path; the larger crop is the very same."""
    data = encoded(natural(side), "JPEG", quality=92)
    larger, smaller = each(data, 112, small, cover=112)
    np.testing.assert_array_equal(larger, decode(data, 112))
    assert distance(smaller, decode(data, small)) < 5.5
    full = Image.fromarray(simplejpeg.decode_jpeg(data))
    assert distance(smaller, np.asarray(full.resize((small, small), Image.Resampling.BILINEAR))) < 5.5


@pytest.mark.parametrize("side", DCT_SIDES)
def test_a_smaller_crop_beside_a_larger_one_is_not_shifted(side: int) -> None:
    blocks = np.random.default_rng(side).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC))
    data = encoded(smooth, "JPEG", quality=95, subsampling=0)
    assert distance(each(data, 64, cover=112)[0], squashed(simplejpeg.decode_jpeg(data), 64)) < 0.7


def test_a_crop_does_not_depend_on_what_is_wanted_beside_it() -> None:
    data = encoded(natural(700), "JPEG", quality=92)
    alone, beside = each(data, 48, cover=112)[0], each(data, 112, 48, 64, cover=112)[1]
    np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize("name", LOSSLESS)
def test_other_formats_are_the_same_in_any_company(name: str) -> None:
    data = LOSSLESS[name](picture())
    for side, crop in zip((96, 32), each(data, 96, 32, cover=96), strict=True):
        np.testing.assert_array_equal(crop, decode(data, side))


@pytest.mark.parametrize("orientation", [3, 6])
def test_every_crop_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "JPEG", exif=exif)
    for side, crop in zip((64, 32), each(data, 64, 32, cover=64), strict=True):
        assert distance(crop, decode(data, side)) < 2


def test_small_jpeg_is_enlarged_smoothly() -> None:
    data = encoded(picture(24, 40), "JPEG", quality=95, subsampling=0)
    np.testing.assert_array_equal(decode(data, 64), squashed(simplejpeg.decode_jpeg(data), 64))


def test_grey_jpeg() -> None:
    grey = picture()[..., 0]
    got = decode(encoded(grey, "JPEG", quality=95), 40)
    assert (got == got[..., :1]).all()
    assert distance(got[..., 0], squashed(grey, 40)[..., 0]) < 1.5


@pytest.mark.parametrize("progressive", [False, True])
def test_cmyk_jpeg_is_read_with_inverted_ink(progressive: bool) -> None:
    pixels = picture()
    data = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95, progressive=progressive)
    assert distance(decode(data, 40), squashed(pixels, 40)) < 3


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 255, 0, 51), (204, 0, 204))],
)
def test_black_ink_darkens_a_cmyk_jpeg(ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    got = decode(encoded(Image.new("CMYK", (32, 32), ink), "JPEG", quality=95), 32)
    assert np.abs(got.astype(int) - colour).max() <= 2


def ycck(pixels: Pixels) -> bytes:
    """A YCCK JPEG (which is how TurboJPEG stores CMYK), its ink inverted as Adobe does."""
    ink = np.invert(np.asarray(Image.fromarray(pixels).convert("CMYK")))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(ink), 95, "CMYK", "444"))


def test_ycck_jpeg() -> None:
    pixels = picture()
    data = ycck(pixels)
    assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    assert distance(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), pixels) < 3
    assert distance(decode(data, 40), squashed(pixels, 40)) < 3


def test_mpo_gives_the_first_picture() -> None:
    pixels = picture()
    data = encoded(pixels, "MPO", quality=95, save_all=True, append_images=[Image.fromarray(255 - pixels)])
    assert distance(decode(data, 40), squashed(pixels, 40)) < 2


def test_unusual_subsampling_is_left_to_pillow() -> None:
    grey = Image.fromarray(picture()[..., 0]).convert("RGB")
    data = bytearray(encoded(grey, "JPEG", quality=95, subsampling=0))
    frame = data.find(b"\xff\xc0")
    data[frame + 11] = 0x13  # 1 x 3: a layout libjpeg knows and TurboJPEG does not; the scan is short for it
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg_header(bytes(data))
    assert decode(bytes(data), 32).shape == (32, 32, 3)


def test_no_usual_jpeg_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take two to three times as long."""
    image = Image.fromarray(picture())
    files = [ycck(picture()), *(encoded(image.convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK"))]
    monkeypatch.setattr("ray_fer.data.decode._open_pillow", None)
    assert [simplejpeg.decode_jpeg_header(data)[2] for data in files] == ["YCCK", "YCbCr", "Gray", "CMYK"]
    for data in files:
        assert decode(data, 32).shape == (32, 32, 3)


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_what_turbojpeg_has_no_name_for_is_left_to_pillow(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(data: bytes, **options: bool) -> None:
        raise error("kind")

    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", unknown)
    data = encoded(picture(), "JPEG")
    np.testing.assert_array_equal(decode(data, 32), squashed(np.asarray(Image.open(io.BytesIO(data))), 32))
    assert status(data[:-1500]) == "undecodable"


def test_the_scale_of_a_decoded_jpeg_is_an_eighth_or_several() -> None:
    assert [_dct_scale(20, 9, shape) for shape in ((20, 9, 3), (3, 2, 3), (13, 6, 1))] == [1, 1 / 8, 5 / 8]
    with pytest.raises(DecodeError, match="a JPEG of 9 x 20 pixels was decoded to 2 x 20"):
        _dct_scale(20, 9, (20, 2, 3))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + segment(marker, body) + jpeg[2:]


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE2, b"ICC_PROFILE\0\x01\x03" + b"junk" * 10),
        (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
        (0xE0, b"JFIF\0\x09\x09\0\0\x01\0\x01\0\0"),
        (0xED, b"Photoshop 3.0\0" + b"\xff" * 30),
        (0xEE, b"Adobe"),
    ],
)
def test_broken_metadata_costs_nothing(marker: int, body: bytes) -> None:
    data = encoded(picture(), "JPEG", quality=95)
    assert distance(decode(with_segment(data, marker, body), 40), decode(data, 40)) < 1


def test_bytes_after_the_end_are_ignored() -> None:
    data = encoded(picture(), "JPEG")
    np.testing.assert_array_equal(decode(data + b"tail" * 1000, 40), decode(data, 40))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 0.97])
def test_truncated_jpeg_is_never_half_grey(options: dict[str, object], share: float) -> None:
    data = encoded(picture(), "JPEG", quality=90, **options)
    cut = data[: int(len(data) * share)]
    assert status(cut) == "undecodable"
    assert status(cut + b"\xff\xd9") == "undecodable"
    assert status(cut + bytes(5000)) == "undecodable"
    cmyk = encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=90, **options)
    assert status(cmyk[: int(len(cmyk) * share)] + b"\xff\xd9") == "undecodable"


def test_many_scans_are_refused_at_once() -> None:
    data = encoded(np.zeros((4000, 4000), np.uint8), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    assert status(data[:-2] + last * 5000 + b"\xff\xd9") == "undecodable"


def test_a_film_behind_the_picture_is_no_scans() -> None:
    """Phones append megabytes of film, in which the marker of a scan occurs by chance."""
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 4}):
        data = encoded(picture(), "JPEG", **options)
        assert (decode(data + b"\xff\xda" * 1000, 32) == decode(data, 32)).all()


def test_an_end_marker_in_a_comment_hides_no_scans() -> None:
    data = encoded(picture(), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    many = data[:-2] + data[last:-2] * 80 + b"\xff\xd9"
    assert status(with_segment(many, 0xFE, b"\xff\xd9")) == "undecodable"
    assert status(data[:2] + b"\xff\xe0\0\2" * 20_000 + many[2:]) == "undecodable"


def test_twelve_bit_jpeg_is_undecodable() -> None:
    data = bytearray(encoded(picture(), "JPEG"))
    data[data.find(b"\xff\xc0") + 4] = 12
    assert status(bytes(data)) == "undecodable"


# ------------------------------------------------------------------------------------------------------- orientation


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    quality: dict[str, object] = {"quality": 100, "subsampling": 0}
    options = {"JPEG": quality, "MPO": quality, "WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}[kind]
    data = encoded(picture(), kind, exif=exif(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    expected = np.asarray(upright.resize((40, 40), Image.Resampling.BILINEAR))
    assert distance(decode(data, 40), expected) < 1  # turning before or after the resize rounds differently


@pytest.mark.parametrize("order", ["II*\0", "MM\0*"])
@pytest.mark.parametrize("wide", [False, True])
def test_exif_byte_orders_and_integer_types(order: str, wide: bool) -> None:
    e = "<" if order.startswith("I") else ">"
    value = struct.pack(e + "I", 6) if wide else struct.pack(e + "HH", 6, 0)
    tag = struct.pack(e + "HHI", 0x0112, 4 if wide else 3, 1)
    entries = struct.pack(e + "HHI", 0x010F, 2, 4) + b"abc\0" + tag + value
    block = b"Exif\0\0" + order.encode() + struct.pack(e + "IH", 8, 2) + entries + bytes(4)
    data = encoded(picture(), "JPEG")
    np.testing.assert_array_equal(decode(with_segment(data, 0xE1, block), 40), np.rot90(decode(data, 40), -1))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_senseless_orientation_is_upright(value: int) -> None:
    data = encoded(picture(), "JPEG")
    block = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)
    np.testing.assert_array_equal(decode(with_segment(data, 0xE1, block), 40), decode(data, 40))


# -------------------------------------------------------------------------------------------------------- pixel modes


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(ramp), kind), 32)[..., 0], ramp >> 8)


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand; `extra` are further chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_sixteen_bit_colour_and_alpha_png() -> None:
    values = np.arange(32 * 32 * 4, dtype=np.uint32) * 16 % 65536
    rgba = values.reshape(32, 32, 4).astype(">u2")
    rgba[..., 3] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in rgba[..., :3])
    expected = (rgba[..., :3] >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(png(32, 32, 16, 2, rows), 32), expected)
    rows = b"".join(b"\0" + row.tobytes() for row in rgba)
    np.testing.assert_array_equal(decode(png(32, 32, 16, 6, rows), 32), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 255], [7, 100]], np.int32), [[0, 255], [7, 100]]),
        (np.array([[0, 65535], [257, 25700]], np.int32), [[0, 255], [1, 100]]),
        (np.array([[-100, 100], [0, 0]], np.int32), [[0, 255], [128, 128]]),
        (np.array([[0, 2_000_000_000], [0, 0]], np.int32), [[0, 255], [0, 0]]),
        (np.array([[0, 1], [0.5, 0.2]], np.float32), [[0, 255], [128, 51]]),
        (np.array([[0, 255], [127.6, 3]], np.float32), [[0, 255], [128, 3]]),
        (np.array([[-1, 1], [0, np.nan]], np.float32), [[0, 255], [128, 128]]),
        (np.array([[-5, -5], [-5, -5]], np.float32), [[0, 0], [0, 0]]),
    ],
)
def test_wide_integers_and_floats_are_scaled(values: NDArray[np.generic], expected: list[list[int]]) -> None:
    got = decode(encoded(Image.fromarray(values), "TIFF"), 2)
    np.testing.assert_array_equal(got, np.repeat(np.array(expected)[..., None], 3, axis=2))


def test_one_bit() -> None:
    bits = np.random.default_rng(0).random((32, 32)) > 0.5
    for kind in ("PNG", "TIFF", "BMP"):
        got = decode(encoded(Image.fromarray(bits), kind), 32)
        np.testing.assert_array_equal(got, np.repeat(bits[..., None], 3, axis=2) * np.uint8(255))


def test_palette_is_resampled_as_colour() -> None:
    image = Image.fromarray(picture()).quantize(64)
    expected = squashed(np.asarray(image.convert("RGB")), 40)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(image, kind), 40), expected)


def test_gif_first_frame() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "lime")]
    assert (decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 16) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_grey(kind: str) -> None:
    colours = np.zeros((32, 32, 4), np.uint8)
    colours[:, :16] = [200, 100, 0, 255]
    colours[:16, 16:] = [255, 0, 0, 0]  # red that nobody may see
    colours[16:, 16:] = [255, 255, 255, 127]
    data = encoded(Image.fromarray(colours), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    got = decode(data, 32)
    assert (got[:, :16] == [200, 100, 0]).all()
    assert (got[:16, 16:] == BACKGROUND).all()
    assert (got[16:, 16:] == round(255 * 127 / 255 + BACKGROUND * 128 / 255)).all()


def test_compositing_rounds_to_the_nearest() -> None:
    """Of 255 parts 1 and 254 of the background 128: 127.498, 127.502, 128.498; 254 and 1: 0.502, 253.506, 254.502."""
    pixels = np.array([[[0, 1, 255, 1], [0, 254, 255, 254]]], np.uint8)
    assert to_rgb(Image.fromarray(pixels)).tolist() == [[[127, 128, 128], [1, 254, 255]]]


def test_hidden_colour_does_not_bleed_when_resampled() -> None:
    colours = np.zeros((64, 64, 4), np.uint8)
    colours[:, ::2] = [255, 0, 0, 0]
    colours[:, 1::2] = [0, 0, 0, 255]
    got = decode(encoded(Image.fromarray(colours), "PNG"), 16).astype(int)
    assert (got[..., 0] == got[..., 1]).all()
    assert abs(got.mean() - BACKGROUND / 2) < 8


def test_transparency_of_palette_grey_and_colour_keys() -> None:
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(0, (0, 0, 8, 16))
    for kind in ("PNG", "GIF"):
        got = decode(encoded(palette, kind, transparency=0), 16)
        assert (got[:, :8] == BACKGROUND).all()
        assert (got[:, 8:] == [0, 255, 0]).all()
    got = decode(encoded(palette, "PNG", transparency=bytes([255, 0])), 16)
    assert (got[:, :8] == [255, 0, 0]).all()
    assert (got[:, 8:] == BACKGROUND).all()
    grey = Image.fromarray(np.repeat(np.array([[10, 200]], np.uint8), 2, axis=0))
    assert decode(encoded(grey, "PNG", transparency=200), 2)[0, :, 0].tolist() == [10, BACKGROUND]
    colour = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (decode(encoded(colour, "PNG", transparency=(1, 2, 3)), 4) == BACKGROUND).all()
    la = Image.merge("LA", [Image.new("L", (4, 4), 90), Image.new("L", (4, 4), 0)])
    assert (decode(encoded(la, "PNG"), 4) == BACKGROUND).all()


# ---------------------------------------------------------------------------------------------------- what is no image


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        b"%PDF-1.4\n",
        b"P6\n1 1\n255\n\0\0\0",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\0\x08\0\0\0",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        bytes(10_000),
    ],
)
def test_non_images(data: bytes) -> None:
    assert status(data) == "undecodable"


def test_the_message_names_what_came_instead() -> None:
    with pytest.raises(DecodeError, match=r"undecodable: not an image .* starts with b'<html>"):
        decode(b"<html>\n\n</html>", 8)
    with pytest.raises(DecodeError, match="empty object"):
        decode(b"", 8)
    with pytest.raises(DecodeError, match=r"starts with b'\\n\\n'"):
        decode(b"\n\n", 8)
    with pytest.raises(DecodeError, match=r"starts with b'0123456789abcdef'$"):
        decode(b"0123456789abcdefg", 8)


def test_a_decoder_s_error_is_one_of_the_object_and_want_of_memory_is_not() -> None:
    for error, wanted in ((KeyError("no"), "undecodable: KeyError: 'no'"), (RecursionError(), "undecodable: Recursi")):
        with pytest.raises(DecodeError, match=f"^{wanted}"), one_error():
            raise error
    with pytest.raises(DecodeError, match=r"^too_large: 9 pixels$"), one_error():
        raise Image.DecompressionBombError("9 pixels")
    with pytest.raises(MemoryError), one_error():
        raise MemoryError


@pytest.mark.parametrize("start", [b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*"])
def test_starts_like_picture(start: bytes) -> None:
    assert starts_like_picture(start)
    assert starts_like_picture(b"\0\n\xef\xbb\xbf " + start + b"...")
    assert not starts_like_picture(b"x" + start)
    assert not starts_like_picture(start[:-1])
    assert starts_like_picture(b" " * (64 - len(start)) + start)
    assert not starts_like_picture(b" " * (65 - len(start)) + start)


@pytest.mark.parametrize("name", [*LOSSLESS, "gif", "tiff jpeg", "webp lossy"])
def test_truncated_files(name: str) -> None:
    make = LOSSLESS | {
        "gif": lambda a: encoded(a, "GIF"),
        "tiff jpeg": lambda a: encoded(a, "TIFF", compression="jpeg"),
        "webp lossy": lambda a: encoded(a, "WEBP"),
    }
    data = make[name](picture())
    if name == "tiff pages" or "ani" in name or name == "apng":
        data = data[: len(data) // 2]  # of the first picture
    for share in (0.05, 0.3, 0.6, 0.9):
        cut = data[: int(len(data) * share)]
        assert status(cut) == "undecodable"


def test_failure_leaves_the_batch_row_alone() -> None:
    row = np.full((32, 32, 3), 7, np.uint8)
    data = encoded(picture(32, 32), "JPEG")
    with pytest.raises(DecodeError):
        decode_into(data[:-100], row)
    with pytest.raises(DecodeError):
        decode_into_each(data[:-100], [row, row[:24, :24]], 32)
    assert (row == 7).all()


def test_zero_sides() -> None:
    for width, height in ((0, 5), (5, 0)):
        with pytest.raises(DecodeError, match=f"^undecodable: picture of {width} x {height} pixels$"):
            _check_pixels(width, height, 9)
    _check_pixels(1, 9, 9)
    assert status(png(0, 5, 8, 0, b"")) == "undecodable"
    assert status(png(5, 0, 8, 0, b"")) == "undecodable"
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 7] = b"\0\0"
    assert status(bytes(jpeg)) == "undecodable"
    bmp = bytearray(encoded(picture(8, 8), "BMP"))
    bmp[18:22] = bytes(4)
    assert status(bytes(bmp)) == "undecodable"


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_extreme_shapes(size: tuple[int, int], kind: str) -> None:
    got = decode(encoded(Image.new("RGB", size, (10, 120, 230)), kind), 32)
    assert np.abs(got.astype(int) - [10, 120, 230]).max() <= 3


# --------------------------------------------------------------------------------------------------------------- bombs


@functools.cache
def bombs() -> dict[str, bytes]:
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    bmp = bytearray(encoded(picture(8, 8), "BMP"))
    bmp[18:26] = struct.pack("<ii", 30000, 30000)
    gif = bytearray(encoded(picture(8, 8), "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    small = encoded(picture(8, 8), "GIF")
    descriptor = small.find(b"\x2c", 13 + 3 * 2 ** ((small[10] & 7) + 1))
    frame_of_gif = bytearray(small)
    frame_of_gif[descriptor + 5 : descriptor + 9] = struct.pack("<HH", 60000, 60000)
    tiff = bytearray(encoded(picture(8, 8), "TIFF"))
    offset = struct.unpack_from("<I", tiff, 4)[0]
    for i in range(struct.unpack_from("<H", tiff, offset)[0]):
        entry = offset + 2 + 12 * i
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):
            struct.pack_into("<HHII", tiff, entry, struct.unpack_from("<H", tiff, entry)[0], 4, 1, 30000)
    webp = bytearray(encoded(picture(8, 8), "WEBP", lossless=True, exif=exif(1)))
    webp[24:30] = (16000 - 1).to_bytes(3, "little") * 2
    return {
        "png": png(30000, 30000, 8, 2, zlib.compress(bytes(1000))),
        "png below Pillow's warning": png(9000, 9000, 8, 0, b""),
        "png between Pillow's warning and its error": png(11000, 11000, 8, 0, b""),
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "gif": bytes(gif),
        "gif frame": bytes(frame_of_gif),
        "tiff": bytes(tiff),
        "webp": bytes(webp),
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_bombs_are_defused_before_they_expand(name: str) -> None:
    data = bombs()[name]
    assert len(data) < 200_000
    if name == "webp":  # libwebp checks the canvas against the bitstream first
        assert status(data) in ("too_large", "undecodable")
    else:
        assert status(data) == "too_large"


def test_max_pixels_is_exact() -> None:
    for kind in ("JPEG", "PNG"):
        data = encoded(picture(20, 30), kind)
        assert decode(data, 8, max_pixels=600).shape == (8, 8, 3)
        assert status(data, max_pixels=599) == "too_large"
    # Of a picture that is small enough it is told that pixels are missing.
    assert status(png(50_000_000, 1, 8, 0, b"")) == "undecodable"
    assert status(png(50_000_001, 1, 8, 0, b"")) == "too_large"


# ------------------------------------------------------------------------------------------------- process-wide state


def test_pillow_is_left_as_it_was() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    for data in bombs().values():
        status(data)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == warnings.filters


def noisy_tiff() -> bytes:
    """A TIFF whose resolution tag has two values: Pillow warns and reads the picture."""
    data = bytearray(encoded(picture(8, 8), "TIFF", dpi=(72, 72)))
    offset = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, offset)[0]):
        entry = offset + 2 + 12 * i
        if struct.unpack_from("<H", data, entry)[0] == 296:  # ResolutionUnit
            struct.pack_into("<I", data, entry + 4, 2)
    return bytes(data)


def test_warnings_do_not_escape_and_other_code_keeps_its_own() -> None:
    data = noisy_tiff()
    with pytest.raises(UserWarning):
        Image.open(io.BytesIO(data)).load()
    filters = list(warnings.filters)
    barrier = threading.Barrier(4)

    def work(_: int) -> bool:
        barrier.wait()
        return all(decode(data, 8).shape == (8, 8, 3) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert warnings.filters == filters
    with pytest.raises(UserWarning):
        warnings.warn("still heard", stacklevel=1)


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("too_large", "a\nb  c" + "x" * 300)))
    assert (error.status, error.message[:6], len(error.message)) == ("too_large", "a b cx", 200)


# ---------------------------------------------------------------------------------------------------------------- fuzz


@functools.cache
def seeds() -> list[bytes]:
    small = picture(24, 20)
    image = Image.fromarray(small)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - small)]}
    return [
        *(make(small) for make in LOSSLESS.values()),
        encoded(small, "JPEG", exif=exif(6)),
        encoded(small, "JPEG", progressive=True),
        encoded(small, "JPEG", restart_marker_blocks=1),
        encoded(small[..., 0], "JPEG"),
        encoded(image.convert("CMYK"), "JPEG"),
        ycck(small),
        encoded(small, "MPO", **frames),
        encoded(image.quantize(8), "PNG", transparency=1),
        encoded(image.convert("RGBA"), "PNG", exif=exif(3)),
        encoded(Image.fromarray(small[..., 0].astype(np.uint16) * 257), "PNG"),
        encoded(image, "GIF", **frames),
        encoded(image.convert("RGBA"), "WEBP", exif=exif(5)),
        encoded(image, "TIFF", compression="jpeg"),
        encoded(image, "TIFF", compression="tiff_deflate"),
        encoded(image.convert("1"), "TIFF", compression="group4"),
        encoded(Image.fromarray(small[..., 0].astype(np.float32)), "TIFF"),
        encoded(image.convert("CMYK"), "TIFF"),
        encoded(image.convert("YCbCr"), "TIFF"),
        encoded(image.quantize(4), "BMP"),
        noisy_tiff(),
    ]


@pytest.mark.parametrize("number", range(len(seeds())))
def test_fuzz(number: int) -> None:
    """Flipped, overwritten, cut and spliced bytes: an array or a DecodeError, nothing else, and not slowly."""
    seed = seeds()[number]
    rng = np.random.default_rng(number)
    for trial in range(150):
        data = bytearray(seed)
        # Half of the damage goes to the first bytes, where the structure is.
        reach = len(data) if trial % 2 else min(len(data), 120)
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(reach))] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
        if trial % 5 == 0:
            data = data[: int(rng.integers(len(data)))]
        if trial % 7 == 0:
            at = int(rng.integers(len(data) + 1))
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        outcome: Pixels | DecodeError
        try:
            outcome = decode(bytes(data), 16, max_pixels=1_000_000)
        except DecodeError as error:
            outcome = error
        if isinstance(outcome, DecodeError):
            assert outcome.status in ("undecodable", "too_large")
            assert 0 < len(outcome.message) <= 200
            assert outcome.message.isprintable()
        else:
            assert outcome.shape == (16, 16, 3)
            assert outcome.dtype == np.uint8


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a.jpg", True),
        ("s3://bucket/dir.png/A.JPEG", True),
        ("x.JfIf", True),
        ("s3://bucket/.jpg", True),
        ("s3://bucket/x.jpg/", False),
        ("x.tar", False),
        ("s3://bucket/dir.png/readme", False),
        ("jpg", False),
        ("", False),
        *(
            (f"x.{ending}", True)
            for ending in ("jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "dib", "tif", "tiff")
        ),
    ],
)
def test_has_image_extension(uri: str, expected: bool) -> None:
    assert has_image_extension(uri) is expected
