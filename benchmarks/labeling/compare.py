"""Labelling speed against the ways people take instead: `python -m benchmarks.labeling.compare`.

Every contestant runs as a process, in turn and repeated, on a small set of pictures and on one that contains it.
Compared is the steady state: the images by which the sets differ over the difference of the medians of the wall time,
so that no start counts; it is a column of its own. Every result is read back and its rows counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from deltalake import DeltaTable

from benchmarks.labeling.material import upload, write_crops, write_pictures, write_teacher
from benchmarks.results import RESULTS, write_results
from tests.system.servers import running_s3

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONTESTANTS = {
    "ray-fer": [str(ROOT / "jobs" / "pseudo_label.py"), "source={folder}", "teacher={teacher}", "table={out}"],
    "Ray template": [str(HERE / "ray_template.py"), "{folder}", "{teacher}", "{out}"],
    "bare loop": [str(HERE / "bare_loop.py"), "{folder}", "{teacher}", "{out}"],
    "Daft": [str(HERE / "daft_batch.py"), "{folder}", "{teacher}", "{out}"],
    "torch DataLoader": [str(HERE / "torch_loader.py"), "{folder}", "{teacher}", "{out}"],
}


def main() -> None:
    """Runs the comparison and writes ``labeling-BACKBONE.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenetv3_small_100")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--sizes", type=int, nargs=2, default=(4000, 24000), help="pictures of the two sets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--crops", type=Path, help="a Parquet file with JPEGs, in place of drawn ones")
    parser.add_argument("--s3", action="store_true", help="the pictures lie on a SeaweedFS server, the results do not")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    teacher = write_teacher(arguments.work, arguments.backbone, arguments.image_size)
    small, large = sorted(arguments.sizes)
    if arguments.crops:
        folders = write_crops(arguments.work, arguments.crops, (small, large))
    else:
        folders = write_pictures(arguments.work, (small, large))
    walls: dict[str, dict[int, list[float]]] = {name: {small: [], large: []} for name in arguments.contestants}
    with contextlib.ExitStack() as stack:
        sources = {count: str(folder) for count, folder in folders.items()}
        if arguments.s3:
            server = stack.enter_context(running_s3(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
            os.environ.update(server.environment())
            sources = {count: upload(folder, "bench") for count, folder in folders.items()}
        for repeat in range(arguments.repeats):
            for name in arguments.contestants:
                for count, source in sources.items():
                    wall = run(name, source, teacher, count)
                    walls[name][count].append(wall)
                    print(f"{repeat + 1}/{arguments.repeats} {name}: {count} images in {wall:.1f} s", file=sys.stderr)
    facts = {
        "backbone": arguments.backbone,
        "image_size": arguments.image_size,
        "pictures": "real crops (JPEG)" if arguments.crops else "drawn JPEGs of 256 px",
        "store": "an S3 server on this machine" if arguments.s3 else "a local disk",
        "sizes": [small, large],
        "rows": [row(name, walls[name], small, large) for name in arguments.contestants],
    }
    suffixes = ["-crops"] * bool(arguments.crops) + ["-s3"] * arguments.s3
    write_results(arguments.out, "".join([f"labeling-{arguments.backbone}", *suffixes]), facts, markdown)


def run(name: str, folder: str, teacher: Path, count: int) -> float:
    """Wall time in seconds of one contestant on one set."""
    out = Path(tempfile.mkdtemp(prefix="ray-fer-bench-")) / "out"
    places = {"folder": folder, "teacher": teacher, "out": out}
    command = [sys.executable, *(part.format(**places) for part in CONTESTANTS[name])]
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    wall = time.monotonic() - started
    if done.returncode:
        sys.exit(f"{name} failed\n{done.stderr[-3000:]}")
    # Of a Delta table not every file counts: joined ones lie beside those that they replace.
    written = DeltaTable(str(out)).to_pyarrow_dataset() if name == "ray-fer" else ds.dataset(out, format="parquet")
    rows = written.count_rows()
    assert rows == count, f"{name} wrote {rows} rows for {count} images"
    shutil.rmtree(out.parent)
    return wall


def row(name: str, walls: dict[int, list[float]], small: int, large: int) -> dict[str, Any]:
    """Of one contestant: steady rate and start from the medians, and the spread of the large runs."""
    medians = {count: statistics.median(times) for count, times in walls.items()}
    rate = (large - small) / (medians[large] - medians[small])
    return {
        "name": name,
        "images_per_second": rate,
        "start_seconds": medians[small] - small / rate,
        "wall_seconds": {str(count): times for count, times in walls.items()},
    }


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    rows = document["rows"]
    ours = rows[0]["images_per_second"]
    small, large = document["sizes"]
    runs = len(rows[0]["wall_seconds"][str(small)])
    lines = [
        f"# Labelling with {document['backbone']} at {document['image_size']} px",
        "",
        f"{document['machine']}, {document['date']}. {document['pictures']} on {document['store']};",
        f"steady state between {small} and {large} images, medians of {runs} runs; `make bench` makes this file.",
        "",
        f"| | images/s | ray-fer is | start, s | wall time for {large}, s (min – max) |",
        "|---|---:|---:|---:|---:|",
    ]
    for entry in rows:
        walls = entry["wall_seconds"][str(large)]
        lines.append(
            f"| {entry['name']} | {entry['images_per_second']:.0f} | {ours / entry['images_per_second']:.2f} × "
            f"| {entry['start_seconds']:.1f} | {statistics.median(walls):.1f} ({min(walls):.1f} – {max(walls):.1f}) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
