"""What a kill costs: `python -m benchmarks.labeling.kill_loss`.

The job labels drawn pictures, each under many names, into an empty table. At a random moment after its first file the
driver and all of its Ray get SIGKILL. Lost is what was computed and not committed, in seconds of work of all workers:
the rows of files that no commit names, at the rate until then, and the time since each worker wrote its last file.

Once more the kill comes while one slow unit is waited for: the last picture takes ten minutes to decode, and nothing
else has happened for longer than the pause between commits. Then no file may be uncommitted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.labeling.overhead import link_pictures, write_material
from benchmarks.results import RESULTS, write_results
from ray_fer.config import load_config
from ray_fer.labeling.dispatch import UNIT_SECONDS
from ray_fer.labeling.table import files_of, open_table

ROOT = Path(__file__).parents[2]
# A rate needs some files.
EARLIEST_SECONDS = 3.0
START_SECONDS = 300.0
# Beyond the pause between commits.
WAIT_SECONDS = 5.0
_SLOW = b"slow to decode"


def main() -> None:
    """Kills, measures, and writes ``labeling-kill-loss.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=200_000, help="more than are labelled until the last moment")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--latest", type=float, default=40.0, help="seconds after the first file of the latest kill")
    parser.add_argument("--slow-size", type=int, default=20_000, help="images beside the slow one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    teacher, pictures = write_material(arguments.work)
    folder = link_pictures(arguments.work / f"links-{arguments.size}", pictures, arguments.size)
    workers = len(os.sched_getaffinity(0))
    rng = random.Random(arguments.seed)
    kills = []
    for number in range(arguments.kills):
        kills.append(kill_once(folder, teacher, workers, rng.uniform(EARLIEST_SECONDS, arguments.latest)))
        print(f"{number + 1}/{arguments.kills} {kills[-1]}", file=sys.stderr)
    commit_seconds = load_config("pseudo_label", ["source=x", "teacher=x", "table=x"]).commit_seconds
    few = link_pictures(arguments.work / f"links-{arguments.slow_size}", pictures, arguments.slow_size)
    slow = kill_behind_a_slow_unit(arguments.work, few, pictures[0], teacher, workers, commit_seconds + WAIT_SECONDS)
    print(f"slow unit {slow}", file=sys.stderr)
    facts = {
        "images": arguments.size,
        "commit_seconds": commit_seconds,
        "unit_seconds": UNIT_SECONDS,
        "kills": kills,
        "slow_unit": slow,
    }
    write_results(arguments.out, "labeling-kill-loss", facts, markdown)


def kill_once(folder: Path, teacher: Path, workers: int, after: float) -> dict[str, float]:
    """Runs the job, kills it ``after`` seconds from its first file, and answers with what was lost."""

    def wait(table: Path) -> None:
        time.sleep(after)

    return {"after": after, **_killed(str(folder), teacher, workers, str(ROOT), wait)}


def kill_behind_a_slow_unit(
    work: Path, folder: Path, picture: Path, teacher: Path, workers: int, seconds: float
) -> dict[str, float]:
    """Kills the job when only a slow picture has been left for so many ``seconds``, and answers with what was lost."""
    slow = work / "slow" / "last.jpg"
    slow.parent.mkdir(exist_ok=True)
    slow.write_bytes(picture.read_bytes() + _SLOW)
    patch = work / "slow-decoder"
    patch.mkdir(exist_ok=True)
    (patch / "sitecustomize.py").write_text(
        "import time, simplejpeg\n"
        "header = simplejpeg.decode_jpeg_header\n"
        "def slow_header(data):\n"
        f"    if bytes(data).endswith({_SLOW!r}):\n"
        "        time.sleep(600)\n"
        "    return header(data)\n"
        "simplejpeg.decode_jpeg_header = slow_header\n"
    )

    def wait(table: Path) -> None:
        files, since = 0, time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.1)
            if len(_files(table)) != files:
                files, since = len(_files(table)), time.monotonic()

    # By name it comes behind the other source.
    path = os.pathsep.join([str(patch), str(ROOT)])
    return {"waited": seconds, **_killed(f"[{folder},{slow.parent}]", teacher, workers, path, wait)}


def _killed(source: str, teacher: Path, workers: int, path: str, wait: Callable[[Path], None]) -> dict[str, float]:
    """Runs the job with ``path`` for modules, kills it when ``wait`` has returned, and answers with what was lost."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as target:
        table = Path(target, "t")
        places = [f"source={source}", f"teacher={teacher}", f"table={table}", f"actors={workers}"]
        job = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "pseudo_label.py"), *places],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _files(table):
                if job.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{' '.join(places)}: the job wrote nothing")
                time.sleep(0.05)
            wait(table)
            if job.poll() is not None:
                sys.exit("the job has ended before its kill: --size has to be larger, or --latest smaller")
            killed_at = time.time()
        finally:
            kill_session(job)
        return loss(table, workers, killed_at)


def kill_session(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a session's leader first, then to all of its processes, which Ray has put into groups of their own."""
    job.kill()
    job.wait()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == job.pid:
                process.kill()


def loss(table: Path, workers: int, killed_at: float) -> dict[str, float]:
    """What a run that was killed at ``killed_at``, in seconds since 1970, had computed and not committed.

    Returns:
        Rows ``committed`` and ``uncommitted``, the ``rate`` in images per second, the seconds of work that were lost
        ``written`` and ``in_flight``, and their sum, ``lost``.
    """
    opened = open_table(str(table))
    if opened is None:
        sys.exit(f"{table}: no table there")
    models = {path.parent.name.removeprefix("model=") for path in _files(table)}
    committed = {uri for model in models for uri in files_of(opened, model)}
    files = [(_written_at(path), pq.read_metadata(path).num_rows, str(path) in committed) for path in _files(table)]
    files = sorted(file for file in files if file[0] <= killed_at)
    (first, _, _), (last, _, _) = files[0], files[-1]
    # What the first file holds was computed before it was there.
    rate = sum(rows for _, rows, _ in files[1:]) / (last - first)
    uncommitted = sum(rows for _, rows, there in files if not there)
    written = uncommitted / rate
    # Units last equally long, so the last files are of different workers.
    in_flight = statistics.mean(killed_at - at for at, _, _ in files[-workers:])
    return {
        "committed": sum(rows for _, rows, there in files if there),
        "uncommitted": uncommitted,
        "rate": rate,
        "written": written,
        "in_flight": in_flight,
        "lost": written + in_flight,
    }


def _files(table: Path) -> list[Path]:
    return [path for path in table.glob("model=*/*.parquet") if not path.name.startswith(".")]


def _written_at(path: Path) -> float:
    at: datetime = pq.read_table(path, columns=["labelled_at"], partitioning=None)["labelled_at"][0].as_py()
    return at.timestamp()


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    kills = sorted(document["kills"], key=lambda kill: float(kill["after"]))
    lost = [kill["lost"] for kill in kills]
    bound = document["commit_seconds"] + 2 * document["unit_seconds"]
    lines = [
        "# What a kill costs",
        "",
        f"{document['machine']}, {document['date']}; {document['images']} images, commits every "
        f"{document['commit_seconds']:g} s, units of {document['unit_seconds']:g} s.",
        "SIGKILL to the driver and all of its Ray, at a random moment after the first file. Lost, in seconds of work",
        f"of all workers: at most {max(lost):.1f}, median {statistics.median(lost):.1f}, of {len(lost)} kills.",
        f"By design it is at most {bound:g} and a commit's own time: the pause between commits, the wait for the unit",
        "that ends it, and the units in flight.",
        "",
        "| killed after (s) | committed rows | rows in uncommitted files | images/s | lost in files (s) "
        "| in flight (s) | lost (s) |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {kill['after']:.1f} | {kill['committed']} | {kill['uncommitted']} | {kill['rate']:,.0f} "
        f"| {kill['written']:.1f} | {kill['in_flight']:.1f} | {kill['lost']:.1f} |"
        for kill in kills
    ]
    slow = document["slow_unit"]
    lines += [
        f"| {slow['waited']:g}, behind one slow unit | {slow['committed']} | {slow['uncommitted']} "
        f"| {slow['rate']:,.0f} | {slow['written']:.1f} | that unit | {slow['written']:.1f} and that unit |"
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
