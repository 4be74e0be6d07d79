"""Videos as devices and tools write them: mirrored, with a cover, glued, cut by an edit list, cut by accident."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from ray_fer.data.decode import upright
from ray_fer.errors import UserError
from ray_fer.video.container import Clock, declared_size
from ray_fer.video.frames import Clip, Frame, Video, read_clip
from tests.images import picture
from tests.videos import grey_frames, write_video


def read(path: Path, size: int = 16) -> tuple[list[Frame], str | None]:
    video = Video(str(path), size)
    return list(video), video.problem


def greys(frames: list[Frame]) -> list[int]:
    return [round(float(frame.pixels.mean()) / 4) for frame in frames]


# ------------------------------------------------------------------------------------------------------ display matrix

CORNERS = np.zeros((1, 64, 64, 3), np.uint8)
CORNERS[0, :32, :32] = [220, 30, 30]
CORNERS[0, :32, 32:] = [30, 220, 30]
CORNERS[0, 32:, :32] = [30, 30, 220]
CORNERS[0, 32:, 32:] = [220, 220, 220]
# EXIF's orientations as matrices (a, b, c, d): stored (x, y) is shown at (a x + c y, b x + d y).
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    data = bytearray(path.read_bytes())
    one = 1 << 16
    values = [round(a * one), round(b * one), 0, round(c * one), round(d * one), 0, 0, 0, 1 << 30]
    struct.pack_into(">9i", data, data.find(b"tkhd") + 44, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("orientation", MATRICES)
def test_frames_are_shown_as_the_display_matrix_says(orientation: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CORNERS, qp="5")
    (plain,), _ = read(path)
    (frame,), _ = read(with_matrix(path, *MATRICES[orientation]))
    np.testing.assert_array_equal(frame.pixels, upright(plain.pixels, orientation))
    assert np.abs(frame.pixels[2, 2].astype(int) - upright(CORNERS[0], orientation)[2, 2]).max() < 30


def test_an_odd_angle_is_taken_for_the_nearest(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CORNERS)
    (plain,), _ = read(path)
    for degrees, orientation in ((10, 1), (80, 6), (-80, 8), (170, 3)):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        (frame,), _ = read(with_matrix(path, cos, sin, -sin, cos))
        np.testing.assert_array_equal(frame.pixels, upright(plain.pixels, orientation))


# ------------------------------------------------------------------------------------------------------------- streams


def with_cover(path: Path, film: bool, cover_first: bool = True) -> Path:
    with av.open(str(path), "w") as file:
        cover = file.add_stream("mjpeg", rate=1) if cover_first else None
        stream = file.add_stream("libx264" if film else "aac", rate=25 if film else 8000)
        cover = cover or file.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 40
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        if film:
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
        file.start_encoding()
        if film:
            encoded = [stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")) for frame in grey_frames(20)]
        else:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            encoded = [stream.encode(silence)]
        packet = av.Packet(picture(0))
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, cover.time_base
        file.mux(packet)
        for packets in (*encoded, stream.encode()):
            file.mux(packets)
    return path


@pytest.mark.parametrize("cover_first", [True, False])
def test_a_cover_is_not_the_film(cover_first: bool, tmp_path: Path) -> None:
    path = with_cover(tmp_path / "a.mp4", film=True, cover_first=cover_first)
    with av.open(str(path)) as file:
        assert len(file.streams.video) == 2
    frames, problem = read(path)
    assert greys(frames) == list(range(20))
    assert problem is None


def test_a_record_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = with_cover(tmp_path / "a.mp4", film=False)
    with pytest.raises(UserError, match=r"a\.mp4: no video stream in it, only a cover"):
        read(path)


# --------------------------------------------------------------------------------------------------------------- times


def test_glued_transport_streams_go_on(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{first}.ts", grey_frames(50), first=first) for first in (0, 0, 90_000, 500)]
    (tmp_path / "glued.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, problem = read(tmp_path / "glued.ts")
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in range(200)], abs=1e-3)
    assert greys(frames) == list(range(50)) * 4
    assert problem is None


def test_stamps_that_run_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", grey_frames(50), first=((1 << 33) - 90_000) * 25 // 90_000)
    frames, problem = read(path)
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in range(50)], abs=1e-3)
    assert problem is None


@pytest.mark.parametrize(
    ("stamps", "may_leap", "times"),
    [
        ([7.0, 7.5, 9.0, 9.1], False, [0, 0.5, 2, 2.1]),  # variable rate
        ([5.0, 5.1, 0.0, 0.1], False, [0, 0.1, 0.2, 0.3]),
        ([0.0, 0.1, 0.9, 0.0, 0.8], True, [0, 0.1, 0.9, 1.0, 1.8]),
        ([0.0, 0.2, 0.1, 0.3], False, [0, 0.2, 0.2, 0.3]),  # two in the wrong order
        ([0.0, 3600.0], False, [0, 3600]),  # a still picture for an hour
        ([0.0, 3600.0, 3600.1], True, [0, 0.1, 0.2]),
        ([0.0, 9.0], True, [0, 9]),
        ([None, None, None], False, [0, 0.1, 0.2]),
        ([None, 40.0, None, 40.2], False, [0, 0.1, 0.2, 0.3]),
        ([95443.7, 95443.8, 0.0], True, [0, 0.1, 0.2]),
    ],
)
def test_clock(stamps: list[float | None], may_leap: bool, times: list[float]) -> None:
    clock = Clock(0.1, may_leap)
    assert [clock(stamp) for stamp in stamps] == pytest.approx(times)


def test_frames_without_stamps_have_the_usual_rate(tmp_path: Path) -> None:
    frames, problem = read(write_video(tmp_path / "a.h264", grey_frames(10)))
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in range(10)])
    assert problem is None


# ------------------------------------------------------------------------------------------------------ what is missing


def with_edit(path: Path, milliseconds: int, first: int) -> Path:
    """Let the file show so long a part of itself, from so many frames on."""
    data = bytearray(path.read_bytes())
    at = data.find(b"elst") + 12
    start = struct.unpack_from(">i", data, at + 4)[0]
    struct.pack_into(">Ii", data, at, milliseconds, start + 512 * first)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("milliseconds", "first", "shown"),
    [(2000, 0, range(50)), (600, 0, range(15)), (1480, 13, range(13, 50)), (600, 13, range(13, 28))],
)
def test_an_edit_list_leaves_frames_out(milliseconds: int, first: int, shown: range, tmp_path: Path) -> None:
    path = with_edit(write_video(tmp_path / "a.mp4", grey_frames(50), qp="1"), milliseconds, first)
    frames, problem = read(path)
    assert greys(frames) == list(shown)
    assert frames[-1].time_s == pytest.approx((len(shown) - 1) / 25)
    assert problem is None
    missing = dict(read_clip(Clip("a", (str(path),), np.array([0, 49]), np.arange(2)), 8)).get(49)
    assert isinstance(missing, np.ndarray if len(shown) == 50 else str)


FORMATS = {
    "mp4": "libx264",
    "mov": "mpeg4",
    "mkv": "libx264",
    "webm": "libvpx",
    "avi": "mpeg4",
    "wmv": "wmv2",
    "flv": "flv1",
    "mpg": "mpeg2video",
    "ts": "libx264",
}


def noisy(count: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-90, 90, (count, 64, 64, 3))
    return (grey_frames(count) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("ending", FORMATS)
def test_whole_and_cut_files(ending: str, tmp_path: Path) -> None:
    options = {"movflags": "faststart"} if ending in ("mp4", "mov") else {}
    path = write_video(tmp_path / f"a.{ending}", noisy(50), FORMATS[ending], container=options)
    frames, problem = read(path)
    assert len(frames) == 50
    assert problem is None
    data = path.read_bytes()
    path.write_bytes(data + np.random.default_rng(0).bytes(300))
    if ending not in ("ts", "mpg", "flv"):  # of which each packet stands for itself
        frames, problem = read(path)
        assert len(frames) == 50
        assert problem is None
    path.write_bytes(data[: len(data) * 2 // 3])
    frames, problem = read(path)
    assert 0 < len(frames) < 50
    assert [frame.index for frame in frames] == list(range(len(frames)))
    if ending not in ("ts", "mpg"):  # which promise nothing
        assert problem is not None
        assert f" after {len(frames)} " in problem


def test_a_file_that_is_cut_behind_its_last_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", grey_frames(50))
    data = path.read_bytes()
    path.write_bytes(data[:-10])  # of the index
    frames, problem = read(path)
    assert len(frames) == 50
    assert problem is None


def test_a_wrong_number_of_frames_in_a_header_is_no_problem(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", grey_frames(20), "mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.find(b"avih") + 8 + 16, 99)
    struct.pack_into("<I", data, data.find(b"strh") + 8 + 32, 99)
    path.write_bytes(data)
    frames, problem = read(path)
    assert len(frames) == 20
    assert problem is None


def test_frames_that_a_decoder_holds_back_are_shown_before_the_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noisy(50), bf="3", container={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        entries = list(file.streams.video[0].index_entries)
    data[entries[30].pos : entries[30].pos + 4] = b"\x7f\xff\xff\xff"  # the length of a unit
    path.write_bytes(data)
    frames, problem = read(path)
    assert 28 <= len(frames) <= 30
    assert problem is not None
    assert problem.startswith(f"damaged after {len(frames)} frames")


def test_variable_rate_and_odd_sizes(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 37, 51, "yuv444p"
        for time in (0, 40, 1000, 1033):
            frame = av.VideoFrame.from_ndarray(np.full((51, 37, 3), 99, np.uint8), format="rgb24")
            frame.pts = time
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    frames, problem = read(tmp_path / "a.mkv")
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.04, 1, 1.033])
    assert problem is None


@pytest.mark.parametrize("pixels", ["yuv420p10le", "gray", "gray16le", "yuva420p", "yuv444p12le", "bgra"])
def test_pixel_formats(pixels: str, tmp_path: Path) -> None:
    frames, problem = read(write_video(tmp_path / "a.mkv", grey_frames(5) + np.uint8(40), "ffv1", pixels))
    levels = np.array([frame.pixels.mean() for frame in frames])
    assert np.abs(levels - (40 + 4 * np.arange(5))).max() <= 2.5
    assert problem is None


def test_a_size_that_changes(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{size}.ts", grey_frames(10, size)) for size in (64, 96)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, _ = read(tmp_path / "a.ts")
    assert greys(frames) == list(range(10)) * 2
    assert {frame.pixels.shape for frame in frames} == {(16, 16, 3)}


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\0\0\0\0\0\x10\0" + bytes(20), 17 + 4096),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x50\0" + bytes(20), 11 + 0x1000),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7 + bytes(20), None),
        (b"\x1a\x45\xdf\xa3", None),
        (b"RIFF\x10\0\0\0AVI ", 24),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"FLV\1\0\x08filesize\0" + struct.pack(">d", 1234), 1234),
        (b"FLV\1\0\x08filesize\0\x40", None),
        (b"FLV\1", None),
        (b"\0\0\0\x18ftypmp42", None),
        (b"", None),
    ],
)
def test_declared_size(head: bytes, size: int | None) -> None:
    assert declared_size(head) == size
