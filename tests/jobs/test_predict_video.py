import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.predict_video import output_names, predict_video
from ray_fer.video.artifact import save_temporal
from ray_fer.video.encoder import TemporalEncoder
from ray_fer.video.frame_encoder import FrameEncoder
from ray_fer.video.frames import Video
from ray_fer.video.prediction import ClipModel
from ray_fer.video.smoothing import box_filter
from tests.images import CLASSES, tiny_model
from tests.videos import colour_video, streamable_video

LABELS = ["neutral", "anger", "happiness", "anger"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, an untrained temporal model over every third frame, and videos: two of one name, one broken."""
    folder = tmp_path_factory.mktemp("videos")
    backbone = tiny_model(str(folder / "backbone"))
    encoder = TemporalEncoder(512, 3, window=4, width=8, layers=1, heads=2, dropout=0)
    torch.nn.init.normal_(encoder.head.weight)
    places = {"stride": 1, "frame_step": 3, "smoothing": 1, "frame_smoothing": 0}
    save_temporal(str(folder / "temporal"), encoder, backbone, **places, metrics={}, provenance={})
    for name in ("in/a/clip.mp4", "in/b/clip.mp4", "in/other.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(colour_video(LABELS))
    (folder / "in/broken.mp4").write_bytes(b"not a video")
    cut = streamable_video(LABELS * 10)
    (folder / "cut.mp4").write_bytes(cut[: len(cut) * 2 // 3])
    return folder


def predict(folder: Path, *arguments: str) -> dict[str, Any]:
    return predict_video(load_config("predict_video", arguments))


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_folder_with_a_broken_video_and_two_of_one_name(folder: Path, tmp_path: Path) -> None:
    summary = predict(folder, f"source={folder / 'in'}", f"model={folder / 'temporal'}", f"out={tmp_path}")
    assert (summary["videos"], summary["frames"]) == (3, 36)
    assert list(summary["failed"]) == [str(folder / "in/broken.mp4")]
    assert "not a readable video" in summary["failed"][str(folder / "in/broken.mp4")]
    names = set(summary["predictions"])
    assert "other" in names
    assert len(names) == 3
    assert {path.name for path in tmp_path.iterdir()} == {
        "summary.json", *(f"{name}.csv" for name in names), *(f"{name}.png" for name in names)
    }  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for name, done in summary["predictions"].items():
        rows = rows_of(tmp_path / f"{name}.csv")
        assert list(rows[0]) == ["frame", "time_s", "label", "confidence", *CLASSES]
        assert [int(row["frame"]) for row in rows] == list(range(12))
        assert float(rows[-1]["time_s"]) == pytest.approx(1.1, abs=1e-3)
        for row in rows:
            assert float(row["confidence"]) == max(float(row[label]) for label in CLASSES)
            assert sum(float(row[label]) for label in CLASSES) == pytest.approx(1, abs=2e-4)
        assert sum(done["share"].values()) == pytest.approx(1, abs=1e-3)
        assert done["share"][rows[0]["label"]] > 0
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_backbone_is_smoothed_over_half_a_second(folder: Path, tmp_path: Path) -> None:
    video = str(folder / "in/other.mp4")
    summary = predict(folder, f"source={video}", f"model={folder / 'backbone'}", f"out={tmp_path}", "batch_size=5")
    assert summary["predictions"]["other"]["smoothing"] == 5  # of 10 frames a second
    model = ClipModel(str(folder / "backbone"), 32)
    _, probs = FrameEncoder(model.backbone)(np.stack([frame.pixels for frame in Video(video, 32)]))
    rows = rows_of(tmp_path / "other.csv")
    found = [[float(row[label]) for label in CLASSES] for row in rows]
    np.testing.assert_allclose(found, box_filter(probs, 5), atol=1e-4)


def test_frames_between_steps_are_interpolated(folder: Path) -> None:
    model = ClipModel(str(folder / "temporal"), 4)
    clip = model((frame.index + 2, frame.pixels) for frame in Video(str(folder / "in/other.mp4"), 32))
    assert clip.frames.tolist() == list(range(2, 14))
    assert clip.encoded.tolist() == [2, 5, 8, 11]
    probs = clip.smoothed(0)
    np.testing.assert_array_equal(probs[::3], clip.probs)
    np.testing.assert_allclose(probs[1], (2 * clip.probs[0] + clip.probs[1]) / 3, rtol=1e-5)
    np.testing.assert_array_equal(probs[10:], clip.probs[[3, 3]])
    assert not np.allclose(clip.probs, clip.framewise, atol=0.01)


def test_a_damaged_video_is_predicted_as_far_as_it_goes(folder: Path, tmp_path: Path) -> None:
    summary = predict(folder, f"source={folder / 'cut.mp4'}", f"model={folder / 'backbone'}", f"out={tmp_path}")
    done = summary["predictions"]["cut"]
    assert 0 < done["frames"] < 120
    assert done["problem"]


def test_all_broken(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no video could be read: .*broken.mp4: not a readable video"):
        predict(folder, f"source={folder / 'in/broken.mp4'}", f"model={folder / 'backbone'}", f"out={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/nowhere: no model artifact there"):
        predict(folder, f"source={folder / 'in'}", "model=/nowhere", f"out={tmp_path}")


def test_names() -> None:
    names = output_names(["/a/clip.mp4", "s3://b/clip.mov", "/a/Clip.avi", "/a/x.y.mp4", "/a/none"])
    assert names[3:] == ["x.y", "none"]
    assert len({name.lower() for name in names}) == 5
    assert [name[:5].lower() for name in names[:3]] == ["clip-"] * 3
    assert output_names(["/a/clip.mp4", "s3://b/clip.mov"]) == names[:2]
