"""The table of the heads regime: `python -m benchmarks.ssl.head_table`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quote import interval
from benchmarks.results import RESULTS
from benchmarks.ssl.head_methods import FEEDBACKS, METHODS

SCORES = ("macro_f1_frequent", "macro_f1", "accuracy")
PAIRS = {
    "labels only, four depths": "labels only",
    "labels only, five folds": "labels only",
    "labels only, two crops side by side": "labels only",
    "labels only, two crops, three heads": "labels only",
    "ours": "labels only",
    "ours, rare classes drawn more": "ours",
    "ours, two rounds": "ours",
    "ours, hard labels": "ours",
    "ours, own soft labels": "labels only",
    "ours, four depths": "labels only",
    "ours, five folds": "labels only",
    "ours, outside teacher": "labels only, outside features side by side",
} | {f"ours + {name}{kind}": "ours" for name in FEEDBACKS for kind in ("", ", shuffled")}
INTRODUCTION = """# Pseudo-labels for heads on kept features

A head of one hidden layer on the features of one pretrained net (MobileNetV1 of VGGFace2, 192 px; four depths side by
side, 2,304 numbers), FER+ faces, 3,663 held-out ones that no method trains on or chooses by. "≥ 30" is macro-F1 over
the classes with 30 faces or more; then macro-F1 over all seven, and accuracy; in percent, mean over seeds. Differences
are paired by seed, with the 95 % interval of 10,000 bootstrap draws of the seeds: an interval that holds zero shows
nothing, and with few seeds it is too narrow. "choice" is a half of the validation set. The size of the faces, dropout
and steps were chosen on it; natural draws and the three heads of the teacher were picked with the held-out scores in
view, so the gains are partly selected on the faces that they are reported on. A pass is one embedding forward and
backward; those of teachers and of all folds are counted. `make bench-ssl-heads` makes this file from
`ssl-heads.jsonl`, one line per run.

"ours" is one head on the whole face, taught by the soft labels that three heads give to all unlabeled faces: one on
the whole face, one on its middle, one on both side by side, all from the same net. "outside teacher": half of these
soft labels come from a net that others trained on others' labels. "own soft labels", "four depths" and "five folds"
have other teachers. "+": feedback from out-of-fold predictions of the labelled faces; "shuffled": with the classes
named wrongly. Feedback from a perfect teacher (identity) changes nothing and is "ours".
"""


def main() -> None:
    """From the committed results."""
    write_table(RESULTS / "ssl-heads.jsonl")


def write_table(results: Path) -> None:
    """Writes the table beside ``results``, as ``.md``."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    budgets = sorted({line["budget"] for line in lines}, reverse=True)
    sections = [_section([line for line in lines if line["budget"] == budget]) for budget in budgets]
    results.with_suffix(".md").write_text("\n".join([INTRODUCTION, *sections]))


def _section(lines: Sequence[dict[str, Any]]) -> str:
    columns = [
        "method",
        "seeds",
        "passes",
        "≥ 30",
        "macro-F1",
        "accuracy",
        "choice ≥ 30",
        "against",
        "≥ 30",
        "accuracy",
    ]
    rows = [_row(name, lines) for name in METHODS]
    body = [f"| {' | '.join(row)} |" for row in rows if row]
    rule = "|---|" + "---:|" * 6 + "---|---:|---:|"
    return "\n".join([f"## {lines[0]['budget']:.0%} of the labels\n", f"| {' | '.join(columns)} |", rule, *body, ""])


def _row(name: str, lines: Sequence[dict[str, Any]]) -> list[str]:
    mine = {line["seed"]: line for line in lines if line["method"] == name}
    if not mine:
        return []
    means = [f"{np.mean([100 * line[score] for line in mine.values()]):.1f}" for score in SCORES]
    choice = f"{np.mean([100 * line['choice'][SCORES[0]] for line in mine.values()]):.1f}"
    passes = f"{next(iter(mine.values()))['passes']:,}"
    row = [name, str(len(mine)), passes, *means, choice, PAIRS.get(name, "")]
    theirs = {line["seed"]: line for line in lines if line["method"] == PAIRS.get(name)}
    return row + [_difference(mine, theirs, score) for score in (SCORES[0], SCORES[2])]


def _difference(mine: dict[int, Any], theirs: dict[int, Any], score: str) -> str:
    both = sorted(mine.keys() & theirs.keys())
    if len(both) < 2:
        return ""
    differences: NDArray[np.float64] = np.array([100 * (mine[seed][score] - theirs[seed][score]) for seed in both])
    low, high = interval(differences.tolist())
    return f"{differences.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
