from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A job like those in jobs/, whose work is `body`."""
    script = tmp_path / "job.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    script.write_text(
        "import logging\nimport sys\nfrom ray_fer.errors import UserError\nfrom ray_fer.job import main\n\n"
        f"def work(config):\n{lines}\n\nmain('evaluate', work)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)


GIVEN = ("model=m", "data=d", "out=o")


def test_the_last_line_of_stdout_is_the_summary(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "print('chatter')\nlogging.info('progress')\n"
        "return {'n': config.batch_size, 'model': config.model, 'f1': float('nan')}",
        *GIVEN,
        "batch_size=7",
    )
    assert done.returncode == 0
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary.pop("seconds") >= 0
    assert summary == {"job": "evaluate", "n": 7, "model": "m", "f1": None}
    assert "progress" in done.stderr
    assert "progress" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=m",), "error: evaluate: data: required, say data=…; out: required, say out=…"),
        ((*GIVEN, "batch_sise=3"), "error: evaluate: batch_sise: no such key, did you mean batch_size?"),
        (("nonsense",), "error: evaluate: 'nonsense' is not of the form key=value"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(tmp_path, "raise AssertionError", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message + "\n")


def test_what_the_user_can_mend_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = run(tmp_path, "raise UserError('data=d: it is empty')", *GIVEN)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: data=d: it is empty\n")


@pytest.mark.parametrize("body", ["raise ZeroDivisionError('deep down')", "return {'deep down': {1}}"])
def test_anything_else_is_a_traceback_and_status_1(tmp_path: Path, body: str) -> None:
    done = run(tmp_path, body, *GIVEN)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" in done.stderr
    assert "Error: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("open('/nowhere/x')", 2, "/nowhere/x: no such file or directory"),
        (
            "import errno\nraise OSError(errno.ENOSPC, 'No space left on device', 'o/w')",
            2,
            "o/w: no space left on device",
        ),
        ("raise PermissionError('Access Denied')", 2, "Access Denied"),
        ("raise ConnectionResetError('the store\\nhas gone')", 1, "the store has gone"),
    ],
)
def test_an_error_of_files_is_one_line(tmp_path: Path, body: str, status: int, line: str) -> None:
    done = run(tmp_path, body, *GIVEN)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"error: {line}\n")


def test_what_it_writes_to_is_tried_before_it_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run(tmp_path, "raise AssertionError", *GIVEN[:2], "out=file/there")
    assert (done.returncode, done.stdout) == (2, "")
    where = f"{tmp_path}/file/there"
    assert done.stderr == f"error: out={where}: cannot be written ([Errno 20] Not a directory: '{where}')\n"


def test_an_interrupted_job_says_how_to_go_on(tmp_path: Path) -> None:
    done = run(tmp_path, "raise KeyboardInterrupt", *GIVEN)
    assert done.returncode == 130
    assert "the same command goes on from here" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_is_the_commented_config(tmp_path: Path, flag: str) -> None:
    done = run(tmp_path, "raise AssertionError", "model=m", flag)
    assert done.returncode == 0
    assert "usage: python jobs/evaluate.py key=value" in done.stdout
    assert (ROOT / "conf" / "evaluate.yaml").read_text() in done.stdout
    assert done.stderr == ""
