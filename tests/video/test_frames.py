import wave
from pathlib import Path

import numpy as np
import pytest

from ray_fer.data.manifests import Manifest
from ray_fer.errors import UserError
from ray_fer.video.frames import Clip, Video, clips_of, find_videos, read_clip
from tests.images import picture
from tests.videos import COLOURS, colour_video, streamable_video

LABELS = ["neutral", "anger", "happiness", "neutral", "anger", "happiness", "neutral"]


@pytest.fixture
def video(tmp_path: Path) -> str:
    (tmp_path / "a.mp4").write_bytes(colour_video(LABELS))
    return str(tmp_path / "a.mp4")


def manifest(uris: list[str], frames: list[int] | None, videos: list[str] | None = None) -> Manifest:
    labels = np.arange(len(uris)) % 3
    return Manifest(uris, labels, ("neutral", "anger", "happiness"), videos=videos, frames=frames)


def test_every_frame_in_order(video: str) -> None:
    opened = Video(video, 16)
    frames = list(opened)
    assert [frame.index for frame in frames] == list(range(7))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 10 for n in range(7)], abs=1e-3)
    for frame, label in zip(frames, LABELS, strict=True):
        assert (frame.pixels.shape, frame.pixels.dtype) == ((16, 16, 3), np.uint8)
        assert np.abs(frame.pixels.mean(axis=(0, 1)) - COLOURS[label]).max() < 25
    assert opened.problem is None


def test_a_cut_file_gives_its_beginning(tmp_path: Path) -> None:
    data = streamable_video(LABELS * 20)
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    video = Video(str(tmp_path / "cut.mp4"), 8)
    frames = list(video)
    assert 7 < len(frames) < 140
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert video.problem is not None
    assert str(len(frames)) in video.problem


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video at all")
    (tmp_path / "empty.mp4").touch()
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    for name, message in (
        ("text.mp4", "not a readable video"),
        ("empty.mp4", "not a readable video"),
        ("sound.mp4", "no video stream"),
        ("nowhere.mp4", "not a readable video"),
    ):
        with pytest.raises(UserError, match=rf"{name}: {message}"):
            list(Video(str(tmp_path / name), 8))


def test_videos_are_found(video: str, tmp_path: Path) -> None:
    deeper = tmp_path / "b" / "c" / "D.MOV"
    deeper.parent.mkdir(parents=True)
    deeper.touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "b" / "odd").write_bytes(b"")
    for name in ("._clip.mp4", ".Trashes/x.mp4", "__MACOSX/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nobody's")
    assert find_videos([str(tmp_path)]) == [video, str(deeper)]
    assert find_videos([video, str(tmp_path)]) == [video, str(deeper)]  # each once
    assert find_videos([str(tmp_path / "b" / "odd")]) == [str(tmp_path / "b" / "odd")]  # named, so meant
    with pytest.raises(UserError, match=r"source=/nowhere: no such file or folder"):
        find_videos([video, "/nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video file there"):
        find_videos([str(tmp_path / "empty")])


def test_clips_of_pictures_and_of_files() -> None:
    uris = ["/x/2.jpg", "/x/1.jpg", "/v/b.mp4", "/y/9.jpg", "/v/b.mp4"]
    clips = clips_of(manifest(uris, [2, 1, 5, 9, 0], ["x", "x", "", "y", ""]))
    assert [(clip.name, clip.uris, clip.frames.tolist(), clip.rows.tolist()) for clip in clips] == [
        ("/v/b.mp4", ("/v/b.mp4",), [0, 5], [4, 2]),
        ("x", ("/x/1.jpg", "/x/2.jpg"), [1, 2], [1, 0]),
        ("y", ("/y/9.jpg",), [9], [3]),
    ]


@pytest.mark.parametrize(
    ("uris", "frames", "videos", "message"),
    [
        (["/a.mp4"], None, None, "no column `frame`"),
        (["/a.mp4"], [-1], None, r"/a.mp4 has no `frame`"),
        (["/a.jpg"], [0], [""], r"/a.jpg has no `video`"),
        (["/a.mp4", "/a.mp4"], [3, 3], None, "frame 3 of video /a.mp4 is there twice"),
        (["/a.mp4", "/b.mp4"], [0, 0], ["x", "x"], "video x is more than one file"),
    ],
)
def test_wrong_manifests(uris: list[str], frames: list[int] | None, videos: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        clips_of(manifest(uris, frames, videos))


def test_a_clip_of_pictures_is_read(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(picture(1))
    (tmp_path / "2.jpg").write_bytes(b"damaged")
    uris = tuple(str(tmp_path / f"{n}.jpg") for n in (1, 2, 3))
    read = dict(read_clip(Clip("x", uris, np.array([5, 6, 9]), np.arange(3)), 16))
    assert list(read) == [5, 6, 9]
    assert isinstance(read[5], np.ndarray)
    assert read[5].shape == (16, 16, 3)
    assert isinstance(read[6], str)
    assert str(read[9]).startswith("missing")


def test_a_file_has_more_frames_than_are_listed_and_fewer(video: str) -> None:
    read = dict(read_clip(Clip(video, (video,), np.array([2, 9]), np.arange(2)), 8))
    assert list(read) == [*range(7), 9]
    assert all(isinstance(read[frame], np.ndarray) for frame in range(7))
    assert read[9] == "missing: the video has 7 frames"
