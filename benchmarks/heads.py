"""Heads at scale: from N embeddings in a table to heads over two rounds, in seconds and MiB.

The embeddings are random but for a shift by class, so the scores mean nothing and the work is that of real ones. Peak
memory is that of the whole process; "without the map" leaves out the pages of the memory-mapped file, which the system
takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.results import RESULTS, write_results

ROOT = Path(__file__).parents[1]
CLASSES = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
MODEL, FILE_ROWS = "0123456789abcdef-float32", 50_000


def main() -> None:
    """Measures all sizes and writes ``heads.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--labeled", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", type=Path, help="measure this table and print the result (used inside)")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.labeled)))
        return
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_embeddings(folder, size, arguments.dimension)
            command = [sys.executable, "-m", "benchmarks.heads", "--measure", folder]
            done = subprocess.run([*command, "--labeled", str(arguments.labeled)], cwd=ROOT, capture_output=True)
            if done.returncode:
                sys.exit(done.stderr.decode()[-3000:])
            rows.append({"rows": size, "dimension": arguments.dimension} | json.loads(done.stdout))
    write_results(arguments.out, "heads", {"labeled": arguments.labeled, "rows": rows}, markdown)


def points(count: int, dimension: int, generator: np.random.Generator) -> tuple[Any, Any]:
    """Embeddings float16 (N, D) and their classes."""
    labels = generator.integers(0, len(CLASSES), count)
    embeddings = generator.standard_normal((count, dimension), dtype=np.float32)
    embeddings[np.arange(count), labels] += 2
    return embeddings.astype(np.float16), labels


def write_embeddings(place: str, size: int, dimension: int) -> None:
    """A table of ``size`` pictures."""
    from ray_fer.labeling.commit import Committer
    from ray_fer.labeling.table import FILE_SCHEMA, create_table, write_file

    facts = {"depths": [0], "dimension": dimension, "dtype": "float16"}
    table, now = create_table(place, CLASSES, {MODEL.partition("-")[0]: facts}), datetime.now(UTC)
    generator, even = np.random.default_rng(0), [[1 / len(CLASSES)] * len(CLASSES)]
    for start in range(0, size, FILE_ROWS):
        count = min(FILE_ROWS, size - start)
        uris = [f"s3://faces/{number:09}.jpg" for number in range(start, start + count)]
        known: dict[str, Any] = {
            "uri": uris,
            "identity": ["1"] * count,
            "digest": [uri.encode() for uri in uris],
            "probs": even * count,
            "status": ["ok"] * count,
            "run": ["r"] * count,
            "labelled_at": [now] * count,
            "embedding": [row.tobytes() for row in points(count, dimension, generator)[0]],
            "embedding_size": [dimension] * count,
        }
        columns = [pa.array(known.get(field.name, [None] * count), field.type) for field in FILE_SCHEMA]
        rows = pa.Table.from_arrays(columns, schema=FILE_SCHEMA)
        Committer(table, MODEL, "r", embed=True).commit([write_file(place, MODEL, rows, "x")])


def measure(place: Path, labeled: int) -> dict[str, Any]:
    """Seconds of reading the table into the map and of the recipe, and peak memory in MiB."""
    from ray_fer.heads.recipe import Data, RecipeSettings, learn
    from ray_fer.labeling.embeddings import Embeddings
    from ray_fer.labeling.table import open_table

    peaks = {"VmRSS": 0, "RssAnon": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    table = open_table(str(place))
    assert table is not None
    found = Embeddings(table, MODEL)
    with tempfile.TemporaryDirectory() as folder:
        unlabeled = found.write(Path(folder, "map"))
        read = time.perf_counter()
        generator = np.random.default_rng(1)
        (ours, labels), (val, truth) = (points(labeled, found.dimension, generator) for _ in range(2))
        columns = ((0, found.dimension),)
        halves = np.arange(labeled) % 2 == 0
        learnt = learn(
            Data(ours, labels, None, unlabeled, val, truth, halves, columns, len(CLASSES)), RecipeSettings(rounds=2)
        )
        ended = time.perf_counter()
    over.set()
    watcher.join()
    return {
        "read": read - began,
        "learn": ended - read,
        "rounds": len(learnt.candidates) - 1,
        "peak_mib": peaks["VmRSS"] / 1024,
        "peak_anonymous_mib": peaks["RssAnon"] / 1024,
    }


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    text = [
        "# Heads at scale",
        "",
        f"{document['machine']}, {document['date']}.",
        f"From N embeddings in a table on a local disk, and {document['labeled']} labelled ones, to five folds and",
        "up to two rounds of students. Seconds of reading the table into a memory map, and of all training and",
        "predicting; peak memory of the process, and without the map. `make bench-heads` makes this file.",
        "",
        "| N | numbers | read | learn | rounds | peak MiB | without the map |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    text += [
        f"| {row['rows']} | {row['dimension']} | {row['read']:.1f} | {row['learn']:.1f} | {row['rounds']} "
        f"| {row['peak_mib']:.0f} | {row['peak_anonymous_mib']:.0f} |"
        for row in document["rows"]
    ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
