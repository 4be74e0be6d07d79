from __future__ import annotations

import contextlib
import os
import subprocess
import time

import pytest

from ray_fer.compat.ray import without_lines


def test_some_lines_are_dropped_and_all_others_get_through(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(2, b"before noise\n")
    with contextlib.suppress(KeyError), without_lines(b"noise"):
        os.write(2, b"first\nno")
        os.write(2, b"ise\nsecond\n")
        subprocess.run(["sh", "-c", "echo noise of a child >&2; echo third >&2; printf unfinished >&2"], check=True)
        raise KeyError
    os.write(2, b", noise after\n")
    assert capfd.readouterr().err == "before noise\nfirst\nsecond\nthird\nunfinished, noise after\n"


def test_a_child_that_goes_on_can_write_on(capfd: pytest.CaptureFixture[str]) -> None:
    with without_lines(b"noise"):
        child = subprocess.Popen(["sh", "-c", "read line; echo noise >&2; echo $line >&2"], stdin=subprocess.PIPE)
    child.communicate(b"later\n", timeout=30)
    assert child.returncode == 0
    deadline = time.monotonic() + 30  # who passes the lines on is another process
    while not (seen := capfd.readouterr().err) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == "later\n"
