"""The table of the runs that are there: `python -m benchmarks.ssl.table`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import RESULTS
from benchmarks.ssl.methods import METHODS
from ray_fer.expressions import SEVEN

KEYS = ("method", "budget", "seed", "passes", "batch", "lfw")
TABLE_KEYS = ("passes", "batch", "budget", "lfw")
INTRODUCTION = """# Semi-supervised methods on real faces

FER+ crops (48 px, grey), resnet10t from scratch, AdamW, class-uniform sampling, averaged weights, the last epoch's
model. All rows of a table spent the same number of image passes (one is an image forward and backward; forward alone
counts a third), those of teachers and of labelling included. "choice" is the half of the validation set that settings
are chosen on, "held-out" 3,663 faces that no method trains on or chooses by. Mean ± standard deviation over seeds, in
percent; disgust has 8 and 12 faces there, so beside macro-F1 stands the mean over the classes with 30 or more.
"accepted" is the share of the unlabeled faces with a pseudo-label in the end, "right" how many of these are. ECE after
calibration. `make bench-ssl` makes this file from `ssl.jsonl`, one line per run; in those of 480,000 passes the weights
were averaged with a decay of .997, later min(.997, 1 - 10 / steps).

"ours" is a teacher that gets 40 % of the passes and then learns on from its own weights, at half the learning rate,
with its calibrated soft pseudo-labels of a confidence of .5 and more. "online form" stood as ours before: a
warm-started SoftMatch with all four factors of the feedback. "ours, top-k" is ours with Noisy Student's selection: of
every class equally many, a seventh of what a confidence of .6 accepts, down to .3, each face up to four times. In
"noisy student, strong view" the labelled faces are augmented as strongly as the pseudo-labelled ones. The row of
"online form - softmatch" was made when the feedback could lower a threshold below .5.
"""


def main() -> None:
    """From the committed results."""
    write_table(RESULTS / "ssl.jsonl")


def write_table(results: Path) -> None:
    """Writes the table beside ``results``, as ``.md``."""
    lines = read_lines(results)
    lines.sort(key=lambda line: (line["lfw"], -line["passes"], -line["budget"]))
    parts = [INTRODUCTION]
    for _, group in itertools.groupby(lines, key=lambda line: [line[key] for key in TABLE_KEYS]):
        parts.append(_section(list(group)))
    results.with_suffix(".md").write_text("\n".join(parts))


def read_lines(results: Path) -> list[dict[str, Any]]:
    """The finished runs; those without ``lfw`` are older than that choice."""
    return [{"lfw": False} | json.loads(line) for line in results.read_text().splitlines()]


def _section(lines: Sequence[dict[str, Any]]) -> str:
    one = lines[0]
    head = f"## {one['passes']:,} image passes, {one['budget']:.0%} of the labels"
    head += ", LFW as a second bucket" if one["lfw"] else ""
    head += f"\n\n{one['batch']} labelled faces a step.\n"
    columns = ["method", "seeds", "device", "choice", "held-out", "≥ 30 faces", "accuracy", "ECE"]
    columns += ["accepted", "right", *SEVEN]
    rows = [_row(name, [line for line in lines if line["method"] == name]) for name in METHODS]
    body = [f"| {' | '.join(row)} |" for row in rows if row]
    rule = "|---|" + "---:|" * (len(columns) - 1)
    return "\n".join([head, f"| {' | '.join(columns)} |", rule, *body, ""])


def _row(name: str, lines: Sequence[dict[str, Any]]) -> list[str]:
    if not lines:
        return []
    heldout = [line["heldout"] for line in lines]
    pseudo = [line["pseudo"] for line in lines if "pseudo" in line]
    return [
        name,
        str(len(lines)),
        ", ".join(sorted({line["device"] for line in lines})),
        _spread(line["choice"]["macro_f1"] for line in lines),
        _spread(each["macro_f1"] for each in heldout),
        _spread(each["macro_f1_frequent"] for each in heldout),
        _mean(each["accuracy"] for each in heldout),
        _mean(each["ece_calibrated"] for each in heldout),
        _mean(each["accepted_share"] for each in pseudo),
        _mean(each["accuracy"] for each in pseudo),
        *(_mean(each["f1"][name] for each in heldout) for name in SEVEN),
    ]


def _spread(values: Iterable[float]) -> str:
    numbers = 100 * np.array(list(values))
    return f"{numbers.mean():.1f}" + (f" ± {numbers.std(ddof=1):.1f}" if len(numbers) > 1 else "")


def _mean(values: Iterable[float | None]) -> str:
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    return f"{100 * np.mean(numbers):.1f}" if numbers else ""


if __name__ == "__main__":
    main()
