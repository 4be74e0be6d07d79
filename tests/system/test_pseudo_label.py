"""The main job on real processes: every image exactly once per content and model, whatever dies on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from deltalake import DeltaTable

from ray_fer import storage
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.labeling.table import MARKERS, create_table
from tests.images import CLASSES, picture, tiny_model, write_pictures
from tests.system.jobs import HUNG, ROOT, failing_job, kill_job, processes, refusal, run_job, start_job

# The engine that starts soonest, once: for tests in which neither is the point.
QUICK = ("engine=torch", "actors=1")


def rows_of(table: str) -> list[dict[str, object]]:
    rows = DeltaTable(table, storage_options=storage.delta_options(table)).to_pyarrow_table().to_pylist()
    return [dict(row) for row in rows]


def keys_of(table: str) -> Counter[tuple[object, ...]]:
    """Of the rows that are no marks."""
    return Counter(
        (row["uri"], row["identity"], row["model"]) for row in rows_of(table) if row["status"] not in MARKERS
    )


def wait_for_rows(table: str, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        if Path(table, "_delta_log").exists() and len(rows_of(table)) >= rows:
            return
        time.sleep(0.1)
    raise AssertionError("the job committed nothing")


def test_incremental_on_s3_in_two_halves(s3: str, model: str) -> None:
    """Source, model and table on S3; new, overwritten and deleted objects; nothing new."""
    fs, bucket = storage.filesystem(s3)
    fs.pipe({f"{bucket}/faces/half-1/{i:03d}.jpg": picture(i) for i in range(60)})
    fs.pipe({f"{bucket}/faces/odd/a b+c%20ä#?.jpg": picture(500), f"{bucket}/faces//double.jpg": picture(501)})
    fs.pipe({f"{bucket}/faces/readme.txt": b"no image", f"{bucket}/faces-other/x.jpg": picture(999)})
    teacher = f"{s3}/models/teacher"
    storage.upload_folder(Path(model), teacher, last="config.json")
    arguments = (f"source={s3}/faces", f"teacher={teacher}", f"table={s3}/tables/predictions", *QUICK)

    first = run_job("pseudo_label", *arguments)
    assert (first["listed"], first["skipped"], first["labelled"]) == (62, 1, 62)
    assert first["statuses"] == {"ok": 62}

    fs.pipe({f"{bucket}/faces/half-2/{i:03d}.jpg": picture(100 + i) for i in range(40)})
    fs.pipe({f"{bucket}/faces/half-1/{i:03d}.jpg": picture(200 + i) for i in range(5)})
    fs.rm(f"{bucket}/faces/half-1/059.jpg")
    second = run_job("pseudo_label", *arguments, f"select={s3}/selection", "selection.threshold=0.01")
    assert (second["listed"], second["already_labelled"], second["labelled"]) == (101, 56, 45)
    assert (second["gone"], second["returned"]) == (1, 0)
    left_out = {"superseded": 5, "gone": 1, "failed": 0, "duplicate": 0, "excluded": 0}
    assert second["selection"]["left_out"] == left_out
    assert second["selection"]["accepted"] == 101

    third = run_job("pseudo_label", *arguments)
    assert (third["labelled"], third["version"]) == (0, second["version"])

    keys = keys_of(f"{s3}/tables/predictions")
    assert len(keys) == 107
    assert set(keys.values()) == {1}
    entry = fs.info(f"{bucket}/faces/half-1/000.jpg")
    assert (f"{s3}/faces/half-1/000.jpg", entry["ETag"].strip('"'), first["model"]) in keys


def test_killed_in_the_middle_and_run_again(tmp_path: Path, model: str) -> None:
    """SIGKILL of the driver, of its whole Ray; meanwhile objects arrive, are overwritten and vanish."""
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(600))
    arguments = (f"source={source}", f"teacher={model}", f"table={table}", "unit_rows=32", "commit_seconds=0")
    process = start_job("pseudo_label", *arguments)
    wait_for_rows(table, 64, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    survived = len(rows_of(table))
    assert 64 <= survived < 600

    write_pictures(source, range(600, 630))
    changed = sorted(source.rglob("*.jpg"))[:20]
    for i, path in enumerate(changed):
        path.write_bytes(picture(2000 + i))
    gone = sorted(source.rglob("*.jpg"))[-10:]
    for path in gone:
        path.unlink()
    summary = run_job("pseudo_label", *arguments)
    assert summary["already_labelled"] + summary["labelled"] == 620

    keys = keys_of(table)
    assert set(keys.values()) == {1}
    stats = ((path, path.stat()) for path in source.rglob("*.jpg"))
    now = {(str(path), f"{stat.st_size}-{stat.st_mtime_ns}") for path, stat in stats}
    assert now <= {(uri, identity) for uri, identity, _ in keys}
    assert run_job("pseudo_label", *arguments)["labelled"] == 0


@pytest.mark.fault
@pytest.mark.slow
def test_a_killed_actor_costs_nothing(tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(800))
    arguments = (f"source={source}", f"teacher={model}", f"table={table}", "unit_rows=32", "commit_seconds=0")
    process = start_job("pseudo_label", *arguments)
    wait_for_rows(table, 64, process)
    actors = processes(os.getsid(process.pid), "LabelActor")
    assert actors, "no actor to kill"
    os.kill(actors[0], signal.SIGKILL)
    _, err = process.communicate(timeout=HUNG)
    assert process.returncode == 0, err[-3000:]
    keys = keys_of(table)
    assert len(keys) == 800
    assert set(keys.values()) == {1}


@pytest.mark.fault
@pytest.mark.slow
def test_two_runs_at_once(tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(300))
    arguments = (
        f"source={source}",
        f"teacher={model}",
        f"table={table}",
        "unit_rows=32",
        "commit_seconds=0",
        "actors=1",
    )
    both = [start_job("pseudo_label", *arguments) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=HUNG)
        assert process.returncode == 0, err[-3000:]
    keys = keys_of(table)
    assert len(keys) == 300
    assert set(keys.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("teachers", [1, 2])
def test_the_gpu_graph_gives_the_same_rows(teachers: int, tmp_path: Path, model: str) -> None:
    """Decoding tasks feeding inference actors, on a cluster that believes it has GPUs; the engine stays on the CPU."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, ray\n"
        "from ray_fer.config import load_config\n"
        "from ray_fer.jobs import pseudo_label\n"
        "ray.init(address='local', num_cpus=3, num_gpus=2)\n"
        "print(pseudo_label.pseudo_label(load_config('pseudo_label', sys.argv[1:])))\n"
    )
    source = tmp_path / "in"
    write_pictures(source, range(90))
    (source / "bad.jpg").write_bytes(b"no picture")
    teacher = f"teacher={model}"
    if teachers == 2:
        teacher = f"teacher=[{tiny_model(str(tmp_path / 'other'), 1, image_size=24).uri},{model}]"
    tables = {}
    for device in ("cpu", "cuda"):
        table = str(tmp_path / device)
        arguments = [f"source={source}", teacher, f"table={table}", f"device={device}", "precision=float32"]
        command = [sys.executable, str(script), *arguments, "unit_rows=40", "engine=torch", "batch_size=4"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG)
        assert done.returncode == 0, done.stderr[-4000:]
        tables[device] = {(row["uri"], row["model"]): row for row in rows_of(table)}
    assert len(tables["cpu"]) == len(tables["cuda"]) == 91 * teachers
    for key, row in tables["cpu"].items():
        other = tables["cuda"][key]
        assert [row[key] for key in ("identity", "digest", "label", "status", "error", "model")] == [
            other[key] for key in ("identity", "digest", "label", "status", "error", "model")
        ]
        assert (row["probs"] or []) == pytest.approx(other["probs"] or [], abs=1e-5)


@pytest.mark.slow
def test_another_model_labels_everything_again(tmp_path: Path, model: str) -> None:
    write_pictures(tmp_path / "in", range(30))
    places = (f"source={tmp_path / 'in'}", f"table={tmp_path / 't'}")
    first = run_job("pseudo_label", *places, f"teacher={model}")
    other = run_job("pseudo_label", *places, f"teacher={tiny_model(str(tmp_path / 'other'), 1).uri}")
    assert (first["labelled"], other["labelled"]) == (30, 30)
    assert other["model"] != first["model"]
    assert len(keys_of(str(tmp_path / "t"))) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher=/nowhere", "/nowhere: no model artifact there"),
        ("source=/nowhere", "source=/nowhere: no such file or folder"),
        ("batch=3", "batch: no such key"),
    ],
)
def test_bad_input_needs_no_cluster(
    change: str, message: str, tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "in", range(1))
    arguments = [f"source={tmp_path / 'in'}", f"teacher={model}", f"table={tmp_path / 't'}", change]
    assert message in refusal("pseudo_label", pseudo_label, arguments, caplog)


def test_other_classes_than_the_table_are_one_line_and_status_2(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(1))
    create_table(str(tmp_path / "t"), CLASSES)
    other = tiny_model(str(tmp_path / "other"), classes=(*CLASSES, "fear")).uri
    status, err = failing_job(
        "pseudo_label", f"source={tmp_path / 'in'}", f"teacher={other}", f"table={tmp_path / 't'}"
    )
    assert status == 2
    assert "its classes are neutral, anger, happiness; the model's are neutral, anger, happiness, fear" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_watching_labels_what_arrives_until_it_is_told_to_stop(tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(20))
    arguments = (f"source={source}", f"teacher={model}", f"table={table}", *QUICK)
    process = start_job("pseudo_label", *arguments, "watch=0.5")
    try:
        wait_for_rows(table, 20, process)
        write_pictures(source, range(20, 30))
        wait_for_rows(table, 30, process)
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        kill_job(process)
    assert process.returncode == 0, err[-3000:]
    assert json.loads(out.splitlines()[-1])["labelled"] == 30
    assert set(keys_of(table).values()) == {1}


@pytest.mark.slow
def test_too_many_failures_stop_the_run(tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(10))
    for number in range(200):
        (source / f"{number}.png").write_bytes(b"no picture")
    places = (f"source={source}", f"teacher={model}", f"table={table}")
    status, err = failing_job("pseudo_label", *places, *QUICK, "max_failures=5", "unit_rows=16")
    assert status == 2, err[-3000:]
    assert re.search(r"error: max_failures=5: \d+ of \d+ images failed \(\d+ undecodable\)", err.splitlines()[-1])
    assert 6 <= len(rows_of(table)) < 210
