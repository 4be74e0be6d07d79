"""The job that trains heads, in this process: what it publishes, what it leaves out, and what it refuses."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from timm.models import save_for_hf

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.jobs.evaluate import labelled_for, predict_pictures
from ray_fer.jobs.lineage import lineage
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.jobs.train_head import train_head
from ray_fer.models.artifact import open_artifact, save_artifact
from ray_fer.models.depth_net import depth_net_of
from tests.images import tiny_model
from tests.onnx_nets import FERPLUS_SIDECAR, write_net, write_sidecar
from tests.training.toy import CLASSES, write_faces

QUICK = ("steps=15", "folds=2", "label.engine=torch")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of toy classes; ``more`` has a copy of one of ``val`` and of one of ``train``, and a file that is none."""
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder / "train", (12, 6, 6), seed=1)
    write_faces(folder / "val", (12, 12, 12), seed=2)
    write_faces(folder / "more", (12, 12, 12), seed=3)
    for place in ("val", "train"):
        shutil.copy(folder / place / "anger-0.png", folder / "more" / f"copy-of-{place}.png")
    (folder / "more" / "broken.png").write_bytes(b"no picture")
    tiny_model(str(folder / "a"), 0, CLASSES)
    # Not timm's mean and standard deviation of the backbone.
    body = depth_net_of(timm.create_model("test_resnet", num_classes=len(CLASSES)))
    normalisation: Any = {"mean": (0.2, 0.3, 0.4), "std": (0.3, 0.3, 0.2)}
    facts: Any = {"classes": CLASSES, "image_size": 32, "metrics": {}, "provenance": {}}
    save_artifact(str(folder / "b"), body, **facts, **normalisation)
    return folder


def arguments(faces: Path, out: Path, *more: str) -> Any:
    places = [f"labeled={faces}/train/manifest.csv", f"val={faces}/val/manifest.csv", f"out={out}"]
    return load_config("train_head", [*places, *QUICK, *more])


def run(faces: Path, out: Path, *more: str) -> dict[str, Any]:
    return train_head(arguments(faces, out, *more))


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two backbones side by side, with all that it labels itself."""
    out = tmp_path_factory.mktemp("trained") / "head"
    return run(faces, out, f"source={faces}/more", f"teacher=[{faces}/a,{faces}/b]")


def test_the_published_net_is_what_was_validated(faces: Path, trained: dict[str, Any]) -> None:
    artifact = open_artifact(trained["model"])
    manifest = labelled_for(artifact.classes, f"{faces}/val/manifest.csv", None)
    probs, errors = predict_pictures(artifact, manifest.uris, 16)
    assert not errors
    scores = evaluate_probs(probs, manifest.labels, manifest.classes)
    assert scores["macro_f1"] == trained["val_macro_f1"] > 0.9
    assert scores["nll"] == pytest.approx(artifact.metrics["val"]["nll"], rel=0.02)
    assert artifact.temperature == artifact.metrics["val"]["temperature"]
    assert artifact.image_size == 32


def test_a_validation_picture_that_is_trained_on_is_told(
    faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(faces / "train", tmp_path / "train")
    shutil.copy(faces / "val" / "anger-0.png", tmp_path / "train" / "anger-0.png")
    given = (f"labeled={tmp_path}/train/manifest.csv", f"source={faces}/more", f"teacher={faces}/a", "rounds=0")
    run(faces, tmp_path / "out", *given)
    assert "val: 1 of 24 pictures of labeled have the bytes of one of val" in caplog.text


def test_labelled_faces_and_their_copies_are_no_unlabeled_ones(trained: dict[str, Any]) -> None:
    assert (trained["labeled"], trained["val"], trained["table"]) == (24, 36, 36)


def test_the_same_command_answers_at_once_and_another_is_refused(faces: Path, trained: dict[str, Any]) -> None:
    out = Path(trained["model"])
    written = (out / "model.safetensors").stat().st_mtime_ns
    given = (f"source={faces}/more", f"teacher=[{faces}/a,{faces}/b]")
    assert run(faces, out, *given) == trained
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="holds a model trained with seed=0; choose another out"):
        run(faces, out, *given, "seed=1")


def test_from_a_table_it_is_the_same_model(faces: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """The rows of the two tables lie in different orders: of the second model, they were labelled in two runs."""
    given = (f"table={trained['model']}/predictions", f"teacher=[{faces}/a,{faces}/b]")
    again = run(faces, tmp_path / "again", *given)
    assert again["id"] == trained["id"]
    assert "label" in trained["stages"]
    assert "label" not in again["stages"]


def test_its_origin_is_traced_and_its_card_tells_no_paths(faces: Path, trained: dict[str, Any]) -> None:
    told = lineage(load_config("lineage", [f"model={trained['model']}"]))
    assert told["missing"] == []
    roles = [node["role"] for node in told["lineage"]["parents"]]
    assert roles == ["labeled", "val", "teacher", "teacher", "table"]
    card = Path(trained["model"], "README.md").read_text()
    assert str(faces) not in card
    assert "Started from: a, b" in card


def test_a_further_model_teaches(faces: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """An ONNX net has no embeddings."""
    net = tmp_path / "net.onnx"
    write_net(net, ["n", 3, 32, 32], 3, gain=0.05)
    sidecar = FERPLUS_SIDECAR | {"classes": list(CLASSES), "image_size": 32, "colour": "rgb", "map": None}
    write_sidecar(net, {key: value for key, value in sidecar.items() if value is not None})
    given = (f"source={faces}/more", f"teacher={faces}/a", f"also=[{net},{faces}/b]")
    found = run(faces, tmp_path / "out", *given)
    assert found["val_macro_f1"] > 0.8
    assert found["table"] == 36
    assert found["id"] != trained["id"]
    assert arguments(faces, tmp_path, f"also={net}").also == [str(net)]
    with pytest.raises(UserError, match=r"^teacher=\S+net.onnx: no model of ray-fer, so no net can be published with"):
        run(faces, tmp_path / "other", f"teacher={net}", f"source={faces}/more")


def test_ten_faces_and_a_class_that_nobody_predicts(
    faces: Path, trained: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (faces / "train" / "manifest.csv").read_text().splitlines()
    few = faces / "train" / "few.csv"
    few.write_text("\n".join([lines[0], *lines[1:6], *lines[13:18]]))
    given = (f"labeled={few}", f"table={trained['model']}/predictions", f"teacher={faces}/a", "rounds=1")
    assert run(faces, tmp_path / "out", *given)["labeled"] == 10
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert messages == [
        "labeled: no face of happiness",
        "table: no unlabeled face is predicted to be happiness",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["teacher={faces}/a"], "table and source: give one of them, where the unlabeled faces are"),
        (["source={faces}/more"], "teacher and pretrained: give one of them"),
        (["teacher=[{faces}/a,{faces}/large]", "source={faces}/more"], "they see crops of 32 and 48 px; side by side"),
        (["teacher={faces}/a", "table={faces}/nowhere"], "table={faces}/nowhere: no predictions table there"),
        (["teacher={faces}/a", "table={faces}/plain"], "table={faces}/plain: no embeddings of teacher={faces}/a"),
        (["teacher={faces}/others", "source={faces}/more"], "labeled={faces}/train/manifest.csv: .*'neutral'"),
        (
            ["teacher={faces}/a", "source={faces}/more", "labeled={faces}/one.csv"],
            "all faces are of one class, neutral",
        ),
        (["teacher={faces}/a", "source={faces}/more", "label.embed=false"], "label.embed: set by the job"),
        (["teacher={faces}/a", "source={faces}/more", "val={faces}/train/manifest.csv"], "the score would be a leak"),
    ],
)
def test_bad_input_is_said_in_one_line(given: list[str], message: str, faces: Path, tmp_path: Path) -> None:
    if not (faces / "plain").exists():
        (faces / "one.csv").write_text("path,label\ntrain/neutral-0.png,neutral\ntrain/neutral-1.png,neutral\n")
        tiny_model(str(faces / "large"), 2, CLASSES, image_size=48)
        tiny_model(str(faces / "others"), 3, ("fear", "anger", "happiness"))
        values = [f"source={faces}/more", f"teacher={faces}/a", f"table={faces}/plain", "engine=torch"]
        pseudo_label(load_config("pseudo_label", values))
    with pytest.raises(UserError, match=message.format(faces=faces)) as refused:
        run(faces, tmp_path / "out", *(each.format(faces=faces) for each in given))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "config.json").exists()


def test_too_many_labelled_pictures_without_an_embedding(faces: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(faces / "train", tmp_path / "train")
    for number in (3, 4):
        (tmp_path / "train" / f"neutral-{number}.png").write_bytes(b"no picture")
    given = (f"labeled={tmp_path}/train/manifest.csv", f"table={trained['model']}/predictions", f"teacher={faces}/a")
    with pytest.raises(UserError, match=r"^labeled: 2 of 24 pictures cannot be read, more than 5%; .* no embedding"):
        run(faces, tmp_path / "out", *given)


def test_everything_from_a_pretrained_net(faces: Path, tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=0), str(tmp_path / "net"))
    found = run(faces, tmp_path / "out", f"pretrained={tmp_path}/net", f"source={faces}/more", "image_size=32")
    assert found["val_macro_f1"] > 0.8
    embedder = open_artifact(f"{tmp_path}/out/embedder")
    probs, _ = predict_pictures(embedder, [str(faces / "val" / "anger-0.png")], 1)
    assert np.allclose(probs, 1 / 3)
