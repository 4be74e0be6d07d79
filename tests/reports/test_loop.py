from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.evaluation.halves import evaluate_halves
from ray_fer.models.artifact import Artifact, open_artifact
from ray_fer.reports.evaluation import METRIC_FIGURES
from ray_fer.reports.loop import loop_report
from ray_fer.selection import file as selection_file
from tests.images import CLASSES, picture, tiny_model
from tests.reports.test_page import Page

SCORES = {"val": 0.5, "choice": 0.6, "feedback": 0.4}


def trained(folder: Path) -> Artifact:
    """A model with the metrics and the provenance of a trained one."""
    artifact = tiny_model(str(folder))
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(len(CLASSES)), 60), rng.integers(0, len(CLASSES), 60)
    metrics = evaluate_halves(probs, labels, np.arange(60) % 2 == 0, CLASSES)
    storage.write_json(f"{folder}/metrics.json", {"val": metrics})
    keys = ("parents", "config", "packages")
    provenance: dict[str, Any] = {"identity": {"arguments": {}, "contents": {}}, "counts": {"labeled": 1234}}
    storage.write_json(f"{folder}/provenance.json", provenance | {key: {} for key in keys} | {"git_commit": None})
    return open_artifact(artifact.uri)


def test_a_loop_without_rounds(tmp_path: Path) -> None:
    first = trained(tmp_path / "m")
    page = Page(loop_report(first, first, [], []))
    assert "1,234" in page.words
    assert sum(tag == "img" for tag, _ in page.tags) == len(METRIC_FIGURES)


def test_a_round_with_its_pseudo_labels(tmp_path: Path) -> None:
    first = trained(tmp_path / "m")
    (tmp_path / "a.jpg").write_bytes(picture(1))
    rows = [
        {"uri": str(tmp_path / name), "label": CLASSES[0], "target": [1.0, 0.0, 0.0], "weight": 1.0, "confidence": 0.9}
        for name in ("a.jpg", "gone.jpg")
    ]
    (tmp_path / "round-1" / "selection").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=selection_file.SCHEMA)
    pq.write_table(table, tmp_path / "round-1" / "selection" / selection_file.ROWS)
    counts = dict.fromkeys(CLASSES, 2)
    student = str(tmp_path / "round-1" / "student")
    done = {
        "round": 1, "predictions": 8, "accepted": 2, "predicted_per_class": counts, "accepted_per_class": counts,
        "student": student, "teacher": student, "student_macro_f1": SCORES, "teacher_macro_f1": SCORES,
        "reason": "<better>",
    }  # fmt: skip
    page = Page(loop_report(first, replace(first, uri=student), [done], [], "stops"))
    assert {"Round 1: <better>.", "The loop stops.", "student", "0.250"} <= set(page.words)
    assert sum(tag == "img" for tag, _ in page.tags) == 3 + len(METRIC_FIGURES)
