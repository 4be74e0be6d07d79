"""Running the jobs as a user does: as processes, from the command line."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_fer.config import load_config
from ray_fer.errors import UserError

ROOT = Path(__file__).parents[2]
HUNG = 480.0  # seconds; a job that takes one minute on one machine has taken three on another


def relative(path: Path) -> str:
    """``path`` as a user types it: against the folder that jobs run in, which is not their workers'."""
    return os.path.relpath(path, ROOT)


def start_job(name: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """The job as the leader of a process group of its own, so that its Ray dies with it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_job(name: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> dict[str, Any]:
    """Runs a job to its end and returns the summary on the last line of its stdout."""
    process = start_job(name, *arguments, env=env, cwd=cwd)
    try:
        out, err = process.communicate(timeout=HUNG)
    finally:
        kill_job(process)
    assert process.returncode == 0, f"{name} exited with {process.returncode}\n{err[-4000:]}"
    return dict(json.loads(out.splitlines()[-1]))


def failing_job(name: str, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a job that is expected to fail; its exit status and stderr."""
    process = start_job(name, *arguments, env=env)
    try:
        process.wait(120)
    finally:
        kill_job(process)  # before reading: what a killed driver leaves behind holds its stderr
    return process.returncode, process.communicate()[1]


def refusal(name: str, job: Callable[[Any], Any], arguments: Iterable[str], caplog: pytest.LogCaptureFixture) -> str:
    """What a job, run in this process, says of bad input: that and nothing before it, without any Ray."""
    caplog.set_level(logging.INFO)
    with pytest.raises(UserError) as refused:
        job(load_config(name, list(arguments)))
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("ray_fer")]
    assert not ray.is_initialized()
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    return message


def processes(session: int, name: str) -> list[int]:
    """The processes of a session whose command line has ``name`` in it; an actor's has its class."""
    found = subprocess.run(["pgrep", "-s", str(session), "-f", name], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def kill_job(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the job and to everything it started."""
    with_group = signal.SIGKILL
    try:
        os.killpg(process.pid, with_group)
    except ProcessLookupError:
        return
    process.wait()
