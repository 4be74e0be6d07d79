"""JPEGs that libjpeg warns of: whole ones are the very same picture, the others say what they have lost."""

from __future__ import annotations

import functools
import re
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ray_fer.data.crop import Picture
from ray_fer.data.decode import DecodeError, decode
from tests.data.test_decode import encoded, exif, picture, with_segment

FILM = b"\0\0\0\x18ftypmp42" + b"SEFT" * 2000
KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "CMYK": {},
    "L": {},
}


@functools.cache
def jpeg(kind: str) -> bytes:
    image = Image.fromarray(picture(128, 160))
    image = image.convert(kind) if kind in ("CMYK", "L") else image
    return encoded(image, "JPEG", quality=90, exif=exif(6), **KINDS[kind])


def loss(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, 48)
    assert caught.value.status == "undecodable"
    return caught.value.message


def whole(data: bytes) -> dict[str, bytes]:
    """Files with all the coded data of ``data``, and something about them that decoders complain of."""
    table, body, end = data.find(b"\xff\xdb"), data[:-2], data[-2:]
    return {
        "a byte before a table": data[:table] + b"\0" + data[table:],
        "many bytes before a table": data[:table] + bytes(range(1, 201)) + data[table:],
        "bytes behind the start": data[:2] + b"ab" + data[2:],
        "filled up before a marker": data[:table] + b"\xff\xff\xff" + data[table:],
        "unknown markers": data[:table] + b"\xff\x02\xff\xf3\0\4ab" + data[table:],
        "two starts": data[:2] + data,
        "no end": body,
        "half an end": data[:-1],
        "no end, and a film": body + FILM,
        "no end, and a film with markers": body + FILM[:16] + bytes(np.random.default_rng(0).bytes(30_000)),
        "no end, and zeros": body + bytes(5000),
        "no end, and line feeds": body + b"\r\n" * 10,
        "no end, and another JPEG": body + encoded(picture(seed=1), "JPEG"),
        "zeros before the end": body + bytes(50) + end,
        "filled up before the end": body + b"\xff" * 50 + end,
        "a byte before the end": body + b"A" + end,
        "something behind": data + b"tail" * 100,
        "a broken profile": with_segment(data, 0xE2, b"ICC_PROFILE\0\x01\x03" + b"junk" * 10),
        "a revision of JFIF to come": with_segment(data, 0xE0, b"JFIF\0\x09\x09\0\0\1\0\1\0\0"),
        "white space before": b"\xef\xbb\xbf\r\n" + data,
        "a length of EXIF that is too large": with_segment(data, 0xE1, b"Exif\0\0MM").replace(b"\0\x0aE", b"\xf0\x0aE"),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", whole(jpeg("baseline")))
def test_whole_files_give_the_very_same_picture(kind: str, name: str) -> None:
    data = jpeg(kind)
    np.testing.assert_array_equal(decode(whole(data)[name], 48), decode(data, 48))
    cut, _ = Picture(whole(data)[name]).shrunk(60)
    np.testing.assert_array_equal(cut, Picture(data).shrunk(60)[0])


@pytest.mark.parametrize("name", ["no end", "no end, and a film", "no end, and zeros", "something behind"])
def test_a_lenient_decoder_sees_the_same(name: str) -> None:
    data = encoded(picture(48, 48), "JPEG", subsampling=0, quality=95)
    file = whole(data)[name]
    np.testing.assert_array_equal(decode(file, 48), simplejpeg.decode_jpeg(file, strict=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"", b"\xff\xd9", bytes(9000), FILM])
def test_a_cut_file_says_which_rows_are_missing(kind: str, behind: bytes) -> None:
    data = jpeg(kind)
    start = data.rfind(b"\xff\xda") + 14
    found = re.search(r"the last (\d+) % of the rows (.*)", loss(data[: (start + len(data)) // 2] + behind))
    assert found
    assert 25 <= int(found[1]) <= 75
    assert found[2] == ("lack detail" if kind == "progressive" else "are missing")
    few = re.search(r"the last (\d+) % of the rows", loss(data[:-5] + behind))
    assert few
    assert 5 <= int(few[1]) <= 13  # the last row of blocks, of 16 or of 8


def test_the_share_is_that_of_the_rows_made_up() -> None:
    data = encoded(picture(160, 160), "JPEG", subsampling=0, quality=90)
    cut = data[: len(data) * 2 // 3]
    made_up = (simplejpeg.decode_jpeg(cut, strict=False) != simplejpeg.decode_jpeg(data)).any(axis=(1, 2))
    share = round(100 * (1 - np.flatnonzero(made_up)[0] / 160))
    assert f"the last {share} % of the rows are missing" in loss(cut)


def scans(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(rb"\xff\xda", data)]


def test_a_progressive_file_without_its_last_scan() -> None:
    data = jpeg("progressive")
    starts = scans(data)
    tables = data.find(b"\xff\xc4", starts[-2])
    without = data[: tables if starts[-2] < tables < starts[-1] else starts[-1]]
    assert f"ends after scan {len(starts) - 1}: all rows lack detail" in loss(without)
    assert f"ends in scan {len(starts) - 1}" in loss(without[:-20])
    assert "are missing" in loss(data[: starts[0] + 60])
    # The end marker says that the encoder meant no more.
    assert np.abs(decode(without + b"\xff\xd9", 48).astype(int) - decode(data, 48)).max() < 10


def test_padding_between_scans_costs_nothing() -> None:
    data = jpeg("progressive")
    tables = data.find(b"\xff\xc4", scans(data)[3])
    padded = data[:tables] + bytes(30) + data[tables:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(padded)
    np.testing.assert_array_equal(decode(padded, 48), decode(data, 48))


@pytest.mark.parametrize("numbers", ["from 1", "all 0", "one wrong"])
def test_restart_markers_with_wrong_numbers(numbers: str) -> None:
    data = bytearray(jpeg("restarts"))
    at = [found.start() + 1 for found in re.finditer(rb"\xff[\xd0-\xd7]", bytes(data))]
    for count, position in enumerate(at):
        if numbers != "one wrong":
            data[position] = 0xD0 + (count + 1) % 8 * (numbers == "from 1")
        elif count == 3:
            data[position] = 0xD7
    with pytest.raises(ValueError, match="instead of RST"):
        simplejpeg.decode_jpeg(bytes(data))
    np.testing.assert_array_equal(decode(bytes(data), 48), decode(jpeg("restarts"), 48))


def test_a_missing_interval_is_lost_data() -> None:
    data = jpeg("restarts")
    at = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    assert "lost" in loss(data[: at[3]] + data[at[4] :])
    assert "lost" in loss(data[: at[3]] + data[at[3] + 2 :])


def test_bytes_that_may_be_coded_data_are_not_guessed_about() -> None:
    data = jpeg("baseline")
    foreign = bytes(np.random.default_rng(0).integers(1, 255, 500, np.uint8))
    assert "unknown share of the rows is lost" in loss(data[:-2] + foreign)
    assert "unknown share of the rows is lost" in loss(data[:-2] + foreign + data[-2:])


def test_the_thumbnail_in_a_damaged_segment_is_not_taken_for_the_picture() -> None:
    thumbnail = encoded(picture(16, 16, seed=5), "JPEG")
    data = encoded(picture(), "JPEG")
    file = bytearray(with_segment(data, 0xE1, b"Exif\0\0" + thumbnail))
    for length in (4, 12, 40, 100, 300, len(thumbnail) - 10):
        file[4:6] = struct.pack(">H", length)
        assert "damaged JPEG" in loss(bytes(file))


def odd_sampling(cut: int = 0) -> bytes:
    """A grey 48 x 48 JPEG of three components, the first sampled 1 x 3, every coefficient 0: nothing for TurboJPEG."""
    data = encoded(Image.new("RGB", (48, 48), (128,) * 3), "JPEG", subsampling=0, quality=90)
    frame, scan = data.find(b"\xff\xc0"), data.find(b"\xff\xda") + 14
    # A block of zeros is 00 1010 in the usual tables for luminance, and 00 00 in those for chrominance.
    bits = ("001010" * 3 + "0000" * 2) * 12
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return data[: frame + 11] + b"\x13" + data[frame + 12 : scan] + coded[: len(coded) - cut] + b"\xff\xd9"


def test_what_only_pillow_decodes_is_whole_or_refused() -> None:
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg_header(odd_sampling())
    assert (decode(odd_sampling(), 32) == 128).all()
    assert "% of the rows are missing" in loss(odd_sampling(cut=20))


def test_stray_bytes_hide_no_scans() -> None:
    data = encoded(np.zeros((64, 64), np.uint8), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    many = data[:2] + b"stray" + data[2:-2] + last * 100
    for end in (b"", b"\xff\xd9", bytes(100), FILM):
        loss(many + end)


def test_long_padding_takes_no_long_time() -> None:
    data = jpeg("baseline")[:-200]
    for padding in (b"\0" * 1000 + b"a", b"\xff\0" * 500, b" " * 7 + b"a", b"\xff\xe0\0\2" * 300, b"\xff\xd0" * 600):
        loss(data + padding * (300_000 // len(padding)))
