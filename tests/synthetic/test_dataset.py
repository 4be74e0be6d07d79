import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ray_fer.errors import UserError
from ray_fer.synthetic.config import DrawFacesConfig
from ray_fer.synthetic.dataset import draw_faces, encode_mp4
from ray_fer.synthetic.plan import CLASSES, LABELED_SHARES, MEASURED_SHARES, class_counts, plan_pictures


def _config(out: Path, **changes: Any) -> DrawFacesConfig:
    values: dict[str, Any] = {
        "out": str(out),
        "seed": 3,
        "image_size": 32,
        "difficulty": 0.5,
        "labeled": 40,
        "val": 21,
        "test": 21,
        "unlabeled": [30, 20],
        "clips": 3,
        "clip_frames": 8,
    }
    return DrawFacesConfig(**{**values, **changes})


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_class_counts_are_exact_proportional_and_floored() -> None:
    assert class_counts(10, {"a": 0.7, "b": 0.25, "c": 0.05}, ("a", "b", "c")) == {"a": 7, "b": 3, "c": 0}
    assert class_counts(10, {"a": 0.7, "b": 0.25, "c": 0.05}, ("a", "b", "c"), floor=2) == {"a": 5, "b": 3, "c": 2}
    for total in (7, 100, 601):
        assert sum(class_counts(total, LABELED_SHARES, CLASSES, floor=1).values()) == total
    with pytest.raises(ValueError, match="at least 4"):
        class_counts(10, LABELED_SHARES, CLASSES, floor=4)


def test_labelled_set_is_long_tailed_and_the_measured_sets_less() -> None:
    labeled, measured = class_counts(500, LABELED_SHARES, CLASSES, 5), class_counts(500, MEASURED_SHARES, CLASSES, 5)
    assert labeled["neutral"] == 180
    assert labeled["disgust"] == 5
    assert max(labeled.values()) / min(labeled.values()) > 30 > 3 > max(measured.values()) / min(measured.values())


def test_no_person_is_in_two_sets(tmp_path: Path) -> None:
    sets = plan_pictures(_config(tmp_path, labeled=400, val=200, test=200, unlabeled=[300, 300, 300]))
    people = [{picture.subject for picture in pictures} for pictures in sets.values()]
    assert len(set.union(*people)) == sum(len(members) for members in people)
    assert list(sets) == ["labeled", "val", "test", "bucket-a", "bucket-b", "bucket-c"]
    assert not {p.label for p in sets["bucket-a"]} <= set(CLASSES)


def test_the_whole_study_is_written(tmp_path: Path) -> None:
    summary = draw_faces(_config(tmp_path), workers=1)
    assert summary["pictures"] == 132
    assert summary["clips"] == 3
    subjects: dict[str, set[str]] = {}
    for name, count in (("labeled", 40), ("val", 21), ("test", 21)):
        rows = _rows(tmp_path / f"{name}.csv")
        assert list(rows[0]) == ["path", "label", "subject"]
        assert len(rows) == count
        assert set(Counter(row["label"] for row in rows)) == set(CLASSES)
        for row in rows:
            assert Image.open(tmp_path / row["path"]).size == (32, 32)
        subjects[name] = {row["subject"] for row in rows}
    for name, count in (("bucket-a", 30), ("bucket-b", 20)):
        truth = _rows(tmp_path / f"{name}.truth.csv")
        on_disk = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / name).rglob("*.*"))
        assert on_disk == sorted(row["path"] for row in truth)
        assert len(truth) == count
    for split in ("train", "val", "test"):
        rows = _rows(tmp_path / f"clips-{split}.csv")
        assert [row["frame"] for row in rows] == [str(frame) for frame in range(8)]
        subjects[f"clips-{split}"] = {row["subject"] for row in rows}
        with av.open(str(tmp_path / rows[0]["path"])) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8
    assert sum(len(members) for members in subjects.values()) == len(set.union(*subjects.values()))


def test_equal_configs_give_equal_files_in_any_number_of_processes(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        draw_faces(_config(tmp_path / name, labeled=240, clip_frames=4), workers=workers)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 240 + 92 + 3 + 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_another_seed_gives_other_faces(tmp_path: Path) -> None:
    small = {"labeled": 7, "val": 7, "test": 7, "unlabeled": [1], "clips": 0}
    for seed in (1, 2):
        draw_faces(_config(tmp_path / str(seed), seed=seed, **small), workers=1)
    first, second = ((tmp_path / seed / "labeled/000000.jpg").read_bytes() for seed in ("1", "2"))
    assert first != second
    assert not list((tmp_path / "1").glob("clips*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"image_size": 33}, "image_size: must be even"), ({"clips": 2}, "clips: must be 0 or at least 3")],
)
def test_what_cannot_be_drawn_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_faces(_config(tmp_path, **changes))


def test_video_keeps_the_frames() -> None:
    ramp = np.linspace(0, 255, 32)[None, :, None] * np.ones((32, 1, 3))
    frames = np.stack([ramp * share for share in (0.2, 0.6, 1.0)]).astype(np.uint8)
    with av.open(io.BytesIO(encode_mp4(frames, 15))) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 5
