"""Training steps per second against a loop without any framework: `python -m benchmarks.training.throughput`.

Both train the same model on the same pictures in the same order with the same augmentation, optimiser and averaged
weights: one under Ray Train and DeepSpeed as the jobs do, the other as short as PyTorch allows. They run as processes,
in turn and repeated. An epoch is the unit; the first one, which decodes the pictures, counts only for the stalls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.labeling.material import write_pictures
from benchmarks.results import RESULTS, write_results
from benchmarks.training.contestants import bare_loop, ray_train
from ray_fer.config import load_config
from ray_fer.synthetic.plan import CLASSES

Runs = list[list[dict[str, float]]]
"""What each epoch of each run took."""

ROOT = Path(__file__).parents[2]
CONTESTANTS = ("ray-fer", "bare loop")


def main() -> None:
    """Runs the comparison and writes ``training-throughput.md`` and ``.json``; with ``--role``, one contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--pictures", type=int, default=768)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--role", choices=CONTESTANTS)
    arguments = parser.parse_args()
    manifest = write_manifest(write_pictures(arguments.work, [arguments.pictures])[arguments.pictures])
    keys = {"backbone": arguments.backbone, "image_size": arguments.image_size, "epochs": arguments.epochs}
    places = {"labeled": manifest, "val": manifest, "out": "unused"}
    config: Any = load_config("train_backbone", [f"{key}={value}" for key, value in (places | keys).items()])
    if arguments.role:
        with tempfile.TemporaryDirectory() as name:
            epochs = ray_train(config, Path(name)) if arguments.role == "ray-fer" else bare_loop(config)
        print(json.dumps(epochs))
        return
    runs = run_in_turn("benchmarks.training.throughput", CONTESTANTS, arguments.repeats)
    images = -(-arguments.pictures // config.batch_size) * config.batch_size
    facts = keys | {
        "batch_size": config.batch_size,
        "pictures": arguments.pictures,
        "repeats": arguments.repeats,
        "rows": [row(name, runs[name], images) for name in CONTESTANTS],
        "stalls": stalls(runs["ray-fer"]),
    }
    write_results(arguments.out, "training-throughput", facts, markdown)


def write_manifest(folder: Path) -> Path:
    """A manifest of the pictures in ``folder``, whose classes come in turn."""
    manifest = folder.with_suffix(".csv")
    lines = [f"{path},{CLASSES[number % len(CLASSES)]}" for number, path in enumerate(sorted(folder.iterdir()))]
    manifest.write_text("\n".join(["path,label", *lines]) + "\n")
    return manifest


def run_in_turn(module: str, contestants: Sequence[str], repeats: int) -> dict[str, Runs]:
    """Of every contestant, ``repeats`` runs of ``module`` with this process's arguments and ``--role``."""
    runs: dict[str, Runs] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name in contestants if repeat % 2 == 0 else reversed(contestants):
            runs[name].append(_run(module, name))
            seconds = [round(epoch["seconds"], 2) for epoch in runs[name][-1]]
            print(f"{repeat + 1}/{repeats} {name}: {seconds} s an epoch", file=sys.stderr)
    return runs


def _run(module: str, name: str) -> list[dict[str, float]]:
    """Every epoch of one run in a process of its own."""
    # A worker of Ray Train's runs so, too.
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", module, *sys.argv[1:], "--role", name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed\n{done.stderr[-3000:]}")
    epochs: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return epochs


def row(name: str, runs: Runs, images: int) -> dict[str, Any]:
    """Medians over all epochs of all runs but each run's first."""
    epochs = [epoch for one in runs for epoch in one[1:]]
    return {
        "name": name,
        "images_per_second": images / statistics.median(epoch["seconds"] for epoch in epochs),
        "cpu_ms_per_image": 1e3 * statistics.median(epoch["cpu_seconds"] for epoch in epochs) / images,
        "seconds": [[round(epoch["seconds"], 3) for epoch in one] for one in runs],
    }


def stalls(runs: Runs) -> dict[str, float]:
    """Share of the time that steps wait for pictures, medians: while they are decoded, and once they are in memory."""
    shares = [[epoch["wait_seconds"] / epoch["seconds"] for epoch in one] for one in runs]
    return {
        "first_epoch": statistics.median(one[0] for one in shares),
        "later_epochs": statistics.median(share for one in shares for share in one[1:]),
    }


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    ours, bare = document["rows"]
    stalled = document["stalls"]
    lines = [
        "# Training throughput",
        "",
        f"{document['machine']}, {document['date']}. {document['backbone']} at {document['image_size']} px, batches of",
        f"{document['batch_size']} out of {document['pictures']} JPEGs of 256 px, one worker; medians over the epochs",
        f"of {document['repeats']} runs each, in turn, without each run's first.",
        "",
        "| | images/s | of the bare loop | CPU-ms per image |",
        "|---|---:|---:|---:|",
    ]
    for one in (ours, bare):
        share = one["images_per_second"] / bare["images_per_second"]
        cells = (f"{one['images_per_second']:.1f}", f"{share:.2f}", f"{one['cpu_ms_per_image']:.2f}")
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Steps of ray-fer wait for pictures {stalled['first_epoch']:.1%} of the time in the first epoch, which",
        f"decodes them, and {stalled['later_epochs']:.1%} in later ones.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
