"""CPU time per image of everything around the model: `python -m benchmarks.labeling.overhead`.

The engine returns constants. The parts are measured one by one in this process; the whole is the job itself, the CPU
time of all its processes (driver, Ray, workers) over two sizes of source, so that no start counts. What the whole
takes beyond the parts is the hand-over.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pyarrow as pa
import ray

from benchmarks.labeling.material import write_pictures, write_teacher
from benchmarks.results import RESULTS, write_results
from ray_fer.config import load_config
from ray_fer.data.decode import decode_into
from ray_fer.data.read import Item, read_objects
from ray_fer.data.sources import list_sources
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.progress import unit_stats
from ray_fer.labeling.pseudo_label import pseudo_label
from ray_fer.labeling.table import create_table, scan_keys, write_file
from ray_fer.labeling.unit import decode_items, infer, share, to_table
from ray_fer.synthetic.plan import CLASSES

DISTINCT = 1000
SIDE = 112
UNIT = 2048


class Constant:
    """An engine that computes nothing."""

    def __call__(self, pixels: Any) -> Any:
        """Logits float32 (B, K)."""
        return np.tile(np.arange(len(CLASSES), dtype=np.float32), (len(pixels), 1))


def use_constant_engine() -> None:
    """Runs in every worker before anything else."""
    from ray_fer.models import engines

    engines.make_engine = lambda *_, **__: Constant()  # type: ignore[assignment]


def main() -> None:
    """Measures, and writes ``labeling-overhead.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=(20_000, 100_000))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    small, large = sorted(arguments.sizes)
    teacher, pictures = write_material(arguments.work)
    folders = {size: link_pictures(arguments.work / f"links-{size}", pictures, size) for size in (small, large)}
    parts = measure_parts(folders[small])
    ray.init(
        address="local",
        logging_level="warning",
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": use_constant_engine},
    )
    measure_job(link_pictures(arguments.work / "links-100", pictures, 100), teacher)  # what only a first run pays for
    totals = {size: measure_job(folder, teacher) for size, folder in folders.items()}
    ray.shutdown()
    whole = (totals[large] - totals[small]) / (large - small) * 1e6
    parts["hand-over"] = whole - sum(parts.values())
    beyond = whole - parts["read"] - parts["decode"]
    facts = {
        "images": [small, large],
        "cpu_seconds": totals,
        "microseconds_per_image": parts | {"whole": whole, "beyond read and decode": beyond},
    }
    write_results(arguments.out, "labeling-overhead", facts, markdown)


def measure_parts(folder: Path) -> dict[str, float]:
    """CPU-microseconds per image of each part, in this process."""
    list(list_sources([str(folder)], Counter()))  # what is imported lazily
    parts: dict[str, float] = {}

    def timed(name: str, images: int, part: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = part()
        parts[name] = (time.process_time() - started) / images * 1e6
        return result

    rows = sum(len(files) for _, _, files in os.walk(folder))
    pages = timed("list", rows, lambda: list(list_sources([str(folder)], Counter())))
    with tempfile.TemporaryDirectory() as target:
        ledger = Ledger(scan_keys(create_table(target, CLASSES), "m"), 3)
    timed("diff", rows, lambda: [ledger.claim(page) for page in pages])
    keys = pa.concat_tables(pages).slice(0, UNIT).combine_chunks()
    items = [Item(uri, "", 0) for uri in keys["uri"].to_pylist()]
    data = timed("read", len(items), lambda: [read.data for read in read_objects(items, 1 << 30)])
    crop = np.empty((SIDE, SIDE, 3), np.uint8)
    timed("decode", len(items), lambda: [decode_into(one, crop) for one in data])

    def unit() -> pa.Table:
        found: list[dict[str, Any]] = []
        for batch in decode_items(keys, image_sizes=[SIDE], batch_size=32, max_pixels=1 << 30, max_bytes=1 << 30):
            found += infer(*share(batch, 0, [SIDE]), Constant(), CLASSES, 32)
        unit_stats(found, CLASSES)
        return to_table(found, "run")

    table_rows = timed("rows", len(items), unit)
    parts["rows"] -= parts["read"] + parts["decode"]
    with tempfile.TemporaryDirectory() as target:
        table = create_table(target, CLASSES)
        files = timed("write", 20 * UNIT, lambda: [write_file(target, "m", table_rows, "f") for _ in range(20)])
        committer = Committer(table, "m", "run")
        timed("commit", 20 * UNIT, lambda: [committer.commit([file]) for file in files])
    return parts


def measure_job(folder: Path, teacher: Path) -> float:
    """CPU seconds of all processes of a run."""
    with tempfile.TemporaryDirectory() as target, _CpuClock() as clock:
        config = load_config(
            "pseudo_label", [f"source={folder}", f"teacher={teacher}", f"table={target}/t", "actors=2"]
        )
        summary = pseudo_label(config)
        assert summary["labelled"] == summary["listed"]
    return clock.seconds()


class _CpuClock:
    """CPU time of this process and its descendants; looked at often, for some end on the way."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._look()
        self._first = dict(self._last)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def seconds(self) -> float:
        """Between entering and leaving."""
        return sum(self._last.values()) - sum(self._first.values())

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._last[process.pid, process.create_time()] = times.user + times.system


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
    lines = [
        "# CPU time around the model",
        "",
        f"{document['machine']}, {document['date']}. JPEGs of 256 px on a local disk to {SIDE} px, an engine that",
        f"returns constants; the whole from runs over {small} and {large} images, all processes counted.",
        "",
        "| | CPU-µs per image |",
        "|---|---:|",
    ]
    lines += [f"| {name} | {value:.1f} |" for name, value in document["microseconds_per_image"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
