from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ray_fer import storage
from ray_fer.data.manifests import Manifest
from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact
from ray_fer.video.features import FEATURES, INFO, UnitExtractor, make_units, read_clips, survey_clips
from tests.images import CLASSES, tiny_model
from tests.videos import colour_video


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("model")))


def manifest(folder: Path) -> Manifest:
    """Two videos, one of which is broken; the last listed frame of the other does not exist."""
    (folder / "a.mp4").write_bytes(colour_video(["neutral", "anger", "happiness"]))
    (folder / "b.mp4").write_bytes(b"not a video")
    uris = [str(folder / name) for name in ("a.mp4", "a.mp4", "a.mp4", "b.mp4")]
    return Manifest(uris, np.array([0, -1, 1, 2]), CLASSES, videos=None, frames=[0, 1, 7, 0])


def test_written_and_read(artifact: Artifact, tmp_path: Path) -> None:
    (unit,) = make_units(manifest(tmp_path), artifact.id)
    extract = UnitExtractor(artifact.uri, str(tmp_path / FEATURES), 2, "cpu")
    batch = {key: [value] for key, value in unit.items()}
    counts = extract(batch)
    assert [counts[key] for key in ("dim", "videos", "frames", "labelled", "failed")] == [[512], [2], [3], [1], [2]]
    failures = json.loads(counts["failures"][0])
    assert [(failure["video"], failure["frame"]) for failure in failures] == [
        (str(tmp_path / "a.mp4"), 7), (str(tmp_path / "b.mp4"), 0),
    ]  # fmt: skip
    file = tmp_path / FEATURES / unit["file"]
    written = file.stat().st_mtime_ns
    assert extract(batch) == counts
    assert file.stat().st_mtime_ns == written, "what is there is not done again"
    info = {"classes": list(CLASSES), "backbone": artifact.id, "backbone_uri": artifact.uri, "files": [unit["file"]]}
    rest = {"failures": [], "videos": 2, "frames": 3, "labelled": 1, "failed": 2, "dim": 512}
    storage.write_json(str(tmp_path / INFO), info | rest)
    (clip,) = read_clips(str(tmp_path))
    assert (clip.name, clip.frames.tolist(), clip.labels.tolist()) == (str(tmp_path / "a.mp4"), [0, 1, 2], [0, -1, -1])
    assert (clip.features.shape, clip.probs.shape) == ((3, 512), (3, 3))
    np.testing.assert_allclose(clip.probs.sum(axis=1), 1, atol=1e-5)
    ((name, frames, labelled),) = survey_clips(str(tmp_path))
    assert (name, frames.tolist(), labelled) == (clip.name, [0, 1, 2], 1)


def test_a_file_is_named_after_what_it_is_made_from(artifact: Artifact, tmp_path: Path) -> None:
    names = {make_units(manifest(tmp_path), model)[0]["file"] for model in (artifact.id, artifact.id, "other")}
    relabelled = manifest(tmp_path)
    relabelled.labels[0] = 1
    assert len(names | {make_units(relabelled, artifact.id)[0]["file"]}) == 3


def test_no_extraction_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^features={tmp_path}: no features.json there; extract_features makes one$"):
        list(read_clips(str(tmp_path)))
