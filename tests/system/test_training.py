"""Training on real Ray Train and DeepSpeed: what is published, and what survives the loss of whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from ray_fer import storage
from ray_fer.jobs.train_backbone import train_backbone
from ray_fer.models.artifact import open_artifact
from tests.system.jobs import HUNG, failing_job, processes, refusal, relative, run_job, start_job
from tests.training.toy import CLASSES, PLACES, SMALL, write_faces, write_selection


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder / "train", (24, 12, 12), seed=1)
    write_faces(folder / "val", (80, 80, 80), seed=2)
    write_faces(folder / "more", (10, 10, 10), seed=3)
    write_selection(folder / "selection", folder / "more")
    return folder


def arguments(faces: Path, out: object, *more: str) -> list[str]:
    places = (f"{name}={relative(faces / PLACES[name])}" for name in ("labeled", "val"))
    return [*places, f"out={out}", *SMALL, *more]


def history(out: Path) -> list[list[float]]:
    metrics = json.loads((out / "metrics.json").read_text())
    return [[row["epoch"], row["loss"], row["macro_f1"], row["nll"]] for row in metrics["history"]]


def wait_for_epoch(out: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    """Until the checkpoint of ``epoch`` (from 1) counts, that is, until Ray Train has noted it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        if last_checkpoint(out / ".run") >= epoch:
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint")


def last_checkpoint(run: Path) -> int:
    """Epochs behind the newest checkpoint that a run started now would go on from; 0 without one."""
    try:
        snapshot = json.loads((run / "ray" / "checkpoint_manager_snapshot.json").read_text())
    except (ValueError, FileNotFoundError):  # not there yet, or being written
        return 0
    return int(snapshot["checkpoint_results"][-1]["metrics"]["epoch"])


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return processes(process.pid, "RayTrainWorker")


@pytest.fixture(scope="module")
def undisturbed(faces: Path) -> tuple[Path, dict[str, Any]]:
    """A student trained without any accident: 12 epochs, feedback on."""
    out = faces / "undisturbed"
    return out, run_job("train_backbone", *arguments(faces, out, f"pseudo={faces / 'selection'}", "epochs=12"))


def test_what_is_published(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out, summary = undisturbed
    assert summary["classes"] == list(CLASSES)
    assert (summary["epochs"], summary["labeled"], summary["val"], summary["pseudo"]) == (12, 48, 240, 30)
    assert summary["feedback_val"] == 120
    assert summary["resumed_from_epoch"] is None
    assert summary["val_macro_f1"] > 0.8
    artifact = open_artifact(str(out))
    assert artifact.id == summary["id"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    metrics = artifact.metrics
    best = max(metrics["history"], key=lambda row: row["score"])
    assert metrics["val"]["epoch"] == best["epoch"] == summary["best_epoch"]
    assert metrics["val"]["macro_f1"] == best["macro_f1"] == summary["val_macro_f1"]
    assert metrics["val"]["choice"]["macro_f1"] == best["score"] == summary["choice_macro_f1"]
    assert metrics["val"]["feedback"]["macro_f1"] == summary["feedback_macro_f1"]
    assert (sum(metrics["labelled_counts"]), len(metrics["val"]["confidence_of_correct"])) == (48, 3)
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["config"]["backbone"] == "test_resnet"
    assert provenance["parents"]["selection"]["teacher"] == "0123"
    assert provenance["feedback"]["version_at_start"] == 0
    assert provenance["feedback"]["version_of_best"] == best["epoch"] - 1
    versions = [json.loads(path.read_text()) for path in sorted((out / "feedback").iterdir())]
    assert [version["source"].partition("/")[2] for version in versions] == [f"epoch-{n}" for n in range(1, 13)]
    assert not (out / ".run").exists()

    made = (out / "config.json").stat().st_mtime_ns
    again = run_job("train_backbone", *arguments(faces, out, f"pseudo={faces / 'selection'}", "epochs=12", "workers=2"))
    assert (out / "config.json").stat().st_mtime_ns == made
    assert again | {"seconds": 0} == summary | {"seconds": 0}
    status, err = failing_job("train_backbone", *arguments(faces, out, "epochs=12", "seed=4"))
    assert status == 2
    assert err.strip() == (
        f"error: out={out} holds a model trained with pseudo={faces / 'selection'}, seed=0; choose another out"
    )


@pytest.mark.fault
@pytest.mark.slow
def test_the_driver_is_killed_twice(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    """In the middle of an epoch; the result is that of the undisturbed run to the last bit."""
    out = faces / "driver-killed"
    job = arguments(faces, out, f"pseudo={faces / 'selection'}", "epochs=12")
    for epoch in (2, 6):
        process = start_job("train_backbone", *job)
        wait_for_epoch(out, epoch, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    status, err = failing_job("train_backbone", *job[:-1], "epochs=13")
    assert status == 2
    assert "holds an unfinished run with epochs=12" in err
    summary = run_job("train_backbone", *job)
    assert 6 <= summary["resumed_from_epoch"] < 12
    assert history(out) == history(undisturbed[0])
    assert summary["id"] == undisturbed[1]["id"]


@pytest.mark.fault
@pytest.mark.slow
def test_a_worker_is_killed(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out = faces / "worker-killed"
    process = start_job("train_backbone", *arguments(faces, out, f"pseudo={faces / 'selection'}", "epochs=12"))
    wait_for_epoch(out, 2, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    stdout, err = process.communicate(timeout=HUNG)
    assert process.returncode == 0, err[-3000:]
    summary = json.loads(stdout.splitlines()[-1])
    assert 2 <= summary["resumed_from_epoch"] < 12
    assert summary["id"] == undisturbed[1]["id"]
    assert "going on after epoch" in err


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_two_workers_become_one(faces: Path, stage: int) -> None:
    """Two ranks sharing their batches over gloo; half-way, the number of workers changes."""
    out = faces / f"stage-{stage}"
    job = arguments(faces, out, "epochs=40", f"zero_stage={stage}")
    process = start_job("train_backbone", *job, "workers=2")
    wait_for_epoch(out, 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate()
    assert "ninja" not in err.lower()
    summary = run_job("train_backbone", *job, "workers=1")
    assert 3 <= summary["resumed_from_epoch"] < 40
    assert summary["val_macro_f1"] > 0.5


@pytest.mark.slow
def test_everything_on_s3(faces: Path, s3: str) -> None:
    fs, bucket = storage.filesystem(s3)
    for place in ("train", "val"):
        fs.put(f"{faces / place}/", f"{bucket}/{place}/", recursive=True)
    places = [f"labeled={s3}/train/manifest.csv", f"val={s3}/val/manifest.csv", f"out={s3}/models/teacher"]
    summary = run_job("train_backbone", *places, *SMALL, "epochs=3")
    assert (summary["model"], summary["labeled"], summary["epochs"]) == (f"{s3}/models/teacher", 48, 3)
    assert open_artifact(summary["model"]).id == summary["id"]
    published = fs.find(f"{bucket}/models/teacher")  # the server keeps folders that have become empty
    assert [key.rsplit("/", 1)[-1] for key in published] == sorted(
        ["model.safetensors", "config.json", "metrics.json", "provenance.json"]
    )


@pytest.mark.slow
def test_an_error_of_the_user_on_a_worker_is_one_line(faces: Path, tmp_path: Path) -> None:
    val = write_faces(tmp_path / "val", (10, 10, 10), seed=5)
    for number in range(5):
        (tmp_path / "val" / f"anger-{number}.png").write_bytes(b"damaged")
    job = [argument for argument in arguments(faces, tmp_path / "out", "epochs=2") if not argument.startswith("val=")]
    status, err = failing_job("train_backbone", *job, f"val={val}")
    assert status == 2
    assert (
        err.strip().splitlines()[-1].startswith("error: val: 2 of 30 pictures cannot be read, more than 5%; the last")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("labeled=/nowhere.csv", "/nowhere.csv: cannot read the manifest"),
        ("backbone=resnet10tt", "backbone=resnet10tt: timm has no such model"),
        ("init=/nowhere", "/nowhere: no model artifact there"),
        ("pseudo=/nowhere", "pseudo=/nowhere: no selection there"),
        ("pretrained=/nowhere.pth", "pretrained=/nowhere.pth: no such file or folder"),
    ],
)
def test_bad_input_needs_no_cluster(
    change: str, message: str, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = [*arguments(faces, tmp_path / "out"), change]
    assert message in refusal("train_backbone", train_backbone, job, caplog)


@pytest.mark.slow
def test_a_student_starts_from_its_teacher(
    faces: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    job = [argument for argument in arguments(faces, tmp_path / "out") if "backbone" not in argument]
    more = (f"init={undisturbed[0]}", "epochs=1", "learning_rate=1e-9", "ema_decay=0")
    summary = run_job("train_backbone", *job, *more)
    assert summary["val_macro_f1"] > 0.5
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (undisturbed[0], tmp_path / "out"))
    assert theirs.keys() == ours.keys()
    for name, weights in theirs.items():
        if "running" not in name and "tracked" not in name:  # batch statistics follow the data, not the learning rate
            torch.testing.assert_close(ours[name], weights, atol=1e-6, rtol=0)
