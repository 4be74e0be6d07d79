"""From labelled videos to predicted ones, by the real jobs: features, temporal encoder, prediction, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.evaluate import evaluate
from ray_fer.jobs.extract_features import extract_features
from ray_fer.jobs.lineage import lineage
from ray_fer.jobs.predict_video import predict_video
from ray_fer.jobs.train_temporal import train_temporal
from ray_fer.video.artifact import open_temporal
from ray_fer.video.features import read_clips
from ray_fer.video.smoothing import smoothed_macro_f1
from tests.images import CLASSES, tiny_model
from tests.methods.test_temporal import frame_classifier
from tests.system.jobs import failing_job, relative, run_job
from tests.videos import colour_video

SMALL = ("window=8", "stride=4", "width=32", "layers=1", "heads=2", "epochs=10", "batch_size=4", "learning_rate=0.01")
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}


def write_clips(folder: Path, seeds: range) -> str:
    """Videos of coloured runs and their manifest, one row per frame but every seventh; one listed file is broken."""
    folder.mkdir()
    rows = ["path,frame,label"]
    for seed in seeds:
        labels = [CLASSES[(seed + frame // 5) % 3] for frame in range(20)]
        (folder / f"{seed}.mp4").write_bytes(colour_video(labels))
        rows += [f"{seed}.mp4,{frame},{label}" for frame, label in enumerate(labels) if frame % 7 != 6]
    (folder / "broken.mp4").write_bytes(b"not a video")
    rows.append("broken.mp4,0,anger")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "clips.csv")


def training(study: Path, *more: str, out: str = "temporal") -> list[str]:
    places = (f"features={relative(study / 'features')}", f"val={relative(study / 'val-features')}")
    return [*places, f"out={relative(study / out)}", *SMALL, *more]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of four training and two validation clips; one Ray serves both jobs, as a cluster would."""
    study = tmp_path_factory.mktemp("study")
    model = tiny_model(str(study / "backbone")).uri
    try:
        for name, out, clips in (("train", "features", range(4)), ("val", "val-features", range(4, 6))):
            data = write_clips(study / name, clips)
            places = [f"data={data}", f"model={model}", f"out={study / out}", "actors=1"]
            summary = extract_features(load_config("extract_features", places))
            counts = (summary["frames"], summary["labelled"], summary["failed"])
            assert counts == (len(clips) * 20, len(clips) * 18, 1)
    finally:
        ray.shutdown()
    return study


@pytest.fixture(scope="module")
def trained(study: Path) -> dict[str, Any]:
    return run_job("train_temporal", *training(study), env=QUIET)


def test_what_is_published(study: Path, trained: dict[str, Any]) -> None:
    assert trained["classes"] == list(CLASSES)
    assert trained["features"] == {"clips": 4, "frames": 80, "labelled": 72}
    assert trained["val"] == {"clips": 2, "frames": 40, "labelled": 36}
    assert trained["epochs"] == 10
    assert trained["resumed_from_epoch"] is None
    scores = trained["macro_f1"]
    # The backbone's head is random, its features are not: the encoder has to find in them what any frame's own tell.
    # (That it learns what only neighbours know, and no smoothing finds, is tested where it is trained.)
    train, val = ([*read_clips(str(study / name))] for name in ("features", "val-features"))
    probs = frame_classifier(train, len(CLASSES))
    of_frames = smoothed_macro_f1([(clip.frames, probs(clip), clip.labels) for clip in val], 0)
    assert scores["encoder"] >= of_frames > 0.9 > 0.6 > scores["frame"]
    assert scores["frame"] <= scores["frame_smoothed"]
    assert trained["val_macro_f1"] == scores["encoder_smoothed"] >= scores["encoder"]
    artifact = open_temporal(str(study / "temporal"))
    assert artifact.id == trained["id"]
    assert (artifact.stride, artifact.frame_step) == (2, 1)
    assert (artifact.smoothing, artifact.frame_smoothing) == (trained["smoothing"], trained["frame_smoothing"])
    metrics = json.loads((study / "temporal" / "metrics.json").read_text())
    assert metrics["val"]["scores"] == scores
    assert metrics["val"]["macro_f1"] == pytest.approx(scores["encoder"])
    assert len(metrics["history"]) == 10
    provenance = json.loads((study / "temporal" / "provenance.json").read_text())
    assert provenance["parents"]["backbone"] == artifact.backbone.id
    told = lineage(load_config("lineage", [f"model={study / 'temporal'}"]))
    features, val, backbone = told["lineage"]["parents"]
    assert (features["count"], val["count"], told["missing"]) == (72, 36, [])
    assert (backbone["uri"], backbone["id"]) == (str(study / "backbone"), artifact.backbone.id)
    assert not (study / "temporal" / ".run").exists()


def test_again_answers_at_once_and_another_config_is_refused(study: Path, trained: dict[str, Any]) -> None:
    again = train_temporal(load_config("train_temporal", training(study, "workers=2")))
    assert not ray.is_initialized()
    assert again == {key: value for key, value in trained.items() if key not in ("job", "seconds")}
    status, err = failing_job("train_temporal", *training(study, "seed=4"))
    assert status == 2
    assert err.strip() == f"error: out={study / 'temporal'} holds a model trained with seed=0; choose another out"


def test_videos_are_predicted_and_a_broken_one_reported(study: Path, trained: dict[str, Any]) -> None:
    places = (f"source={study / 'val'}", f"model={study / 'temporal'}", f"out={study / 'predicted'}")
    summary = predict_video(load_config("predict_video", list(places)))
    assert (summary["videos"], summary["frames"], summary["model_id"]) == (2, 40, trained["id"])
    assert list(summary["failed"]) == [str(study / "val" / "broken.mp4")]
    rows = [line.split(",") for line in (study / "predicted" / "4.csv").read_text().splitlines()[1:]]
    right = [row[2] == CLASSES[(4 + int(row[0]) // 5) % 3] for row in rows]
    assert sum(right) >= 15
    assert (study / "predicted" / "5.png").exists()


def test_videos_and_predictions_on_s3(s3: str) -> None:
    model = tiny_model(f"{s3}/model").uri
    for name in ("a/x.mp4", "b/x.mp4"):
        storage.write_bytes(f"{s3}/in/{name}", colour_video(["anger", "neutral", "happiness"]))
    storage.write_bytes(f"{s3}/in/broken.mp4", b"not a video")
    config = load_config("predict_video", [f"source={s3}/in", f"model={model}", f"out={s3}/out"])
    summary = predict_video(config)
    assert (summary["videos"], summary["frames"], list(summary["failed"])) == (2, 6, [f"{s3}/in/broken.mp4"])
    names = [f"{name}.{kind}" for name in summary["predictions"] for kind in ("csv", "png")]
    assert storage.list_dir(f"{s3}/out") == sorted([*names, "summary.json"])


def test_it_is_evaluated_on_videos(study: Path, trained: dict[str, Any]) -> None:
    places = (f"model={study / 'temporal'}", f"data={study / 'val' / 'clips.csv'}", f"out={study / 'report'}")
    summary = evaluate(load_config("evaluate", list(places)))
    assert (summary["n"], summary["unreadable"]) == (36, 1)
    scores = trained["macro_f1"]
    assert summary["macro_f1"] == pytest.approx(scores["encoder_smoothed"], abs=0.05)
    assert summary["frame_macro_f1"] == pytest.approx(scores["frame"], abs=0.05)
    assert summary["frame_smoothed_macro_f1"] == pytest.approx(scores["frame_smoothed"], abs=0.05)
    assert Path(summary["report"]).exists()


def other_features(study: Path, tmp_path: Path, **changes: Any) -> str:
    """A copy of the validation features' description with some of it changed; the files stay where they are."""
    info = json.loads((study / "val-features" / "features.json").read_text())
    (tmp_path / "features.parquet").symlink_to(study / "val-features" / "features.parquet")
    (tmp_path / "features.json").write_text(json.dumps(info | changes))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("features=/nowhere",), "features=/nowhere: no features.json there"),
        (("val=/nowhere",), "val=/nowhere: no features.json there"),
        (("heads=3",), "heads=3: does not divide width=32"),
        (("stride=9",), "stride=9: larger than window=8"),
        (("smoothing=[]",), r"smoothing=\[\]: give at least one half-width"),
        (("dropout=1",), "dropout=1.0: nothing would be left"),
    ],
)
def test_bad_input(change: tuple[str, ...], message: str, study: Path) -> None:
    with pytest.raises(UserError, match=message):
        train_temporal(load_config("train_temporal", training(study, *change, out="bad")))
    assert not (study / "bad").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "0123"}, "val=.*: made by backbone 0123, but features by"),
        ({"classes": ["anger", "neutral", "happiness"]}, "val=.*: its classes anger, neutral, happiness are not those"),
        ({"files": []}, "val=.*: not one readable frame has a label"),
    ],
)
def test_features_that_do_not_fit(changes: dict[str, Any], message: str, study: Path, tmp_path: Path) -> None:
    val = other_features(study, tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        train_temporal(load_config("train_temporal", training(study, f"val={val}", out="bad")))
    assert not (study / "bad").exists()


def test_a_video_on_both_sides(study: Path) -> None:
    arguments = training(study, f"val={study / 'features'}", out="bad")
    with pytest.raises(UserError, match=r"val=.*: video .*/0.mp4 and 3 more is in features too"):
        train_temporal(load_config("train_temporal", arguments))


def test_a_lost_backbone(study: Path, tmp_path: Path) -> None:
    other = tiny_model(str(tmp_path / "other"), seed=1)
    (tmp_path / "features").mkdir()
    features = other_features(study, tmp_path / "features", backbone_uri=other.uri)
    with pytest.raises(UserError, match=rf"features=.*: made by backbone .*, but at .*other there is {other.id} now"):
        train_temporal(load_config("train_temporal", training(study, f"features={features}", out="bad")))
