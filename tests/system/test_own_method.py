"""A method of the user's, one file in the current folder, as a job on real Ray Train and DeepSpeed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import timm

from ray_fer.config import load_config
from ray_fer.jobs.lineage import lineage
from tests.system.jobs import ROOT, run_job
from tests.training.toy import PLACES, SMALL, write_faces, write_sets


def test_one_file_is_all_that_a_method_needs(tmp_path: Path) -> None:
    write_sets(tmp_path, (20, 10, 10))
    write_faces(tmp_path / "val", (80, 80, 80), seed=2)  # enough for the feedback to act
    shutil.copy(ROOT / "examples" / "entropy.py", tmp_path / "mine.py")
    places = (f"{name}={place}" for name, place in PLACES.items())
    own = ("method=mine", "unlabeled=more", "method.weight=0.2", "epochs=3")
    summary = run_job("train_backbone", *places, *SMALL, *own, cwd=tmp_path)
    assert (summary["epochs"], summary["labeled"], summary["unlabeled"], summary["pseudo"]) == (3, 48, 40, 0)
    out = tmp_path / "model"
    assert timm.create_model(f"local-dir:{out}", pretrained=True).get_classifier().out_features == 3
    assert len(list((out / "feedback").iterdir())) == 3
    arguments = json.loads((out / "provenance.json").read_text())["identity"]["arguments"]
    assert arguments["method"] == {"name": "mine", "weight": 0.2}
    told = lineage(load_config("lineage", [f"model={out}"]))
    assert told["missing"] == []
    assert told["lineage"]["config"]["method"]["name"] == "mine"
