"""What the ledger costs at scale: `python -m benchmarks.ledger`.

For every size N: a real table of N predictions, and a listing of N + 10⁵ keys in pages as `list_sources` yields them.
Measured in a process of its own: opening the table and building the ledger, claiming the new keys of every page, making
the pages (which a run pays anyway), and the peak of resident memory. The files are as compaction leaves them, and for
the smaller sizes also as labelling writes them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.results import RESULTS, write_results
from ray_fer.data.sources.pages import PAGE_ROWS, PAGE_SCHEMA
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger, claim_missing
from ray_fer.labeling.table import FILE_SCHEMA, WrittenFile, create_table, files_of, open_table, scan_keys, write_file

ROOT = Path(__file__).parents[1]
CLASSES = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
MODEL = "bench"
SOURCE = "s3://bucket/faces"
NEW_KEYS = 100_000
MAX_ATTEMPTS = 3
BLOCK_ROWS = 1 << 18
JOINED_ROWS = 1_000_000
UNIT_ROWS = 2048
FILES_PER_COMMIT = 500
# One file a unit of a table of 10⁸ would be 49,000 files, which nobody leaves uncompacted.
MOST_ROWS_IN_UNITS = 10_000_000


def main() -> None:
    """Measures all sizes and writes ``ledger.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench-ledger")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", type=Path, help="measure this table and print the result (used inside)")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(str(arguments.measure), arguments.sizes[0])))
        return
    rows = []
    for size in arguments.sizes:
        for file_rows in (JOINED_ROWS, UNIT_ROWS) if size <= MOST_ROWS_IN_UNITS else (JOINED_ROWS,):
            table = arguments.work / f"{size}-{file_rows}"
            if not table.exists():
                write_predictions(str(table.with_suffix(".part")), size, file_rows)
                table.with_suffix(".part").rename(table)
            runs = [measure_apart(table, size) for _ in range(arguments.repeats)]
            shutil.rmtree(table)
            rows.append({"rows": size, "file_rows": file_rows, "runs": runs})
            print(row(rows[-1]), file=sys.stderr, flush=True)
    write_results(arguments.out, "ledger", {"new_keys": NEW_KEYS, "rows": rows}, markdown)


def measure_apart(table: Path, size: int) -> dict[str, float]:
    """What `measure` says in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.ledger", "--sizes", str(size), "--measure", str(table)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{table}: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(uri: str, size: int) -> dict[str, float]:
    """Seconds of building the ledger, of claiming and of listing; CPU seconds of the first two; peak memory in MiB."""
    started, cpu = time.perf_counter(), time.process_time()
    table = open_table(uri)
    assert table
    ledger = Ledger(scan_keys(table, MODEL), MAX_ATTEMPTS)
    built, claiming, cpu = time.perf_counter(), 0.0, time.process_time() - cpu
    new = 0
    for page in pages(size + NEW_KEYS):
        before, cpu_before = time.perf_counter(), time.process_time()
        new += claim_missing([ledger], page)[0].num_rows
        claiming += time.perf_counter() - before
        cpu += time.process_time() - cpu_before
    if (ledger.rows, new) != (size, NEW_KEYS):
        sys.exit(f"{uri}: the ledger holds {ledger.rows} of {size} keys and found {new} of {NEW_KEYS}")
    return {
        "build": built - started,
        "claim": claiming,
        "listing": time.perf_counter() - built - claiming,
        "cpu": cpu,
        "files": len(files_of(table, MODEL)),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """The most resident memory that this process has had."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


def pages(rows: int) -> Iterator[pa.Table]:
    """The first ``rows`` objects of an endless bucket, as `list_sources` would yield them."""
    for block in blocks(rows):
        for start in range(0, block.num_rows, PAGE_ROWS):
            yield block.slice(start, PAGE_ROWS)


def blocks(rows: int) -> Iterator[pa.Table]:
    """The same in larger tables of `PAGE_SCHEMA`, each in the order of its keys; URIs of 60 characters."""
    for number in range(-(-rows // BLOCK_ROWS)):
        random = np.random.default_rng(number)
        numbers = random.integers(0, 1 << 63, (BLOCK_ROWS, 2), np.int64)
        numbers[:, 0].sort()
        names = _hex(numbers)
        folders = (pc.utf8_slice_codeunits(names, start, start + 2) for start in (0, 2))
        uris = pc.binary_join_element_wise(SOURCE, *folders, pc.binary_join_element_wise(names, ".jpg", ""), "/")
        etags = _hex(random.integers(0, 1 << 63, (BLOCK_ROWS, 2), np.int64))
        sizes = pa.array(random.integers(4000, 40000, BLOCK_ROWS))
        table = pa.table([uris, etags, sizes, pa.repeat(SOURCE, BLOCK_ROWS)], schema=PAGE_SCHEMA)
        yield table.slice(0, rows - number * BLOCK_ROWS)


def _hex(numbers: np.ndarray) -> pa.Array:
    return _fixed(numbers.byteswap().tobytes().hex().encode(), 32, pa.string())


def _fixed(data: bytes, width: int, kind: pa.DataType) -> pa.Array:
    offsets = np.arange(0, len(data) + 1, width, np.int32)
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def write_predictions(uri: str, rows: int, file_rows: int, model: str = MODEL) -> None:
    """A table of ``rows`` predictions in files of ``file_rows``; one image in a hundred is none."""
    shutil.rmtree(uri, ignore_errors=True)
    table = create_table(uri, CLASSES)
    written: list[WrittenFile] = []
    waiting = FILE_SCHEMA.empty_table()
    for number, block in enumerate(blocks(rows)):
        waiting = pa.concat_tables([waiting, _predictions(block, number)])
        whole = waiting.num_rows // file_rows * file_rows
        parts = [waiting.slice(start, file_rows) for start in range(0, whole, file_rows)]
        written += [write_file(uri, model, part, "bench") for part in parts]
        waiting = waiting.slice(whole)
        if len(written) >= FILES_PER_COMMIT:
            Committer(table, model, "bench").commit(written)
            written = []
    if waiting.num_rows:
        written.append(write_file(uri, model, waiting, "bench"))
    Committer(table, model, "bench").commit(written)


def _predictions(block: pa.Table, number: int) -> pa.Table:
    rows = block.num_rows
    random = np.random.default_rng(number)
    probs = random.dirichlet(np.full(len(CLASSES), 0.15), rows).astype(np.float32)
    failed = np.arange(rows) % 100 == 0
    ends = pa.array(np.arange(0, probs.size + 1, len(CLASSES), np.int32))
    columns = {
        "uri": block["uri"],
        "identity": block["identity"],
        "listed_identity": pa.nulls(rows, pa.string()),
        "digest": _fixed(random.bytes(16 * rows), 16, pa.binary()),
        "source": block["source"],
        "probs": pa.ListArray.from_arrays(ends, pa.array(probs.ravel()), mask=pa.array(failed)),
        "label": pa.array(np.array(CLASSES)[probs.argmax(axis=1)], mask=failed),
        "confidence": pa.array(probs.max(axis=1), mask=failed),
        "status": pa.array(np.where(failed, "undecodable", "ok")),
        "error": pa.array(np.where(failed, "not an image", None)),
        "attempt": pa.repeat(pa.scalar(1, pa.int32()), rows),
        "run": pa.repeat("bench", rows),
        "labelled_at": pa.repeat(datetime.now(UTC), rows),
    }
    return pa.table([columns[name] for name in FILE_SCHEMA.names], schema=FILE_SCHEMA)


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# The ledger at scale",
        "",
        f"{document['machine']}, {document['date']}. With N keys in the table, on a local disk, and a listing of N and",
        f"{document['new_keys']} keys: seconds to find the new ones, beyond making the listing; the median of "
        f"{len(document['rows'][0]['runs'])} runs.",
        "`make bench-ledger` makes this file.",
        "",
        "| N | files | read and build | find | sum (min – max) | CPU seconds | listing | peak MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(row, document["rows"]),
    ]
    return "\n".join(lines) + "\n"


def row(entry: dict[str, Any]) -> str:
    """A line of the table: of the runs the one with the median sum, and the largest peak."""
    runs = sorted(entry["runs"], key=lambda run: float(run["build"] + run["claim"]))
    sums = [run["build"] + run["claim"] for run in runs]
    middle = runs[len(runs) // 2]
    return (
        f"| {entry['rows']} | {middle['files']} | {middle['build']:.2f} | {middle['claim']:.2f} "
        f"| {middle['build'] + middle['claim']:.2f} ({sums[0]:.2f} – {sums[-1]:.2f}) | {middle['cpu']:.2f} "
        f"| {middle['listing']:.2f} | {max(run['peak_mib'] for run in runs):.0f} |"
    )


if __name__ == "__main__":
    main()
