"""Running the jobs as a user does: as processes, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start_job(name: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The job as the leader of a process group of its own, so that its Ray dies with it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_job(name: str, *arguments: str, env: dict[str, str] | None = None, timeout: float = 240) -> dict[str, Any]:
    """Runs a job to its end and returns the summary on the last line of its stdout."""
    process = start_job(name, *arguments, env=env)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        kill_job(process)
    assert process.returncode == 0, f"{name} exited with {process.returncode}\n{err[-4000:]}"
    return dict(json.loads(out.splitlines()[-1]))


def failing_job(name: str, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a job that is expected to fail; its exit status and stderr."""
    process = start_job(name, *arguments, env=env)
    try:
        _, err = process.communicate(timeout=120)
    finally:
        kill_job(process)
    return process.returncode, err


def kill_job(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the job and to everything it started."""
    with_group = signal.SIGKILL
    try:
        os.killpg(process.pid, with_group)
    except ProcessLookupError:
        return
    process.wait()
