"""Ctrl-C and SIGTERM, whatever a job is doing when they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAID = "interrupted; the same command goes on from here"
KILL = "os.kill(os.getpid(), signal.SIGINT)"


def job(body: str, seconds: float = 30, group: bool = False) -> subprocess.Popen[str]:
    """A job that takes no arguments; ``body`` is its work, whose ``print`` reaches this process at once."""
    lines = [
        "import ctypes, functools, os, signal, subprocess, sys, time, types",
        "print = functools.partial(print, flush=True)",
        "from ray_fer import interruption, job",
        "config = types.SimpleNamespace(outputs=dict)",
        "load_config = lambda job, arguments: config",
        "sys.modules['ray_fer.config'] = types.SimpleNamespace(job_help=None, load_config=load_config)",
        f"interruption.SECONDS = {seconds}",
        "def work(config):",
        textwrap.indent(textwrap.dedent(body), "    "),
        "job.main('evaluate', work)",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: subprocess.Popen[str], seconds: float = 20) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.mark.parametrize(
    "body",
    [
        f"{KILL}; time.sleep(60)",
        # dropped where nothing can be raised
        f"class A:\n    def __del__(self):\n        {KILL}\nA()\nwhile True: time.sleep(0.01)",
        # made another exception, as by what imports numpy
        f"try:\n    {KILL}; time.sleep(60)\nexcept KeyboardInterrupt:\n    raise ImportError('numpy') from None",
        # and while Ray is shut down
        "class Ray:\n    def shutdown(self):\n        if sys.modules.pop('ray', None):\n            "
        f"{KILL}; time.sleep(60)\nsys.modules['ray'] = Ray()\nreturn {{}}",
        # impatiently
        f"try:\n    {KILL}; time.sleep(60)\nfinally:\n    for _ in range(9): {KILL}; time.sleep(0.02)",
    ],
)
def test_the_first_one_ends_it_with_one_line(body: str) -> None:
    assert ended(job(body)) == (130, "", f"{SAID}\n")


def test_a_main_thread_that_is_in_c_for_long_is_not_waited_for() -> None:
    started = time.monotonic()
    assert ended(job(f"{KILL}; ctypes.CDLL(None).pause() + time.sleep(60)", seconds=0.3)) == (130, "", f"{SAID}\n")
    blocked = "signal.setitimer(signal.ITIMER_REAL, 0); print('there')\nfor _ in range(99): ctypes.CDLL(None).sleep(60)"
    process = job(blocked, seconds=0.3)
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    assert ended(process)[::2] == (130, f"{SAID}\n")
    assert time.monotonic() - started < 30


def test_an_answered_one_lets_it_live_and_the_next_is_new() -> None:
    body = f"""
        for _ in range(2):
            try:
                {KILL}; time.sleep(60)
            except KeyboardInterrupt:
                {KILL}; interruption.answer()
            time.sleep(0.6)  # longer than an unanswered one may take
            print('lives')
        {KILL}; time.sleep(60)
    """
    assert ended(job(body, seconds=0.3)) == (130, "lives\nlives\n", f"{SAID}\n")


def test_children_are_left_to_who_started_them() -> None:
    """The terminal's Ctrl-C goes to all of them."""
    child = "import time; print('child', flush=True); time.sleep(1); print('done', flush=True)"
    body = f"""
        with interruption.shielded_children():
            child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)
        try:
            print(child.stdout.readline(), end='')
            time.sleep(60)
        finally:
            print(child.stdout.readline(), end='')
    """
    process = job(body, group=True)
    assert process.stdout
    assert process.stdout.readline() == "child\n"
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == (130, "done\n", f"{SAID}\n")


def test_what_a_shell_keeps_from_ctrl_c_is_kept_from_it() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom ray_fer import interruption as i\ni.listen()"
    )
    code += (
        "\nassert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\nassert callable(signal.getsignal(signal.SIGTERM))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
