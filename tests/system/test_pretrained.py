"""Training from a model of the Hub, as a user does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from ray_fer.config import load_config
from ray_fer.jobs.lineage import lineage
from ray_fer.models.artifact import load_model, open_artifact
from tests.hub import COMMIT, serve_hub
from tests.images import tiny_model
from tests.system.jobs import run_job
from tests.training.toy import write_faces


@pytest.mark.slow
def test_a_run_starts_from_the_hub(tmp_path: Path) -> None:
    net = tiny_model(str(tmp_path / "net"), mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    pushed = tmp_path / "hub" / "timm" / "resnet10t.c3_in1k"
    pushed.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(net.folder / name, pushed)
    (pushed / "README.md").write_text("---\nlicense: mit\n---\n")
    out = tmp_path / "out"
    arguments = [
        f"labeled={write_faces(tmp_path / 'train', (8, 8, 8), seed=1)}",
        f"val={write_faces(tmp_path / 'val', (8, 8, 8), seed=2)}",
        *(f"out={out}", "pretrained=resnet10t.c3_in1k", "image_size=32", "batch_size=8", "epochs=1"),
        # What is published is what the workers have read.
        *("learning_rate=1e-12", "warmup_epochs=0", "weight_decay=0"),
    ]
    with serve_hub(tmp_path / "hub") as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        summary = run_job("train_backbone", *arguments, env=environment)
        assert sum(each.startswith("GET") and "safetensors" in each for each in hub.asked) == 1
        hub.asked.clear()
        assert run_job("train_backbone", *arguments, env=environment)["id"] == summary["id"]
        assert not hub.asked
    model = open_artifact(str(out))
    assert (model.architecture, model.mean, model.std) == ("resnet10t", net.mean, net.std)
    ours, theirs = load_model(model), load_model(net)
    for (name, value), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if not name.startswith("fc."):
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    assert not (out / ".run").exists()
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["config"]["pretrained"] == "timm:resnet10t.c3_in1k"
    assert provenance["identity"]["contents"]["pretrained"] == COMMIT
    card = ModelCard((out / "README.md").read_text())
    assert card.data.license == "mit"
    assert str(tmp_path) not in card.content
    assert not lineage(load_config("lineage", [f"model={out}"]))["missing"]
