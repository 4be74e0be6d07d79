"""Unlabeled pictures from a Ray Data stream against the same in memory: `python -m benchmarks.training.stream`.

The method is online: every step trains on labelled faces, which are in memory for both, and on twice as many unlabeled
ones. Streamed, these are read and decoded anew by actors beside the worker, which on a machine without a GPU compute on
the same cores as the model; so the ratio of the throughputs is what decoding takes from it, and the waiting says
whether the stream keeps up. The stream starts in a run's first epoch and goes on from one to the next (a long one every
so many epochs anew, see `ray_fer.data.stream`): the wait before a run's first step is told by itself. The pictures of a
run's last epochs are decoded before these begin, so that they do not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.labeling.material import write_pictures
from benchmarks.results import RESULTS, write_results
from benchmarks.training.contestants import ray_train
from benchmarks.training.throughput import Runs, run_in_turn, write_manifest
from ray_fer.config import load_config
from ray_fer.methods.registry import numbers_of

CONTESTANTS = ("in memory", "stream")
LAST = 2  # epochs of a run that do not count


def main() -> None:
    """Runs the comparison and writes ``training-stream.md`` and ``.json``; with ``--role``, one contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--labeled", type=int, default=768)
    parser.add_argument("--unlabeled", type=int, default=1536, help="more than --labeled")
    parser.add_argument("--epochs", type=int, default=8, help="more than 3")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--role", choices=CONTESTANTS)
    arguments = parser.parse_args()
    sets = write_pictures(arguments.work, [arguments.labeled, arguments.unlabeled])
    manifest = write_manifest(sets[arguments.labeled])
    keys = {"backbone": arguments.backbone, "image_size": arguments.image_size, "epochs": arguments.epochs}
    places = {"labeled": manifest, "val": manifest, "out": "unused", "unlabeled": sets[arguments.unlabeled]}
    given = {"method": "online", "feedback": "none"} | places | keys
    config: Any = load_config("train_backbone", [f"{key}={value}" for key, value in given.items()])
    ratio = numbers_of(config.method).ratio
    if arguments.role:
        with tempfile.TemporaryDirectory() as name:
            epochs = ray_train(config, Path(name), streamed=arguments.role == "stream")
        print(json.dumps(epochs))
        return
    runs = run_in_turn("benchmarks.training.stream", CONTESTANTS, arguments.repeats)
    steps = -(-arguments.labeled // config.batch_size)
    facts = keys | {
        "batch_size": config.batch_size,
        "ratio": ratio,
        "labeled": arguments.labeled,
        "unlabeled": arguments.unlabeled,
        "steps_per_epoch": steps,
        "repeats": arguments.repeats,
        "rows": [row(name, runs[name], steps * config.batch_size * (1 + ratio)) for name in CONTESTANTS],
    }
    write_results(arguments.out, "training-stream", facts, markdown)


def row(name: str, runs: Runs, images: int) -> dict[str, Any]:
    """Medians over the epochs of all runs but each run's first and last two; of the first, the wait at its start."""
    epochs = [epoch for one in runs for epoch in one[1:-LAST]]
    seconds = statistics.median(epoch["seconds"] for epoch in epochs)
    return {
        "name": name,
        "epoch_seconds": seconds,
        "images_per_second": images / seconds,
        "wait_share": statistics.median(epoch["wait_seconds"] / epoch["seconds"] for epoch in epochs),
        "first_wait_seconds": statistics.median(epoch["first_wait_seconds"] for epoch in epochs),
        "start_seconds": statistics.median(one[0]["first_wait_seconds"] for one in runs),
        "epochs": [[{clock: round(each, 3) for clock, each in epoch.items()} for epoch in one] for one in runs],
    }


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    memory, streamed = document["rows"]
    lines = [
        "# Training from a stream",
        "",
        f"{document['machine']}, {document['date']}. {document['backbone']} at {document['image_size']} px, method",
        f"online, epochs of {document['steps_per_epoch']} steps, each of {document['batch_size']} labelled faces, in",
        f"memory, and {document['ratio']} times as many of {document['unlabeled']} JPEGs of 256 px, unlabeled; one",
        f"worker; medians over the epochs of {document['repeats']} runs each, in turn, without each run's first",
        "and last two.",
        "",
        "| unlabeled faces | s an epoch | images/s | of memory | steps wait | s before its first step | a run's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in (memory, streamed):
        share = one["images_per_second"] / memory["images_per_second"]
        cells = (
            *(f"{one['epoch_seconds']:.2f}", f"{one['images_per_second']:.1f}", f"{share:.2f}"),
            *(f"{one['wait_share']:.1%}", f"{one['first_wait_seconds']:.2f}", f"{one['start_seconds']:.2f}"),
        )
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Reading and decoding take place on the same cores as training.", ""])


if __name__ == "__main__":
    main()
