"""Online recipes on real Ray Train and DeepSpeed: two ranks that share what they see, and a rank that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import timm

from ray_fer.config import load_config
from ray_fer.jobs.held_out import UNLABELED
from ray_fer.jobs.lineage import lineage
from ray_fer.training.run_folder import digest
from tests.system.jobs import HUNG, run_job, start_job
from tests.system.test_training import arguments, history, wait_for_epoch, workers_of
from tests.training.toy import write_faces


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder / "train", (24, 12, 12), seed=1)
    write_faces(folder / "val", (80, 80, 80), seed=2)
    write_faces(folder / "more", (40, 20, 20), seed=3)
    return folder


def online(faces: Path, out: Path, *more: str) -> list[str]:
    return arguments(faces, out, "method=online", f"unlabeled={faces / 'more'}", "epochs=8", *more)


@pytest.fixture(scope="module")
def undisturbed(faces: Path) -> tuple[Path, dict[str, Any]]:
    """Two ranks, with a rule whose state is a table over the unlabeled faces, and DST's heads."""
    out = faces / "undisturbed"
    rule = ("method.rule=flexmatch", "method.head=debiased", "method.threshold=0.6")
    return out, run_job("train_backbone", *online(faces, out, "workers=2", *rule))


def test_what_is_published(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out, summary = undisturbed
    assert (summary["labeled"], summary["unlabeled"], summary["pseudo"]) == (48, 80, 0)
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.get_classifier().out_features == 3
    rows = json.loads((out / "metrics.json").read_text())["history"]
    assert all(0 <= row["accepted_share"] <= 1 for row in rows)
    assert rows[-1]["accepted_share"] > 0
    assert summary["choice_macro_f1"] > 0.5
    versions = [json.loads(path.read_text()) for path in sorted((out / "feedback").iterdir())]
    assert len(versions) == 8
    # What both ranks have seen: sixteen unlabeled faces in each of the three or four steps of an epoch.
    assert 20 < sum(versions[0]["q_hat"]) <= sum(versions[-1]["q_hat"]) <= 80
    assert versions[-1]["accepted_share"] == pytest.approx(rows[-1]["accepted_share"])


def test_what_it_learnt_from_is_on_record(
    faces: Path, undisturbed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = undisturbed
    told = lineage(load_config("lineage", [f"model={out}"]))
    assert told["missing"] == []
    (unlabeled,) = (parent for parent in told["lineage"]["parents"] if parent["role"] == "unlabeled")
    listing = pq.read_table(unlabeled["listing"]).to_pylist()
    assert {row["uri"] for row in listing} == {str(path) for path in (faces / "more").glob("*.png")}
    assert unlabeled["digest"] == digest(sorted([row["uri"], row["identity"]] for row in listing))
    assert f"unlabeled: {faces / 'more'}  (80 faces; sha256 {unlabeled['digest'][:12]})" in capsys.readouterr().err
    (out / UNLABELED).rename(faces / "elsewhere")
    assert "its faces are not recorded" in lineage(load_config("lineage", [f"model={out}"]))["missing"][0]
    (faces / "elsewhere").rename(out / UNLABELED)


@pytest.mark.slow
def test_a_rank_is_killed_while_faces_arrive(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    """The run keeps to what the folder held when it began, and ends with the undisturbed run's weights."""
    more = faces / "growing"
    shutil.copytree(faces / "more", more)
    out = faces / "killed"
    rule = ("method.rule=flexmatch", "method.head=debiased", "method.threshold=0.6")
    job = arguments(faces, out, "method=online", f"unlabeled={more}", "epochs=8", "workers=2", *rule)
    process = start_job("train_backbone", *job)
    wait_for_epoch(out, 2, process)
    write_faces(more / "later", (5, 5, 5), seed=9)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    stdout, err = process.communicate(timeout=HUNG)
    assert process.returncode == 0, err[-3000:]
    summary = json.loads(stdout.splitlines()[-1])
    assert summary["unlabeled"] == 80
    assert 2 <= summary["resumed_from_epoch"] < 8
    assert history(out) == history(undisturbed[0])


@pytest.mark.slow
def test_the_circuit_of_meta_feedback(faces: Path) -> None:
    out = faces / "meta"
    place = f"unlabeled={faces / 'more'}"
    summary = run_job("train_backbone", *arguments(faces, out, "method=meta_feedback", place, "epochs=6", "workers=2"))
    assert (summary["unlabeled"], summary["epochs"]) == (80, 6)
    assert timm.create_model(f"local-dir:{out}", pretrained=True).get_classifier().out_features == 3
    assert not (out / "feedback").exists()
