"""Who may run in a folder, and who has to notice that it no longer may."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ray_fer.errors import UserError
from ray_fer.training import lease
from ray_fer.training.lease import LeaseLostError, held, judge

BEAT, STALE = 0.05, 0.5


def write_lease(out: Path, number: int = 1, **said: Any) -> Path:
    """What a run has left, or is writing: of another machine, where not said otherwise."""
    path = out / ".lease" / f"{number:08d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    elsewhere = {"id": "theirs", "host": "elsewhere", "machine": "m", "pid": 7, "started": "1", "since": "noon"}
    path.write_text(json.dumps({**elsewhere, "beat": 0, **said}))
    return path


def leases(out: Path) -> list[str]:
    folder = out / ".lease"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_second_is_told_who_is_there(tmp_path: Path) -> None:
    with held(str(tmp_path), BEAT, STALE):
        with pytest.raises(
            UserError, match=rf"^out={tmp_path}: a run is under way there since .* process {os.getpid()}"
        ):
            held(str(tmp_path), BEAT, STALE).__enter__()
        time.sleep(4 * BEAT)
        assert leases(tmp_path) == ["00000001.json"]
        assert json.loads((tmp_path / ".lease" / "00000001.json").read_text())["beat"] > 0
        with held(str(tmp_path / "below"), BEAT, STALE):
            pass  # a folder in a folder is another one
    assert not (tmp_path / ".lease").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, UserError])
def test_it_is_given_back_whatever_happens(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), held(str(tmp_path), BEAT, STALE):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_start_at_once_one_runs(tmp_path: Path) -> None:
    """Also when all of them take over from one that has gone."""
    write_lease(tmp_path, 4, machine=lease._machine(), pid=2**22 + 1)
    ran, refused, gate, done = [], [], threading.Barrier(8), threading.Event()

    def run() -> None:
        gate.wait()
        try:
            with held(str(tmp_path), BEAT, STALE) as mine:
                ran.append(mine.number)
                done.wait(10)
        except UserError as error:
            refused.append(str(error))
        if len(refused) == 7:
            done.set()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ran == [5]
    assert len(refused) == 7


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = lease._started(child.pid)
    assert started
    mine = {"machine": lease._machine()}
    theirs = {**mine, "pid": child.pid, "started": started}
    assert judge(theirs, mine) == "alive"
    assert judge({**theirs, "started": "1"}, mine) == "dead", "its number was given to another process"
    assert judge({**theirs, "machine": "m"}, mine) == "unknown"
    child.kill()
    while lease._started(child.pid):
        time.sleep(0.01)
    assert judge(theirs, mine) == "dead", "before its parent asks for its status, too"
    child.communicate()
    assert judge(theirs, mine) == "dead"
    write_lease(tmp_path, 1, **theirs)
    before = time.monotonic()
    with held(str(tmp_path), BEAT, stale=60) as taken:
        assert taken.number == 2
        assert leases(tmp_path) == ["00000002.json"]
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_one_elsewhere_is_given_up_when_it_stands_still(content: str | None, tmp_path: Path) -> None:
    path = write_lease(tmp_path)
    if content is not None:
        path.write_text(content)  # killed while it wrote
    before = time.monotonic()
    with held(str(tmp_path), BEAT, STALE) as taken:
        assert taken.number == 2
    assert time.monotonic() - before >= STALE


def test_one_elsewhere_that_gives_signs_of_life_is_not(tmp_path: Path) -> None:
    write_lease(tmp_path)
    timer = threading.Timer(0.1, write_lease, (tmp_path,), {"beat": 1})
    timer.start()
    with pytest.raises(UserError, match="since noon, process 7 on elsewhere"):
        held(str(tmp_path), BEAT, stale=30).__enter__()
    timer.join()


def stand_still(out: Path, others: list[int]) -> None:
    """Holds the lease of ``out`` and lets others take it over."""
    with held(str(out), BEAT, STALE) as mine:
        mine.check()
        (out / ".lease" / "00000001.json").unlink()
        for number in others:
            write_lease(out, number)
        with pytest.raises(LeaseLostError):
            mine.check()
        time.sleep(60)


@pytest.mark.parametrize("others", [[], [1], [2]])
def test_who_stood_still_stops(others: list[int], tmp_path: Path) -> None:
    """Whether the other one has ended by now, or yet another has begun since, or it still runs; it is left alone."""
    code = (
        "from pathlib import Path; from tests.training.test_lease import LeaseLostError, stand_still\n"
        f"try: stand_still(Path({str(tmp_path)!r}), {others})\nexcept LeaseLostError as error: print(error)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        # What a shell starts in the background ignores SIGINT, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout.startswith(f"out={tmp_path}: this run stood still"), child.stderr
    assert leases(tmp_path) == [f"{number:08d}.json" for number in others]


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^out=/proc/x: cannot be written \(") as refused:
        held("/proc/x").__enter__()
    assert len(str(refused.value).splitlines()) == 1
