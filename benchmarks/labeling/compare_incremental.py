"""The second run, after 1 % of new and 1 % of overwritten objects: `python -m benchmarks.labeling.compare_incremental`.

Against DataChain, the strongest open peer for incremental work, on a local folder and on a SeaweedFS server. Each
repeat begins with nothing labelled. What both wrote is counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import s3fs
from deltalake import DeltaTable

from benchmarks.labeling.compare import ROOT
from benchmarks.labeling.material import write_pictures, write_teacher
from benchmarks.results import RESULTS, write_results
from tests.system.servers import S3Server, running_s3

CONTESTANTS = ("ray-fer", "DataChain")


def main() -> None:
    """Runs the comparison and writes ``labeling-incremental.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenetv3_small_100")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    teacher = write_teacher(arguments.work, arguments.backbone, arguments.image_size)
    changed = arguments.size // 100
    pictures = write_pictures(arguments.work, [arguments.size + 2 * changed])[arguments.size + 2 * changed]
    paths = sorted(pictures.iterdir())
    walls: dict[str, dict[str, list[list[float]]]] = {"local": {}, "S3": {}}
    with tempfile.TemporaryDirectory() as folder, running_s3(Path(folder) / "s3") as server:
        os.environ.update(server.environment())
        for repeat in range(arguments.repeats):
            for store in walls:
                for name in CONTESTANTS:
                    pair = _first_and_second(name, store, paths, changed, teacher, Path(folder) / "work", server)
                    walls[store].setdefault(name, []).append(pair)
                    print(f"{repeat + 1}/{arguments.repeats} {store} {name}: {pair}", file=sys.stderr)
    facts = {
        "backbone": arguments.backbone,
        "objects": arguments.size,
        "new": changed,
        "overwritten": changed,
        "wall_seconds_first_and_second": walls,
    }
    write_results(arguments.out, "labeling-incremental", facts, markdown)


def _first_and_second(
    name: str, store: str, paths: list[Path], changed: int, teacher: Path, work: Path, server: S3Server
) -> list[float]:
    """Wall times of a first run over all but the last ``2 * changed`` pictures, and of one after the changes."""
    shutil.rmtree(work, ignore_errors=True)
    size = len(paths) - 2 * changed
    source = _Local(work / "in") if store == "local" else _S3(server)
    source.put({path.name: path for path in paths[:size]})
    first = _run(name, source.uri, teacher, work / "out", size)
    fresh = {path.name: path for path in paths[size : size + changed]}
    overwritten = {paths[i].name: paths[size + changed + i] for i in range(changed)}
    source.put(fresh | overwritten)
    second = _run(name, source.uri, teacher, work / "out", size + changed)
    return [first, second]


class _Local:
    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, str(folder)
        folder.mkdir(parents=True)

    def put(self, files: dict[str, Path]) -> None:
        for name, path in files.items():
            (self.folder / name).unlink(missing_ok=True)
            shutil.copyfile(path, self.folder / name)


class _S3:
    def __init__(self, server: S3Server) -> None:
        s3fs.S3FileSystem.clear_instance_cache()
        self.fs = s3fs.S3FileSystem(endpoint_url=server.endpoint)
        self.uri = f"s3://bench-{time.time_ns()}"
        self.fs.mkdir(self.uri)

    def put(self, files: dict[str, Path]) -> None:
        self.fs.pipe({f"{self.uri}/{name}": path.read_bytes() for name, path in files.items()})


def _run(name: str, source: str, teacher: Path, out: Path, objects: int) -> float:
    """Wall time of a run; asserts that it left a prediction for each of ``objects``."""
    if name == "ray-fer":
        command = [str(ROOT / "jobs" / "pseudo_label.py"), f"source={source}", f"teacher={teacher}", f"table={out}"]
    else:
        command = ["-m", "benchmarks.labeling.datachain_delta", source, str(teacher), str(out)]
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    wall = time.monotonic() - started
    if done.returncode:
        sys.exit(f"{name} failed\n{done.stderr[-3000:]}")
    if name == "ray-fer":
        # An overwritten object keeps the row of what it was: two rows, of which selection takes the newer.
        rows = DeltaTable(str(out)).to_pyarrow_table(columns=["uri", "identity"])
        found = len(set(rows["uri"].to_pylist()))
    else:
        found = int(done.stdout.split()[-1])
    assert found == objects, f"{name} has predictions for {found} of {objects} objects"
    return wall


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        f"# A second run, with {document['backbone']}",
        "",
        f"{document['machine']}, {document['date']}. {document['objects']} JPEGs of 256 px, then {document['new']} new",
        f"and {document['overwritten']} overwritten ones; whole processes from start to end, medians and (min – max).",
        "",
        "| | | first run, s | second run, s | second run: ray-fer is |",
        "|---|---|---:|---:|---:|",
    ]
    for store, contestants in document["wall_seconds_first_and_second"].items():
        ours = statistics.median(second for _, second in contestants["ray-fer"])
        for name, pairs in contestants.items():
            times = list(zip(*pairs, strict=True))
            cells = [f"{statistics.median(walls):.1f} ({min(walls):.1f} – {max(walls):.1f})" for walls in times]
            ratio = statistics.median(second for _, second in pairs) / ours
            lines.append(f"| {store} | {name} | {cells[0]} | {cells[1]} | {ratio:.2f} × |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
