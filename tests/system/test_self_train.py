"""The loop as a process: rounds over growing buckets, killed wherever it may be, and the report that it ends with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from ray_fer.config import load_config
from ray_fer.jobs.lineage import lineage
from ray_fer.jobs.self_train import self_train
from tests.system.jobs import failing_job, refusal, run_job, start_job
from tests.training.toy import PLACES, write_faces

TRAIN = "{backbone: test_resnet, image_size: 32, batch_size: 16, warmup_epochs: 0, ema_decay: 0.8, epochs: 4}"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    write_faces(folder / "train", (24, 12, 12), seed=1)
    write_faces(folder / "val", (80, 80, 80), seed=2)
    write_faces(folder / "bucket-a", (40, 30, 20), seed=3)
    write_faces(folder / "bucket-b", (10, 20, 30), seed=4)
    # A leak that nobody would see: a picture of the validation set lies in the bucket.
    (folder / "bucket-a" / "leak.png").write_bytes((folder / "val" / "anger-0.png").read_bytes())
    return folder


def arguments(faces: Path, out: Path, *more: str) -> list[str]:
    return [
        *(f"labeled={faces / PLACES['labeled']}", f"val={faces / PLACES['val']}", f"source={faces / 'bucket-a'}"),
        *(f"out={out}", f"train={TRAIN}", "student={init: teacher}", "label={engine: torch, actors: 1}"),
        *("selection={rule: top_k, threshold: 0.6, per_class: 20}", *more),
    ]


@pytest.fixture(scope="module")
def undisturbed(faces: Path) -> tuple[Path, dict[str, Any]]:
    out = faces / "undisturbed"
    return out, run_job("self_train", *arguments(faces, out, "rounds=1"))


def test_a_loop(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out, summary = undisturbed
    (first,) = summary["rounds"]
    assert first["predictions"] == 90  # the leak is left out
    assert 20 <= first["accepted"] <= 60
    assert sum(first["accepted_per_class"].values()) == first["accepted"]
    ours, theirs = (first[f"{who}_macro_f1"]["choice"] for who in ("student", "teacher"))
    assert summary["macro_f1"]["choice"] == max(ours, theirs) > 0.8
    assert (summary["model"] == first["student"]) == (ours > theirs)
    assert first["reason"].endswith("the student replaces it" if ours > theirs else "the teacher stays")
    assert summary["stopped"] is None
    page = (out / "report.html").read_text()
    assert page.count("<img") >= 5
    assert "feedback half" in page
    assert first["reason"].partition("'")[0] in page
    assert "http" not in page
    sources = [json.loads(path.read_text())["source"] for path in sorted((out / "feedback").iterdir())]
    assert sources[0].startswith("round-1/teacher-")
    assert [source.partition("/")[2] for source in sources[1:]] == [f"epoch-{n}" for n in range(1, 5)]
    fed_back = json.loads((out / "feedback" / "v000001.json").read_text())["confusion_matrix"]
    teacher = json.loads((out / "teacher" / "metrics.json").read_text())["val"]
    assert fed_back == teacher["feedback"]["confusion_matrix"] != teacher["choice"]["confusion_matrix"]
    student = json.loads((out / "round-1" / "student" / "metrics.json").read_text())["val"]
    assert student["score"] == student["choice"]["macro_f1"] == ours

    made = (out / "teacher" / "config.json").stat().st_mtime_ns
    again = run_job("self_train", *arguments(faces, out, "rounds=1"))
    assert again | {"seconds": 0} == summary | {"seconds": 0}
    assert (out / "teacher" / "config.json").stat().st_mtime_ns == made


def test_the_student_knows_where_it_comes_from(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out, summary = undisturbed
    (first,) = summary["rounds"]
    told = run_job("lineage", f"model={out / 'round-1' / 'student'}")
    assert told["missing"] == []
    student = told["lineage"]
    parents = {parent["role"]: parent for parent in student["parents"]}
    assert list(parents) == ["labeled", "val", "feedback", "init", "pseudo"]
    assert (parents["labeled"]["count"], parents["val"]["count"]) == (48, 240)
    assert student["macro_f1"] == first["student_macro_f1"]
    assert student["config"]["init"] == str(out / "teacher")
    assert len(parents["labeled"]["digest"]) == 64
    updates = parents["feedback"]["updates"]
    assert updates["round-1"] == 1
    assert sum(updates.values()) == max(parents["feedback"]["version_of_best"], 1)
    teacher = parents["init"]
    assert teacher["macro_f1"] == first["teacher_macro_f1"]
    assert [parent["uri"] for parent in teacher["parents"]] == [parents["labeled"]["uri"], parents["val"]["uri"]]
    pseudo = parents["pseudo"]
    assert (pseudo["accepted"], pseudo["feedback_version"]) == (first["accepted"], 1)
    table, feedback, labelled_by = pseudo["parents"]
    assert table["sources"] == {str(faces / "bucket-a"): 91}
    assert (feedback["version"], feedback["updates"]) == (1, {"round-1": 1})
    assert (labelled_by["id"], labelled_by["above"]) == (teacher["id"], True)
    assert "parents" not in labelled_by


def test_lineage_says_what_is_gone(
    undisturbed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, _ = undisturbed
    student = f"model={out / 'round-1' / 'student'}"
    moved = [out / "teacher", out / "predictions", out / "feedback", out / "round-1" / "selection"]
    for number, place in enumerate(moved):
        place.rename(tmp_path / str(number))
    try:
        told = lineage(load_config("lineage", [student]))
        (out / "teacher").symlink_to(out / "round-1" / "student")
        other = lineage(load_config("lineage", [student]))
        (out / "teacher").unlink()
    finally:
        for number, place in enumerate(moved):
            (tmp_path / str(number)).rename(place)
    gone = [line.partition(": ") for line in told["missing"]]
    assert [place for place, _, _ in gone] == [
        f"feedback {out / 'feedback'}",
        f"init {out / 'teacher'}",
        f"pseudo {out / 'round-1' / 'selection'}",
        f"table {out / 'predictions'}",
        f"feedback {out / 'feedback'}",
        f"teacher {out / 'teacher'}",
    ]
    assert all(why.startswith("gone (") for _, _, why in gone)
    assert "another model is there now" in other["missing"][1]
    tree = capsys.readouterr().err
    assert f"├─ init: {out / 'teacher'}" in tree
    assert "PROBLEM: gone (" in tree
    selection = lineage(load_config("lineage", [f"model={out / 'round-1' / 'selection'}"]))
    assert [parent["role"] for parent in selection["lineage"]["parents"]] == ["table", "feedback", "teacher"]


def test_lineage_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "no model" in refusal("lineage", lineage, [f"model={tmp_path}"], caplog)


@pytest.mark.slow
def test_another_round_after_another_bucket_has_arrived(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out, summary = undisturbed
    (first,) = summary["rounds"]
    both = f"source=[{faces / 'bucket-a'},{faces / 'bucket-b'}]"
    more = run_job("self_train", *arguments(faces, out, "rounds=2", both))
    assert more["rounds"][0] == first
    assert more["rounds"][1]["predictions"] == 150
    assert more["rounds"][1]["labelled_by"] == first["teacher"]


@pytest.mark.fault
@pytest.mark.slow
def test_killed_again_and_again(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    """In the teacher's training, while labelling, in the student's training; then the same result to the last bit."""
    out = faces / "killed"
    job = arguments(faces, out, "rounds=1")
    for place in ("teacher/.run/ray", "predictions/_delta_log", "round-1/student/.run/ray"):
        process = start_job("self_train", *job)
        _wait_for(out / place, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    summary = run_job("self_train", *job)
    expected = json.loads(json.dumps(undisturbed[1]).replace(str(undisturbed[0]), str(out)))
    ignored = {"seconds", "report"}
    assert {k: v for k, v in summary.items() if k not in ignored} == {
        k: v for k, v in expected.items() if k not in ignored
    }
    rows = DeltaTable(str(out / "predictions")).to_pyarrow_table(columns=["uri", "identity", "model"]).to_pylist()
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 91


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train={epoch: 3}", "self_train: train: epoch: no such key, did you mean epochs?"),
        ("student={out: x}", "self_train: student.out: set by the loop"),
        ("selection={threshold: 3}", "self_train: selection: selection.threshold=3: input should be less than"),
        ("label={unit_rows: 0}", "self_train: label: unit_rows=0: input should be greater than or equal to 1"),
        ("source=/nowhere", "source=/nowhere: no such file or folder"),
        ("val=/nowhere.csv", "/nowhere.csv: cannot read the manifest"),
    ],
)
def test_bad_input_needs_no_cluster(
    change: str, message: str, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = [*arguments(faces, tmp_path / "out"), change]
    assert message in refusal("self_train", self_train, job, caplog)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_no_pseudo_label_is_said(faces: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out = faces / "choosy"  # a finished round is refused with other settings
    shutil.copytree(undisturbed[0] / "teacher", out / "teacher")
    job = arguments(faces, out, "rounds=1", "selection={rule: threshold, threshold: 1.0}")
    status, err = failing_job("self_train", *job)
    assert status == 2
    assert "selection.threshold=1.0: no prediction is confident enough" in err
