"""Selection at scale: from N predictions in a table to pseudo-labels, by every rule, in seconds and MiB.

Each rule's whole job, ``select_pseudo_labels``, runs in a process of its own; its parts are measured in another one:
finding out which predictions count, reading their probabilities, and the rule itself (its statistics over all rows and
what it makes of them). The table's files are as compaction leaves them; one row in a hundred is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import ledger
from benchmarks.results import RESULTS, write_results
from ray_fer.selection import RULES

ROOT = Path(__file__).parents[1]
PARTS = "parts"
# As long a tail as FER2013's; none is known of contempt.
LABELLED = {
    "labelled_counts": [518, 417, 0, 46, 428, 754, 507, 331],
    "val": {"confidence_of_correct": [0.8, 0.75, None, 0.7, 0.65, 0.9, 0.72, 0.85]},
}


def main() -> None:
    """Measures all sizes and rules and writes ``selection.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ray-fer-bench-selection")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", help="measure this rule, or the parts, and print the result (used inside)")
    arguments = parser.parse_args()
    work = arguments.work
    if arguments.measure:
        size = work / str(arguments.sizes[0])
        measured = parts(work, size) if arguments.measure == PARTS else whole(work, size, arguments.measure)
        print(json.dumps(measured))
        return
    model = make_teacher(work)
    rows = []
    for size in arguments.sizes:
        table = work / str(size)
        if not table.exists():
            ledger.write_predictions(str(table.with_suffix(".part")), size, ledger.JOINED_ROWS, model)
            table.with_suffix(".part").rename(table)
        apart = {name: measure_apart(work, size, name) for name in (PARTS, *arguments.rules)}
        shutil.rmtree(table)
        rows.append({"rows": size, "parts": apart.pop(PARTS), "rules": apart})
        print(*lines(rows[-1]), sep="\n", file=sys.stderr, flush=True)
    write_results(arguments.out, "selection", {"rows": rows}, markdown)


def make_teacher(work: Path) -> str:
    """An artifact under ``work``, and the id under which it predicts."""
    import timm

    from ray_fer.models.artifact import save_artifact

    net = timm.create_model("test_resnet", num_classes=len(ledger.CLASSES))
    half = (0.5, 0.5, 0.5)
    facts: dict[str, Any] = {"mean": half, "std": half, "metrics": LABELLED, "provenance": {}}
    return save_artifact(str(work / "teacher"), net, classes=ledger.CLASSES, image_size=32, **facts).model_id("float32")


def measure_apart(work: Path, size: int, what: str) -> dict[str, Any]:
    """What ``--measure`` says in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.selection", "--work", str(work), "--sizes", str(size)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--measure", what], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{size} {what}: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def whole(work: Path, table: Path, rule: str) -> dict[str, float]:
    """Seconds and CPU seconds of the job, its peak memory in MiB, and how many rows it accepts."""
    from ray_fer.jobs.select_pseudo_labels import select_pseudo_labels

    config = _config(work, table, rule)
    started, cpu = time.perf_counter(), time.process_time()
    summary = select_pseudo_labels(config)
    measured = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    shutil.rmtree(work / "out")
    return measured | {"accepted": summary["accepted"], "peak_mib": ledger.peak_mib()}


def parts(work: Path, table: Path) -> dict[str, Any]:
    """Seconds of finding the predictions that count, of reading them, and of each rule over them."""
    from ray_fer.labeling.exclusions import Exclusions
    from ray_fer.labeling.predictions import newest_predictions
    from ray_fer.labeling.select import DebiasedBatches, selection_context
    from ray_fer.labeling.table import open_table
    from ray_fer.models.artifact import open_artifact
    from ray_fer.selection import fit
    from ray_fer.selection.config import make_rule

    teacher = open_artifact(str(work / "teacher"))
    started = time.perf_counter()
    opened = open_table(str(table))
    assert opened
    predictions, _ = newest_predictions(opened, [teacher.model_id("float32")], Exclusions())
    found = time.perf_counter()
    batches = DebiasedBatches(predictions.probs(0, len(ledger.CLASSES)), None)
    measured: dict[str, Any] = {"find": found - started, "read": time.perf_counter() - found, "rules": {}}
    for name in RULES:
        config = _config(work, table, name)
        rule, (known, *_) = make_rule(config.selection), selection_context(config, teacher)
        before = time.perf_counter()
        state = fit(rule, batches, known)
        for probs in batches:
            rule.accept(probs, state, known)
        measured["rules"][name] = time.perf_counter() - before
    return measured


def _config(work: Path, table: Path, rule: str) -> Any:
    from ray_fer.config import load_config

    given = [f"table={table}", f"teacher={work / 'teacher'}", f"out={work / 'out'}", f"selection.rule={rule}"]
    return load_config("select_pseudo_labels", given)


def markdown(document: dict[str, Any]) -> str:
    """The table for people."""
    text = [
        "# Selection at scale",
        "",
        f"{document['machine']}, {document['date']}.",
        f"From N predictions of {len(ledger.CLASSES)} classes to pseudo-labels,",
        "both on a local disk: seconds of the whole job and, measured apart, of finding the predictions that count,",
        "reading their probabilities, and the rule. The rest is mostly reading and writing URIs and targets.",
        "`make bench-selection` makes this file.",
        "",
        "| N | rule | accepted | find | read | rule | whole job | CPU seconds | peak MiB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
        *(line for row in document["rows"] for line in lines(row)),
    ]
    return "\n".join(text) + "\n"


def lines(row: dict[str, Any]) -> list[str]:
    """Those of one size."""
    found, read, rules = (row["parts"][name] for name in ("find", "read", "rules"))
    return [
        f"| {row['rows']} | {name} | {job['accepted']} | {found:.2f} | {read:.2f} | {rules[name]:.2f} "
        f"| {job['seconds']:.2f} | {job['cpu']:.2f} | {job['peak_mib']:.0f} |"
        for name, job in row["rules"].items()
    ]


if __name__ == "__main__":
    main()
