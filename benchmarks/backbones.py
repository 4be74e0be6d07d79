"""Which of timm's families can be a backbone, at which size of pictures: ``python -m benchmarks.backbones``.

One of the smallest models of every module of timm goes through `build_backbone`, one forward and one backward pass of
two pictures at each size, in a process of its own. A cell is ``ok`` or the one line that a user would read. Modules
that are done are not tried again: what was found lies in ``/tmp/ray-fer-backbones.jsonl`` (or FILE, the first argument)
until all are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.results import RESULTS, write_results
from ray_fer.errors import UserError, one_line
from ray_fer.models.backbone import build_backbone

SIZES = (48, 64, 112, 224)
CLASSES = 7
MOST_PARAMETERS = 100_000_000
MEMORY = 16 << 30
SECONDS = 900
PROCESSES = 2
# Of the processor, for finding a small model of a module.
SEARCH_SECONDS = 3.0
SMALL = ("atto", "femto", "pico", "nano", "micro", "xxs", "xs", "tiny", "mini", "small", "lite", "10", "18", "_s", "_t")


def smallest(module: str) -> tuple[str, int]:
    """A model of a module of timm with few parameters, and how many; timm's test models do not count."""
    names = timm.list_models(module=module)
    names = [name for name in names if not name.startswith("test_")] or names
    names.sort(key=lambda name: (not any(part in name for part in SMALL), len(name)))
    began, counts = time.process_time(), dict[str, int]()
    for name in names:
        if counts and time.process_time() - began > SEARCH_SECONDS:
            break
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=CLASSES)
        except Exception:  # it computes while it is made
            model = timm.create_model(name, num_classes=CLASSES)
        counts[name] = sum(values.numel() for values in model.parameters())
    best = min(counts, key=counts.__getitem__)
    return best, counts[best]


def attempt(name: str, size: int) -> str:
    """``ok``, or why the backbone cannot be trained at this size."""
    try:
        model = build_backbone(name, CLASSES, size)
    except UserError as error:
        return f"refused: {error}"
    try:
        model(torch.rand(2, 3, size, size)).float().logsumexp(dim=1).mean().backward()
    except Exception as error:  # the table shows what training would stumble over
        return f"fails in training: {type(error).__name__}: {one_line(error)}"
    return "ok"


def child(module: str, answer: Connection) -> None:
    """Answers with what came of a module of timm."""
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        name, parameters = smallest(module)
        if parameters > MOST_PARAMETERS:
            cells = dict.fromkeys(SIZES, f"not tried: {parameters / 1e6:.0f} million parameters")
        else:
            cells = {size: attempt(name, size) for size in SIZES}
    except Exception as error:
        answer.send({"module": module, "error": f"{type(error).__name__}: {one_line(error)}"})
        raise
    answer.send({"module": module, "backbone": name, "parameters": parameters, "cells": cells})


def run(module: str) -> dict[str, Any]:
    """The same from a process of its own, forked, for importing timm takes longer than most of the rest."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=child, args=(module, theirs))
    process.start()
    theirs.close()
    try:
        if not mine.poll(SECONDS):
            return {"module": module, "error": f"not done after {SECONDS} seconds"}
        found: dict[str, Any] = mine.recv()
    except EOFError:
        process.join()
        return {"module": module, "error": f"exit status {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return found


def markdown(document: dict[str, Any]) -> str:
    """The table for people; refusals are below it."""
    lines = [
        "# Backbones by size of pictures",
        "",
        f"{document['machine']}, {document['date']}, timm {timm.__version__}.",
    ]
    lines[-1] += f" One of the smallest models of each of timm's {len(document['models'])} modules."
    lines += ["", f"| module | backbone | million parameters | {' | '.join(f'{size} px' for size in SIZES)} |"]
    lines.append("|---|---|---:|" + "---|" * len(SIZES))
    notes: list[str] = []
    for row in document["models"]:
        if "error" in row:
            lines.append(f"| {row['module']} | {row['error']} | |" + " |" * len(SIZES))
            continue
        cells = []
        for cell in row["cells"].values():
            if cell != "ok":
                notes.append(cell)
            cells.append(cell if cell == "ok" else f"{cell.partition(':')[0]} ({len(notes)})")
        lines.append(f"| {row['module']} | {row['backbone']} | {row['parameters'] / 1e6:.1f} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]) + "\n"


def main(kept: Path) -> None:
    """Tries every module that ``kept`` does not hold, and writes the table."""
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    rows = [row for row in rows if "error" not in row]  # it may have been the machine's fault
    modules = [module for module in timm.list_modules() if timm.list_models(module=module)]
    left = [module for module in modules if module not in {row["module"] for row in rows}]
    torch.set_num_threads(1)

    def keep(module: str) -> None:
        row = run(module)
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(len(rows), "of", len(modules), row["module"], row.get("error") or row["cells"], file=sys.stderr)

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(keep, left))
    rows.sort(key=lambda row: modules.index(row["module"]))
    write_results(RESULTS, "backbones", {"sizes": SIZES, "models": rows}, markdown)


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else Path(tempfile.gettempdir(), "ray-fer-backbones.jsonl"))
