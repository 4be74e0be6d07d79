"""The heads regime: `python -m benchmarks.ssl.heads CACHE`, CACHE what `benchmarks.ssl.features` has filled.

One line of JSON per finished run is appended to ``benchmarks/results/ssl-heads.jsonl``, and runs that are there are not
done again: stop it when you like. Ends with the table, ``ssl-heads.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import RESULTS
from benchmarks.ssl.features import read_features
from benchmarks.ssl.head_cell import Cell
from benchmarks.ssl.head_methods import METHODS
from benchmarks.ssl.head_table import write_table
from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.expressions import SEVEN

KEYS = ("method", "budget", "seed")
SCORES = ("macro_f1", "macro_f1_frequent", "accuracy")


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.33, 0.1], help="shares of the labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no run begins")
    parser.add_argument("--out", type=Path, default=RESULTS / "ssl-heads.jsonl")
    arguments = parser.parse_args()
    features, started = read_features(arguments.cache), time.monotonic()
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {tuple(line[key] for key in KEYS) for line in lines}
    with arguments.out.open("a") as out:
        for seed in arguments.seeds:
            for budget in arguments.budgets:
                cell = Cell(features, budget, seed)
                for method in arguments.methods:
                    late = time.monotonic() - started > 60 * arguments.minutes
                    if (method, budget, seed) not in done and not late:
                        out.write(json.dumps(line_of(cell, method, budget, seed)) + "\n")
                        out.flush()
    write_table(arguments.out)


def line_of(cell: Cell, method: str, budget: float, seed: int) -> dict[str, Any]:
    """One run: its scores on the held-out faces, and on those that settings were chosen on."""
    began = time.process_time()
    soft = METHODS[method](cell)
    scores = {}
    for split in ("heldout", "choice"):
        rows = getattr(cell.rows, split)
        metrics = evaluate_probs(soft.probs[rows], cell.features.labels[rows], SEVEN)
        scores[split] = {score: round(metrics[score], 5) for score in SCORES}
    return {
        "regime": "heads",
        "budget": budget,
        "method": method,
        "seed": seed,
        "passes": soft.passes,
        **scores["heldout"],
        "choice": scores["choice"],
        # What an earlier method of the same seed has made counts there.
        "seconds": round(time.process_time() - began, 1),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
