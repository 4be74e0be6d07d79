"""`ray job submit` against a running cluster, and the file that describes an autoscaling one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.images import write_pictures
from tests.system.jobs import HUNG, ROOT, kill_job, run_job
from tests.system.servers import free_ports
from tests.training.toy import PLACES, SMALL, write_sets

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Head:
    """The addresses of a cluster's dashboard and of the cluster itself."""

    dashboard: str
    address: str

    def environment(self) -> dict[str, str]:
        """That of a shell which may talk to it."""
        return _environment()


@pytest.fixture
def head() -> Iterator[str]:
    """The address of the dashboard of a cluster."""
    with running_head() as running:
        yield running.dashboard


@contextlib.contextmanager
def running_head() -> Iterator[Head]:
    """A cluster of one node that runs as a service of its own."""
    # Not under pytest's folders: Ray's sockets have paths of at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port, dashboard, client, agent = free_ports(4)
    process = subprocess.Popen(
        [
            *(
                RAY,
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                "--disable-usage-stats",
                "--node-ip-address=127.0.0.1",
            ),
            *(f"--temp-dir={folder}", f"--port={port}", f"--ray-client-server-port={client}"),
            *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        ],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        # The agent takes the jobs, and its end is the node's: a cluster is there once both answer.
        while not all(_answers(f"http://127.0.0.1:{http}/api/version") for http in (dashboard, agent)):
            assert process.poll() is None, _last_words(folder)
            assert time.monotonic() < deadline, _last_words(folder)
            time.sleep(0.3)
        yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}")
        assert process.poll() is None, _last_words(folder)
    finally:
        process.terminate()  # it takes its daemons down; what lingers is killed
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        kill_job(process)
        shutil.rmtree(folder, ignore_errors=True)


def _last_words(folder: Path) -> str:
    """What the cluster's daemons logged last."""
    logs = [folder / "session_latest" / "logs" / name for name in ("raylet.out", "gcs_server.out", "dashboard.log")]
    logs += (folder / "session_latest" / "logs").glob("*agent*.[el]*")
    return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs if log.exists())


def _environment() -> dict[str, str]:
    # Like a user's of a cluster with token authentication, without touching the token in the home folder.
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    own["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | own


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True  # it wants a token, which `ray job` knows where to find
    except OSError:
        return False
    return True


def submit(head: str, folder: str, cwd: Path, line: list[str]) -> dict[str, Any]:
    """Submits a job from ``cwd`` with ``folder`` as its working directory, and returns its summary."""
    done = subprocess.run(
        [RAY, "job", "submit", "--address", head, "--working-dir", folder, "--", *line],
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=HUNG,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (summary,) = (json.loads(text) for text in done.stdout.splitlines() if text.startswith('{"job"'))
    assert isinstance(summary, dict)
    return summary


def test_the_same_line_after_ray_job_submit(head: str, tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", tmp_path / "table"
    write_pictures(source, range(50))
    line = ["python", "jobs/pseudo_label.py", f"source={source}", f"teacher={model}", f"table={table}"]
    summary = submit(head, ".", ROOT, line)
    assert summary["labelled"] == 50
    assert DeltaTable(str(table)).to_pyarrow_table().num_rows == 50


@pytest.mark.slow
def test_a_method_in_the_submitted_folder(head: str, tmp_path: Path) -> None:
    """The workers find it there, wherever ray-fer itself is installed."""
    faces, folder = write_sets(tmp_path, (20, 10, 10)), tmp_path / "submitted"
    (folder / "jobs").mkdir(parents=True)
    shutil.copy(ROOT / "jobs" / "train_backbone.py", folder / "jobs")
    shutil.copy(ROOT / "examples" / "entropy.py", folder / "mine.py")
    places = (f"labeled={faces / PLACES['labeled']}", f"val={faces / PLACES['val']}", f"out={tmp_path / 'model'}")
    line = ["python", "jobs/train_backbone.py", *places, *SMALL, "epochs=2", "workers=2"]
    own = ("method=mine", f"unlabeled={faces / 'more'}")
    summary = submit(head, str(folder), tmp_path, [*line, *own])
    assert (summary["epochs"], summary["unlabeled"]) == (2, 40)


@pytest.mark.fault
@pytest.mark.slow
def test_a_cluster_that_was_killed_is_not_waited_for(tmp_path: Path, model: str) -> None:
    write_pictures(tmp_path / "in", range(5))
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_ports(1)[0]}")
    arguments = (f"source={tmp_path / 'in'}", f"teacher={model}", f"table={tmp_path / 'table'}")
    summary = run_job("pseudo_label", *arguments, env={"RAY_TMPDIR": str(folder), "RAY_ADDRESS": ""})
    assert summary["labelled"] == 5
    shutil.rmtree(folder)


def test_cluster_yaml_is_what_ray_accepts() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["gpu"]["max_workers"] + types["cpu"]["max_workers"] <= config["max_workers"]
    assert all((ROOT / path).exists() for path in config["file_mounts"].values())
