from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.export_onnx import TOLERANCE, compare, drawn_faces, export_onnx, sidecar_of
from ray_fer.models.artifact import Artifact, load_model, save_artifact
from ray_fer.models.engines import make_engine
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import OnnxTeacher, check_teacher, open_teacher
from tests.images import tiny_model

CLASSES = ("happiness", "my own", "anger")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("m")), classes=CLASSES, std=(0.5, 0.4, 0.3), temperature=1.5)


@pytest.fixture(scope="module")
def exported(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "net.onnx"
    return out, export(artifact.uri, out)


def export(model: str, out: Path | str) -> dict[str, Any]:
    return export_onnx(load_config("export_onnx", [f"model={model}", f"out={out}"]))


def test_the_file_is_a_teacher_that_predicts_the_same(
    artifact: Artifact, exported: tuple[Path, dict[str, Any]]
) -> None:
    out, summary = exported
    teacher = open_teacher(str(out))
    check_teacher(teacher)
    assert isinstance(teacher, OnnxTeacher)
    assert teacher.classes == ("anger", "happiness", "my own")
    assert teacher.image_size == artifact.image_size
    assert (summary["model_id"], summary["teacher_id"]) == (artifact.id, teacher.id)
    how: dict[str, Any] = {"batch_size": 5, "device": "cpu", "precision": "float32"}
    pixels = drawn_faces(5, 32)
    ours = softmax(make_engine(artifact, "torch", **how)(pixels))
    theirs = softmax(make_engine(teacher, "auto", **how)(pixels))
    np.testing.assert_allclose(theirs, ours[:, [2, 0, 1]], atol=TOLERANCE)
    assert np.ptp(ours, axis=0).max() > 100 * TOLERANCE, "predictions that do not differ would prove nothing"


def test_the_summary_says_how_far_both_are_apart(artifact: Artifact, exported: tuple[Path, dict[str, Any]]) -> None:
    out, summary = exported
    assert summary["max_difference"].keys() == {"random", "faces"}
    assert 0 < max(summary["max_difference"].values()) <= TOLERANCE
    assert sorted(path.name for path in out.parent.iterdir()) == ["net.md", "net.onnx", "net.yaml"]
    assert (out.parent / "net.md").read_bytes() == (artifact.folder / "README.md").read_bytes()
    assert yaml.safe_load((out.parent / "net.yaml").read_text())["temperature"] == 1.5


def test_another_model_s_file_is_told_from_ours(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    other = tiny_model(str(tmp_path), seed=1, classes=CLASSES)
    assert min(compare(other, exported[0])[1].values()) > 100 * TOLERANCE


def test_a_file_that_disagrees_is_not_kept(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = sidecar_of(artifact)
    monkeypatch.setattr("ray_fer.jobs.export_onnx.sidecar_of", lambda _: said.replace("rgb", "bgr"))
    out = tmp_path / "out" / "net.onnx"
    with pytest.raises(UserError, match=f"out={out}: not written, its probabilities differ from the artifact's"):
        export(artifact.uri, out)
    assert not out.parent.exists()


def test_an_artifact_with_broken_weights_is_not_even_opened(artifact: Artifact, tmp_path: Path) -> None:
    model = load_model(artifact)
    with torch.no_grad():
        model.get_classifier().bias[0] = torch.nan  # type: ignore[operator,index]
    facts: dict[str, Any] = {"classes": CLASSES, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(
        UserError, match=r"model.safetensors: its weights are broken: 1 of \d numbers of .*bias are NaN"
    ):
        save_artifact(str(tmp_path / "m"), model, **facts, metrics={}, provenance={})


def test_what_cannot_be_exported(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out=.*net.bin: not the name of an .onnx file"):
        export(artifact.uri, tmp_path / "net.bin")
    with pytest.raises(UserError, match=f"model={tmp_path}: no model artifact there"):
        export(str(tmp_path), tmp_path / "net.onnx")
