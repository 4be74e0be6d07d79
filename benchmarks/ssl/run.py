"""Runs the methods on FER+: `python -m benchmarks.ssl.run DATA`, DATA the folder with ``ferplus.parquet``.

One line of JSON per finished run is appended to the results, and runs that are there are not done again: stop it when
you like. Ends with the table, ``benchmarks/results/ssl.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import RESULTS
from benchmarks.ssl.faces import Sets, Table, cut, read_table, read_unlabeled
from benchmarks.ssl.methods import METHODS
from benchmarks.ssl.table import KEYS, read_lines, write_table
from benchmarks.ssl.train import Run, Size, execute
from ray_fer.training.world import World

QUICK = ("supervised", "fixmatch", "softmatch", "ours")


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0], help="shares of the labelled faces")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=Size.passes, help="images forward and backward, per run")
    parser.add_argument("--batch", type=int, default=Size.batch, help="labelled faces per step")
    parser.add_argument(
        "--lfw", action="store_true", help="lfw_unlabeled.parquet is a second bucket of unlabeled faces"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"half an hour: {', '.join(QUICK)}, one seed, 80,000 passes"
    )
    parser.add_argument("--pretrained", help="timm folder to start from; without it, runs are from scratch")
    parser.add_argument("--side", type=int, help="pixels to which faces are enlarged, for a pretrained net")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, help="ssl.jsonl, or ssl-quick.jsonl, among the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.methods, arguments.seeds, arguments.passes = list(QUICK), [0], 80_000
    name = "ssl-fine-tuned.jsonl" if arguments.pretrained else "ssl.jsonl"
    out_file = arguments.out or RESULTS / ("ssl-quick.jsonl" if arguments.quick else name)
    size = {"passes": arguments.passes, "batch": arguments.batch, "lfw": arguments.lfw}
    if arguments.pretrained:
        size |= {"regime": "fine-tuned", "side": arguments.side}
    jobs = [
        {"method": method, "budget": budget, "seed": seed, **size}
        for seed in arguments.seeds
        for budget in arguments.budgets
        for method in arguments.methods
    ]
    keys = (*KEYS, "regime", "side") if arguments.pretrained else KEYS
    done = [{key: line[key] for key in keys} for line in (read_lines(out_file) if out_file.exists() else [])]
    jobs = [job for job in jobs if job not in done]
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // arguments.processes)
    prepare = (arguments.data, arguments.device, threads, arguments.pretrained, arguments.side)
    with context.Pool(arguments.processes, _prepare, prepare) as pool, out_file.open("a") as out:
        for line in pool.imap_unordered(_work, jobs):
            out.write(json.dumps(line) + "\n")
            out.flush()
            scores = " ".join(f"{100 * line[split]['macro_f1']:.1f}" for split in ("choice", "heldout"))
            print(
                f"{line['method']:40s} {line['budget']:.2f} {line['seed']} {scores} {line['seconds']:.0f} s", flush=True
            )
    write_table(out_file)


_data: Path
_table: Table
_device: torch.device
_pretrained: str | None


def _prepare(data: Path, device: str, threads: int, pretrained: str | None, side: int | None) -> None:
    global _data, _table, _device, _pretrained
    _pretrained = pretrained
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    _device = torch.device(device)
    _data, _table = data, read_table(data / "ferplus.parquet", side)


@functools.lru_cache(1)
def _sets(budget: float, seed: int, lfw: bool) -> Sets:
    more = read_unlabeled(_data / "lfw_unlabeled.parquet", _table.images.shape[1]) if lfw else None
    return cut(_table, budget, seed, _device, more)


def _work(job: dict[str, Any]) -> dict[str, Any]:
    size = Size(passes=job["passes"], batch=job["batch"], pretrained=_pretrained)
    run = Run(_sets(job["budget"], job["seed"], job["lfw"]), size, job["seed"], World(device=_device))
    return {**job, **execute(METHODS[job["method"]], run)}


if __name__ == "__main__":
    main()
