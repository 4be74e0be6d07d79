"""What a job does when it is told to stop, when it has to wait for room, and when it is started twice."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.images import write_pictures
from tests.system.jobs import HUNG, failing_job, kill_job, processes, run_job, start_job
from tests.system.test_training import wait_for_epoch
from tests.training.toy import PLACES, SMALL, write_faces

SAID = "interrupted; the same command goes on from here"

pytestmark = [pytest.mark.slow, pytest.mark.fault]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder / "train", (24, 12, 12), seed=1)
    write_faces(folder / "val", (20, 20, 20), seed=2)
    return folder


def arguments(faces: Path, out: Path, *more: str) -> list[str]:
    return [*(f"{name}={faces / PLACES[name]}" for name in ("labeled", "val")), f"out={out}", *SMALL, *more]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_stops_at_once_and_goes_on(number: signal.Signals, faces: Path, tmp_path: Path) -> None:
    """Ctrl-C in a terminal goes to all processes; none is left behind."""
    out = tmp_path / "out"
    process = start_job("train_backbone", *arguments(faces, out, "epochs=60"))
    try:
        wait_for_epoch(out, 2, process)
        told = time.monotonic()
        os.killpg(process.pid, number)
        process.wait(60)
        assert time.monotonic() - told < 20  # seconds, on a machine that does much else
        while processes(process.pid, "ray"):
            assert time.monotonic() - told < 60
            time.sleep(0.1)
    finally:
        kill_job(process)
    stdout, err = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    assert err.splitlines()[-1] == SAID
    assert "Traceback" not in err
    assert not (out / ".lease").exists()
    summary = run_job("train_backbone", *arguments(faces, out, "epochs=60"))
    assert summary["resumed_from_epoch"] >= 2


def test_the_loop_stops_while_it_trains(faces: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(10))
    places = (f"{name}={faces / PLACES[name]}" for name in ("labeled", "val"))
    loop = (f"source={tmp_path / 'in'}", f"out={tmp_path / 'loop'}", "rounds=1", "train.epochs=60")
    small = [f"train.{argument}" for argument in SMALL]
    process = start_job("self_train", *places, *loop, *small)
    try:
        wait_for_epoch(tmp_path / "loop" / "teacher", 1, process)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        kill_job(process)
    assert process.returncode == 130
    assert process.communicate()[1].splitlines()[-1] == SAID


def test_a_job_that_is_started_twice(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = arguments(faces, out, "epochs=30")
    jobs = [start_job("train_backbone", *job) for _ in range(2)]
    try:
        ended = {process.wait(HUNG): process for process in jobs}
    finally:
        for process in jobs:
            kill_job(process)
    assert set(ended) == {0, 2}
    summary = json.loads(ended[0].communicate()[0].splitlines()[-1])
    assert (summary["epochs"], summary["resumed_from_epoch"]) == (30, None)
    assert f"error: out={out}: a run is under way there since" in ended[2].communicate()[1].splitlines()[-1]
    assert not (out / ".lease").exists()
    assert not (out / ".run").exists()


def test_more_workers_than_cores_are_refused_here(faces: Path, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    status, err = failing_job("train_backbone", *arguments(faces, tmp_path / "out", f"workers={cores + 1}"))
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: workers={cores + 1}: there is no room for {cores + 1} workers with")


@pytest.fixture
def address() -> Iterator[str]:
    """Of a cluster of one node with two cores."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "temp_dir": tempfile.mkdtemp(dir="/tmp")})
    yield made.address
    ray.shutdown()
    made.shutdown()


def test_on_a_cluster_room_is_waited_for(address: str, faces: Path, tmp_path: Path, model: str) -> None:
    """That nobody will make, here."""
    there = {"RAY_ADDRESS": address}
    training = arguments(faces, tmp_path / "out", "workers=3", "wait_minutes=0.6")
    status, err = failing_job("train_backbone", *training, env=there)
    asked = "waiting for 3 workers with 1 CPU each: there is 1 node with 2 CPUs, free of it 2 CPUs; "
    *lines, last = err.splitlines()
    assert (status, last) == (2, f"error: wait_minutes=0.6: given up {asked}empty, it would have room for 2")
    assert [line for line in lines if asked in line]
    write_pictures(tmp_path / "in", range(3))
    places = (f"source={tmp_path / 'in'}", f"teacher={model}", f"table={tmp_path / 'table'}")
    status, err = failing_job("pseudo_label", *places, "device=cuda", "wait_minutes=0.02", env=there)
    assert status == 2
    assert "given up waiting for 1 worker with 1 GPU: there is 1 node with 2 CPUs and 0 GPUs" in (err.splitlines()[-1])
