"""CPU time per image of everything around the model: `python -m benchmarks.labeling.overhead`.

The job itself runs, with an engine that returns constants. Its parts are timed inside it, in the processes in which
they run and beside whatever else runs there; what the driver, the workers and Ray's own processes take beyond the parts
is the hand-over. Two sizes of source are compared, so that no start counts, and that several times, which gives every
number its standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import ray

from benchmarks.labeling.material import write_pictures, write_teacher
from benchmarks.labeling.stopwatch import Stopwatch, saved, seconds_a_call
from benchmarks.results import RESULTS, write_results
from ray_fer.config import load_config
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.labeling import run
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.work import UnitResult
from ray_fer.synthetic.plan import CLASSES

DISTINCT = 1000
SIDE = 112
DRIVER = ("list", "diff", "commit")
WORKERS = ("read", "decode", "rows", "write")
PARTS = (*DRIVER, *WORKERS, "hand-over: driver", "hand-over: workers", "hand-over: Ray")
_SAVED = "RAY_FER_STOPWATCHES"


class Constant:
    """An engine that computes nothing."""

    def __call__(self, pixels: Any) -> Any:
        """Logits float32 (B, K)."""
        return np.tile(np.arange(len(CLASSES), dtype=np.float32), (len(pixels), 1))


def prepare_worker() -> None:
    """Runs in every worker before anything else: no model, and a stopwatch at its parts."""
    from ray_fer.labeling import unit, worker
    from ray_fer.models import engines

    watch, folder = Stopwatch(), Path(os.environ[_SAVED])
    engines.make_engine = lambda *_, **__: Constant()  # type: ignore[assignment]
    unit.read_objects = watch.timed_iterator("read", unit.read_objects)
    unit.decode_into_each = watch.timed("decode", unit.decode_into_each)
    worker.write_file = watch.timed("write", worker.write_file)
    label = watch.timed("rows", worker.Labeller.label)

    def label_and_save(*args: Any) -> UnitResult:
        done = label(*args)
        watch.save(folder)
        return done

    worker.Labeller.label = label_and_save  # type: ignore[method-assign]


def main() -> None:
    """Measures, and writes ``labeling-overhead.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=(20_000, 100_000))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    small, large = sorted(arguments.sizes)
    teacher, pictures = write_material(arguments.work)
    folders = {size: link_pictures(arguments.work / f"links-{size}", pictures, size) for size in (small, large)}
    watch = Stopwatch()
    run.list_sources = watch.timed_iterator("list", run.list_sources)
    run.claim_missing = watch.timed("diff", run.claim_missing)
    Committer.commit = watch.timed("commit", Committer.commit)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        job = _Job(teacher, watch, Path(folder))
        ray.init(
            address="local",
            logging_level="warning",
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": prepare_worker, "env_vars": {_SAVED: folder}},
        )
        job.run(link_pictures(arguments.work / "links-100", pictures, 100))  # what only a first run pays for
        runs = [{size: job.run(folders[size]) for size in (small, large)} for _ in range(arguments.repeats)]
        ray.shutdown()
    facts = {
        "images": [small, large],
        "repeats": arguments.repeats,
        "microseconds_per_image": measured([_per_image(run[small], run[large], large - small) for run in runs]),
        "microseconds_a_timed_call": seconds_a_call() * 1e6,
    }
    write_results(arguments.out, "labeling-overhead", facts, markdown)


def measured(runs: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Of every part the mean of the runs and its standard error."""
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: (float(np.mean(v)), float(np.std(v, ddof=1) / len(v) ** 0.5)) for name, v in values.items()}


def _per_image(small: dict[str, float], large: dict[str, float], images: int) -> dict[str, float]:
    """CPU-microseconds per image of the parts, their sum, and what the whole machine was busy."""
    spent = {name: (large[name] - small[name]) / images * 1e6 for name in large}
    parts = {name: spent[name] for name in PARTS}
    whole = sum(parts.values())
    calls = {"timed calls": spent["calls"] / 1e6}
    beyond = {"beyond read and decode": whole - parts["read"] - parts["decode"]}
    return parts | {"whole": whole} | beyond | {"machine busy": spent["machine"]} | calls


class _Job:
    """Runs of the job with stopwatches in its driver and its workers."""

    def __init__(self, teacher: Path, watch: Stopwatch, folder: Path) -> None:
        self._teacher, self._watch, self._folder = teacher, watch, folder

    def run(self, source: Path) -> dict[str, float]:
        """CPU seconds by part, and what else `_per_image` wants."""
        before, calls_before = self._parts()
        with tempfile.TemporaryDirectory() as target, _CpuClock() as clock:
            arguments = [f"source={source}", f"teacher={self._teacher}", f"table={target}/t", "actors=2"]
            summary = pseudo_label(load_config("pseudo_label", arguments))
            assert summary["labelled"] == summary["listed"]
        after, calls = self._parts()
        spent: dict[str, float] = {name: after[name] - before[name] for name in after}
        spent["hand-over: driver"] = clock.seconds["driver"] - sum(spent[name] for name in DRIVER)
        spent["hand-over: workers"] = clock.seconds["workers"] - sum(spent[name] for name in WORKERS)
        spent["hand-over: Ray"] = clock.seconds["Ray"]
        return spent | {"machine": clock.machine, "calls": calls - calls_before}

    def _parts(self) -> tuple[Counter[str], int]:
        seconds, calls = saved(self._folder)
        return seconds + self._watch.seconds, calls + self._watch.calls


class _CpuClock:
    """CPU time of this process and its descendants; looked at often, for some end on the way.

    Attributes:
        seconds: between entering and leaving, of the ``driver``, of its ``workers`` and of ``Ray``.
        machine: seconds for which the machine's cores were busy, with whatever.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.machine = 0.0
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._kinds: dict[tuple[int, float], str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._look()
        self._first = dict(self._last)
        self.machine = -_busy()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.machine += _busy()
        for process, seconds in self._last.items():
            self.seconds[self._kinds[process]] += seconds - self._first.get(process, 0.0)

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times, key = process.cpu_times(), (process.pid, process.create_time())
                # A process of Ray is named after the actor that it becomes.
                labels = "LabelActor" in " ".join(process.cmdline())
                self._kinds[key] = "driver" if process == this else "workers" if labels else "Ray"
                self._last[key] = times.user + times.system


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def write_material(work: Path) -> tuple[Path, list[Path]]:
    """A teacher, and the pictures that `link_pictures` gives many names."""
    teacher = write_teacher(work, "mobilenetv3_small_100", SIDE)
    return teacher, sorted(write_pictures(work, [DISTINCT])[DISTINCT].iterdir())


def link_pictures(folder: Path, pictures: list[Path], size: int) -> Path:
    """Fills ``folder`` with ``size`` names for the pictures, and answers with it."""
    for number in range(size):
        target = folder / f"{number % 256:02x}" / f"{number:07d}.jpg"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(pictures[number % len(pictures)])
    return folder


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    small, large = document["images"]
    values = document["microseconds_per_image"]
    timing = values["timed calls"][0] * document["microseconds_a_timed_call"]
    lines = [
        "# CPU time around the model",
        "",
        f"{document['machine']}, {document['date']}. JPEGs of 256 px on a local disk to {SIDE} px, an engine that",
        f"returns constants; from runs over {small} and {large} images, {document['repeats']} of each. The parts are",
        "timed inside the job, without what they call of one another; what the driver, the workers and Ray's own",
        f"processes take beyond them is the hand-over. The timing itself takes {timing:.1f} µs of this.",
        "",
        "| | CPU-µs per image |",
        "|---|---:|",
    ]
    shown = (*PARTS, "whole", "beyond read and decode")
    lines += [f"| {name} | {_with_error(*values[name])} |" for name in shown]
    lines += ["", f"Over the same runs the machine was busy for {_with_error(*values['machine busy'])} µs an image."]
    return "\n".join(lines) + "\n"


def _with_error(value: float, error: float) -> str:
    return f"{0.0 if abs(value) < error else value:.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()
