"""From a pretrained net and a bucket to one network, as a user does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import s3fs
import timm
import torch
from timm.models import save_for_hf

from ray_fer.config import load_config
from ray_fer.jobs.lineage import lineage
from ray_fer.models.artifact import open_artifact
from tests.images import tiny_model
from tests.system.jobs import run_job
from tests.training.toy import CLASSES, write_faces


@pytest.mark.slow
def test_a_head_and_then_one_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_for_hf(timm.create_model("resnet10t", num_classes=0), str(tmp_path / "net"))
    labeled, val = (write_faces(tmp_path / name, (10, 10, 10), seed) for seed, name in enumerate(("train", "val"), 1))
    write_faces(tmp_path / "more", (20, 20, 20), seed=3)
    test = write_faces(tmp_path / "test", (10, 10, 10), seed=4)
    out = tmp_path / "loop"
    sets = (f"labeled={labeled}", f"val={val}", f"source={tmp_path}/more", f"out={out}")
    chosen = ("loop=head", f"pretrained={tmp_path}/net", "distil=test_resnet", "rounds=1")
    head = "head={image_size: 32, steps: 40, folds: 2}"
    train = "train={image_size: 32, epochs: 4, batch_size: 16, warmup_epochs: 0, ema_decay: 0.8}"
    arguments = (*sets, *chosen, head, train, "device=cpu", "workers=1")

    found = run_job("self_train", *arguments)
    assert (found["model"], found["accepted"]) == (str(out / "student"), 60)
    again = run_job("self_train", *arguments)
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in found.items() if key != "seconds"
    }
    assert not lineage(load_config("lineage", [f"model={found['model']}"]))["missing"]
    scores = [
        run_job("evaluate", f"model={model}", f"data={test}", f"out={tmp_path}/seen")["macro_f1"]
        for model in (out / "head", out / "student")
    ]
    assert min(scores) > 0.8
    run_job("export_onnx", f"model={out}/head", f"out={tmp_path}/head.onnx")
    assert (
        run_job("evaluate", f"model={tmp_path}/head.onnx", f"data={test}", f"out={tmp_path}/seen")["macro_f1"]
        == scores[0]
    )


@pytest.mark.slow
def test_a_head_on_s3(tmp_path: Path, s3: str) -> None:
    """Whoever opens it downloads the model, and not the tables beside it."""
    for number, name in enumerate(("train", "val", "more"), 1):
        write_faces(tmp_path / name, (8, 8, 8), seed=number)
    s3fs.S3FileSystem().put(f"{tmp_path}/", f"{s3}/faces/".removeprefix("s3://"), recursive=True)
    teacher = tiny_model(f"{s3}/models/teacher", 0, CLASSES).uri
    sets = (f"labeled={s3}/faces/train/manifest.csv", f"val={s3}/faces/val/manifest.csv", f"source={s3}/faces/more")
    quick = ("steps=20", "folds=2", "label.engine=torch", "rounds=1")
    found = run_job("train_head", *sets, f"teacher={teacher}", f"out={s3}/models/head", *quick)
    assert (found["labeled"], found["table"]) == (24, 24)
    assert found["val_macro_f1"] > 0.8
    head = open_artifact(f"{s3}/models/head")
    names = ["README.md", "config.json", "metrics.json", "model.safetensors", "provenance.json"]
    assert sorted(path.name for path in head.folder.iterdir()) == names
