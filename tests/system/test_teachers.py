"""Teachers of another make, labelling as jobs: opened from a real S3 server, refused before any cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.decode import decode
from ray_fer.jobs.export_onnx import export_onnx
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.models.artifact import open_artifact
from ray_fer.models.engines import make_engine
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import open_teacher
from tests.images import write_pictures
from tests.onnx_nets import ferplus
from tests.system.jobs import refusal, run_job
from tests.system.test_pseudo_label import rows_of


def test_an_exported_net_labels_from_s3_with_flip(s3: str, tmp_path: Path, model: str) -> None:
    exported = export_onnx(load_config("export_onnx", [f"model={model}", f"out={s3}/nets/net.onnx"]))
    write_pictures(tmp_path / "in", range(20))
    places = (f"source={tmp_path / 'in'}", f"teacher={exported['onnx']}", f"table={tmp_path / 't'}")
    summary = run_job("pseudo_label", *places, "flip=true", f"select={tmp_path / 's'}", "selection.threshold=0.4")
    assert summary["model"] == open_teacher(exported["onnx"]).model_id("float32", flip=True)
    assert (summary["labelled"], summary["selection"]["considered"]) == (20, 20)
    rows = rows_of(str(tmp_path / "t"))
    pixels = np.stack([decode(storage.read_bytes(str(row["uri"])), 32) for row in rows])
    how: dict[str, Any] = {"batch_size": 20, "device": "cpu", "precision": "float32"}
    engine = make_engine(open_artifact(model), "torch", **how)
    wanted = (softmax(engine(pixels)) + softmax(engine(np.ascontiguousarray(pixels[:, :, ::-1])))) / 2
    np.testing.assert_allclose([row["probs"] for row in rows], wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("sidecar", "argument", "message"),
    [
        ({"layout": "hwc"}, "", "ferplus.yaml: layout: 'hwc': "),
        ({"output": "probabilities"}, "", "ferplus.yaml: output: probabilities: by what "),
        ({}, "device=cuda", "device=cuda: "),
        ({}, "engine=torch", "engine=torch: "),
    ],
)
def test_what_is_wrong_with_a_teacher_needs_no_cluster(
    sidecar: dict[str, Any], argument: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "in", range(1))
    uri, _ = ferplus(tmp_path, **sidecar)
    arguments = [f"source={tmp_path / 'in'}", f"teacher={uri}", f"table={tmp_path / 't'}", argument]
    said = refusal("pseudo_label", pseudo_label, filter(None, arguments), caplog)
    assert message in said
    assert "ferplus" in said
    assert not (tmp_path / "t").exists()
