"""The main job when the world around it fails: run again, the table is the same as an undisturbed run's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from ray_fer import storage
from ray_fer.labeling.table import open_table
from tests.images import deadly_picture, picture, write_deadly_decoder, write_pictures
from tests.system.faults import dying_commits, flaky_proxy
from tests.system.jobs import HUNG, ROOT, failing_job, kill_job, run_job, start_job
from tests.system.servers import S3Server, running_s3
from tests.system.test_pseudo_label import keys_of, rows_of, wait_for_rows

pytestmark = [pytest.mark.slow, pytest.mark.fault]

# Many small units and a commit for each.
BUSY = ("engine=torch", "unit_rows=32", "commit_seconds=0", "actors=2")


def on_path(folder: str) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([folder, str(ROOT)])}


def assert_as_if_undisturbed(table: str, *arguments: str) -> None:
    """Every key once, and the rows those of a run of its own into an empty table."""
    assert set(keys_of(table).values()) == {1}
    undisturbed = f"{table}-undisturbed"
    run_job("pseudo_label", *arguments, f"table={undisturbed}")
    columns = ("uri", "identity", "digest", "source", "label", "confidence", "status", "model")
    ours, expected = (
        sorted(tuple(str(row[column]) for column in columns) for row in rows_of(name)) for name in (table, undisturbed)
    )
    assert ours == expected


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_driver_dies_at_a_commit(when: str, tmp_path: Path, model: str) -> None:
    """Between writing a file and committing it, and between committing it and knowing that."""
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(300))
    arguments = (f"source={source}", f"teacher={model}", *BUSY)
    deadly = on_path(dying_commits(tmp_path / "deadly", when, after=2))
    status, _ = failing_job("pseudo_label", *arguments, f"table={table}", env=deadly)
    assert status == -signal.SIGKILL
    survived = len(rows_of(table))
    assert 0 < survived < 300
    summary = run_job("pseudo_label", *arguments, f"table={table}")
    assert (summary["already_labelled"], summary["labelled"]) == (survived, 300 - survived)
    assert_as_if_undisturbed(table, *arguments)


def test_vacuum_removes_what_a_killed_driver_left_and_nothing_else(tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", tmp_path / "table"
    write_pictures(source, range(300))
    arguments = (f"source={source}", f"teacher={model}", *BUSY)
    deadly = on_path(dying_commits(tmp_path / "deadly", "before", after=2))
    process = start_job("pseudo_label", *arguments, f"table={table}", env=deadly)
    try:
        assert process.wait(120) == -signal.SIGKILL
    finally:
        kill_job(process)
    wait_for_end_of_session(process.pid)  # workers write on until they notice
    opened = open_table(str(table))
    assert opened
    committed = {Path(name) for name in map(urllib.parse.unquote, opened.file_uris())}
    before, rows = files_in(table), rows_of(str(table))
    orphans = set(table.glob("model=*/*")) - committed
    assert orphans
    assert committed < before
    stranger = table / "notes.txt"
    stranger.write_text("not ours")

    summary = run_job("vacuum", f"table={table}", "retain_hours=0")
    assert summary["removed"] == len(orphans)
    assert files_in(table) == before - orphans | {stranger}
    assert rows_of(str(table)) == rows
    run_job("pseudo_label", *arguments, f"table={table}")
    assert_as_if_undisturbed(str(table), *arguments)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def wait_for_end_of_session(leader: int) -> None:
    """Workers are in process groups of their own."""
    deadline = time.monotonic() + 60
    while subprocess.run(["pgrep", "-s", str(leader)], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "Ray lives on without its driver"
        time.sleep(0.2)


def test_an_object_that_kills_its_decoder_is_one_failure_row(tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(150))
    victims = [source / "part-0" / "00000.jpg", source / "part-1" / "00100.jpg"]
    for path in victims:
        path.write_bytes(deadly_picture())
    env = on_path(write_deadly_decoder(tmp_path / "deadly"))
    arguments = (f"source={source}", f"teacher={model}", f"table={table}", "engine=torch", "actors=2")
    summary = run_job("pseudo_label", *arguments, env=env)
    assert summary["statuses"] == {"crashed": 2, "ok": 148}
    assert {row["uri"] for row in rows_of(table) if row["status"] == "crashed"} == {str(path) for path in victims}
    assert set(keys_of(table).values()) == {1}
    assert run_job("pseudo_label", *arguments, env=env)["labelled"] == 0


def test_the_disk_is_full(tmp_path: Path, model: str) -> None:
    source, disk = tmp_path / "in", tmp_path / "disk"
    write_pictures(source, range(200))
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        arguments = (f"source={source}", f"teacher={model}", *BUSY)
        table = str(disk / "table")
        run_job("pseudo_label", f"source={source / 'part-0'}", *arguments[1:], f"table={table}")
        labelled = len(rows_of(table))
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        status, err = failing_job("pseudo_label", *arguments, f"table={table}")
        assert status == 2
        assert "No space left on device" in err.splitlines()[-1]
        assert len(rows_of(table)) == labelled
        filler.unlink()
        run_job("pseudo_label", *arguments, f"table={table}")
        assert len(rows_of(table)) == 200
        assert set(keys_of(table).values()) == {1}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def use(server: S3Server, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    for name, value in (server.environment() | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return "s3://faults"


def fill(bucket: str, count: int, model: str) -> tuple[str, ...]:
    fs, path = storage.filesystem(bucket)
    fs.mkdir(path)
    fs.pipe({f"{path}/faces/{i:04d}.jpg": picture(i) for i in range(count)})
    storage.upload_folder(Path(model), f"{bucket}/teacher", last="config.json")
    return (f"source={bucket}/faces", f"teacher={bucket}/teacher", *BUSY)


def test_the_s3_server_goes_and_comes_back(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3(tmp_path / "s3") as server:
        bucket = use(server, server.endpoint, monkeypatch)
        arguments = fill(bucket, 400, model)
        table = f"{bucket}/table"
        process = start_job("pseudo_label", *arguments, f"table={table}", "max_attempts=9")
        try:
            wait_for_s3_rows(table, 64, process)
            server.stop()
            time.sleep(8)
            server.start()
            process.communicate(timeout=HUNG)
        finally:
            kill_job(process)
        run_job("pseudo_label", *arguments, f"table={table}", "max_attempts=9")
        good = [row for row in rows_of(table) if row["status"] == "ok"]
        assert len(good) == len({row["uri"] for row in good}) == 400
        assert run_job("pseudo_label", *arguments, f"table={table}")["labelled"] == 0


def wait_for_s3_rows(table: str, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        if storage.exists(f"{table}/_delta_log") and len(rows_of(table)) >= rows:
            return
        time.sleep(0.3)
    raise AssertionError("the job committed nothing")


def test_a_network_that_errs(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request in twenty is answered 500, 503 or two seconds late: nobody notices."""
    with running_s3(tmp_path / "s3") as server:
        arguments = fill(use(server, server.endpoint, monkeypatch), 300, model)
        with flaky_proxy(server.endpoint, 0.05) as endpoint:
            bucket = use(server, endpoint, monkeypatch)
            summary = run_job("pseudo_label", *arguments, f"table={bucket}/table")
            assert summary["statuses"] == {"ok": 300}
        use(server, server.endpoint, monkeypatch)
        assert_as_if_undisturbed(f"{bucket}/table", *arguments)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, where the driver is, and room for workers."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": tempfile.mkdtemp(dir="/tmp")})
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_worker_node_is_lost(tmp_path: Path, model: str, cluster: Cluster) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(600))
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    arguments = (f"source={source}", f"teacher={model}", *BUSY)
    process = start_job("pseudo_label", *arguments, f"table={table}", env={"RAY_ADDRESS": cluster.address})
    try:
        wait_for_rows(table, 64, process)
        cluster.remove_node(nodes[0], allow_graceful=False)
        _, err = process.communicate(timeout=HUNG)
    finally:
        kill_job(process)
    assert process.returncode == 0, err[-3000:]
    assert len(rows_of(table)) == 600
    assert_as_if_undisturbed(table, *arguments)
