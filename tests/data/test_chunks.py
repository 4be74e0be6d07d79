"""PNG and WebP files whose metadata is damaged, huge or a bomb: it costs nothing, and lost pixels are counted."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from ray_fer.data.decode import BACKGROUND, DecodeError, decode
from tests.data.test_decode import chunk, encoded, exif, picture, png, squashed

SIDE = 48
PIXELS = picture(SIDE, SIDE)
ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)
NOISE = np.random.default_rng(0).bytes(1_200_000)


def loss(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, SIDE)
    assert caught.value.status == "undecodable"
    return caught.value.message


def with_wrong_checksum(data: bytes, kind: bytes) -> bytes:
    file, at = bytearray(data), data.find(kind)
    file[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
    return bytes(file)


def coloured(extra: bytes = b"", stream: bytes = zlib.compress(ROWS), end: bytes = chunk(b"IEND", b"")) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", stream) + end


STREAM = zlib.compress(ROWS)
WHOLE = {
    "large profile": coloured(chunk(b"iCCP", b"p\0\0" + zlib.compress(NOISE))),
    "large text": coloured(chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(1_200_000)))),
    "large international text": coloured(chunk(b"iTXt", b"t\0\1\0\0\0" + zlib.compress(bytes(1_200_000)))),
    "broken profile": coloured(chunk(b"iCCP", b"p\0\0junk")),
    "wrong checksum of gAMA": with_wrong_checksum(coloured(chunk(b"gAMA", struct.pack(">I", 45455))), b"gAMA"),
    "wrong checksum of eXIf": with_wrong_checksum(coloured(chunk(b"eXIf", exif(3).tobytes()[6:])), b"eXIf"),
    "wrong checksum of pixels' chunk": with_wrong_checksum(coloured(), b"IDAT"),
    "wrong checksum of the header": with_wrong_checksum(coloured(), b"IHDR"),
    "wrong checksum of the end": with_wrong_checksum(coloured(), b"IEND"),
    "too short a chunk": coloured(chunk(b"pHYs", b"\0")),
    "unknown chunk": coloured(chunk(b"ABCD", b"x")),
    "no end": coloured(end=b""),
    "no end, and junk": coloured(end=b"junk" * 10),
    "something behind": coloured() + b"junk" * 10,
    "text between the pixels": coloured(
        stream=STREAM[:500], end=chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", STREAM[500:])
    ),
    "pixels' chunk cut behind the pixels": coloured(stream=STREAM + bytes(100), end=b"")[:-50],
    "white space before": b"\r\n" + coloured(),
    "animation's chunks that are broken": coloured(
        chunk(b"acTL", b"") + chunk(b"fcTL", b"junk"), end=chunk(b"fdAT", b"")
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pngs_give_every_pixel(name: str) -> None:
    np.testing.assert_array_equal(decode(WHOLE[name], SIDE), PIXELS)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_what_no_pixel_depends_on_is_not_inflated(kind: bytes) -> None:
    header = b"k\0\1\0\0\0" if kind == b"iTXt" else b"k\0\0"
    bomb = png(8, 8, 8, 0, bytes(72), chunk(kind, header + zlib.compress(bytes(10_000_000), 1)) * 20)
    tracemalloc.start()
    assert (decode(bomb, 8) == 0).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("stored", [False, True])
def test_a_cut_png_says_which_rows_are_missing(share: float, stored: bool) -> None:
    stream = zlib.compress(ROWS, 0 if stored else 6)
    missing = round(100 * (1 - share))
    for file in (
        coloured(stream=stream[: int(len(stream) * share)]),
        coloured(stream=stream[: int(len(stream) * share)], end=b""),
        coloured(stream=stream, end=b"")[: 41 + int(len(stream) * share)],
    ):
        message = loss(file)
        assert message.startswith("damaged PNG: the last ")
        assert abs(int(message.split()[4]) - missing) <= 4
        assert message.endswith("% of the rows are missing")


def test_an_interlaced_png_says_how_many_pixels_are_missing() -> None:
    # The passes of a 4 x 4 picture have 1, 0, 0, 1, 2, 4 and 8 pixels, in rows that a byte precedes: 23 bytes.
    rows = b"\0a" + b"\0a" + b"\0ab" + b"\0ab" * 2 + b"\0abcd" * 2
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 1))
    assert decode(header + chunk(b"IDAT", zlib.compress(rows)), 4).shape == (4, 4, 3)
    cut = zlib.compress(rows[:13])[:-4]
    assert loss(header + chunk(b"IDAT", cut)) == "damaged PNG: 43 % of the pixels are missing"


def test_changed_pixels_are_refused() -> None:
    stream = bytearray(zlib.compress(ROWS, 0))
    stream[1000] ^= 4
    assert "unknown share" in loss(coloured(stream=bytes(stream)))


def test_a_header_that_does_not_fit_the_pixels() -> None:
    file = bytearray(coloured())
    for position, value in ((19, SIDE - 1), (23, SIDE + 1), (24, 16), (25, 6), (16, 127)):
        changed = file.copy()
        changed[position] = value
        assert "header" in loss(bytes(changed))


def test_colours_that_nothing_vouches_for() -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    for kind in (b"PLTE", b"tRNS"):
        assert kind.decode() in loss(with_wrong_checksum(encoded(image, "PNG", transparency=0), kind))
    assert decode(encoded(image, "PNG", transparency=bytes(16)), SIDE).min() == BACKGROUND


def test_apples_variant_is_refused() -> None:
    file = coloured()
    assert loss(file[:8] + chunk(b"CgBI", b"\x50\0\x20\x02") + file[8:]) == "damaged PNG: Apple's variant of PNG"


@pytest.mark.parametrize("lossless", [False, True])
def test_whole_webps_with_damaged_metadata(lossless: bool) -> None:
    plain = encoded(PIXELS, "WEBP", lossless=lossless)
    data = encoded(PIXELS, "WEBP", lossless=lossless, icc_profile=b"x" * 100, exif=exif(1), xmp=b"<xmp")
    at = {kind: data.find(kind) for kind in (b"ICCP", b"EXIF", b"XMP ")}
    files = [
        plain + b"junk" * 10,
        *(plain[:4] + struct.pack("<I", len(plain) + more) + plain[8:] for more in (-30, -20, -10, 2, 1 << 30)),
        data[: at[b"EXIF"] + 4] + struct.pack("<I", 1 << 20) + data[at[b"EXIF"] + 8 :],
        data[: at[b"XMP "] + 10],
        data[: at[b"EXIF"] + 20],
        data[: at[b"EXIF"]],
        data[: at[b"ICCP"]] + data[at[b"ICCP"] + 108 :],
    ]
    for file in files:
        np.testing.assert_array_equal(decode(file, SIDE), decode(plain, SIDE))
    assert decode(data[: at[b"XMP "]], SIDE).shape == (SIDE, SIDE, 3)
    for cut in (10, len(plain) // 2):
        loss(plain[:-cut])


def test_a_webp_keeps_its_orientation() -> None:
    data = encoded(PIXELS, "WEBP", lossless=True, exif=exif(3), xmp=b"<xmp>")
    np.testing.assert_array_equal(decode(data[: data.find(b"XMP ") + 9], SIDE), PIXELS[::-1, ::-1])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_with_something_behind(kind: str) -> None:
    data = encoded(PIXELS, kind)
    expected = decode(data, SIDE)
    files = [data + b"junk" * 50, b"\n" + data]
    if kind == "GIF":
        files += [data[:-1], data[:-1] + bytes(30)]
    if kind == "BMP":
        files += [data[:2] + size * 4 + data[6:] for size in (b"\0", b"\xff")]
        np.testing.assert_array_equal(expected, squashed(PIXELS, SIDE))
    for file in files:
        np.testing.assert_array_equal(decode(file, SIDE), expected)
