"""The page about a self-training loop: whether the students got better, from which pseudo-labels, by which feedback."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.documents import read_document
from ray_fer.feedback.factors import BASE_THRESHOLD, MAX_THRESHOLD, MIN_THRESHOLD
from ray_fer.feedback.state import FeedbackState, initial_state, snapshot
from ray_fer.models.artifact import PROVENANCE, Artifact
from ray_fer.models.records import Trained
from ray_fer.reports.evaluation import CAPTIONS, metric_figures
from ray_fer.reports.faces import COLUMNS, face_sheet
from ray_fer.reports.page import Report
from ray_fer.reports.plots import class_histogram, feedback_plot, rounds_plot
from ray_fer.selection import file as selection_file

Summary = Mapping[str, Any]


def loop_report(
    first: Artifact,
    best: Artifact,
    rounds: Sequence[Summary],
    feedback: Sequence[Summary],
    stopped: str | None = None,
) -> str:
    """Render the HTML page of a loop.

    Args:
        first: The teacher that was trained on labelled faces alone.
        best: The teacher after the last round.
        rounds: What ``round.json`` holds, for every round.
        feedback: Every version of the feedback state, oldest first.
        stopped: Why the loop ended early, if it did.
    """
    classes = first.classes
    start, end = first.metrics["val"]["choice"]["macro_f1"], best.metrics["val"]["choice"]["macro_f1"]
    report = Report("Self-training", f"{len(rounds)} rounds; the model is {best.uri}")
    report.key_numbers(
        {
            "macro-F1 on the choice half, labelled faces alone": start,
            "macro-F1 on the choice half, best model": end,
            "labelled faces": read_document(storage.join(first.uri, PROVENANCE), Trained)["counts"]["labeled"],
            "pseudo-labels, last round": rounds[-1]["accepted"] if rounds else 0,
        }
    )
    report.text(
        "One half of the validation set drives the feedback and the temperature, the other chooses the epoch and the "
        "teacher, so the scores of both are a little too kind; what counts is an evaluation on a test set that nothing "
        "was chosen on."
    )
    if rounds:
        _add_rounds(report, start, rounds, stopped)
        _add_pseudo_labels(report, classes, rounds[-1])
    if feedback:
        _add_feedback(report, classes, feedback)
    report.section("The best model on the validation set")
    for name, png in metric_figures(best.metrics["val"]).items():
        report.figure(png, CAPTIONS[name])
    return report.html()


def _add_rounds(report: Report, start: float, rounds: Sequence[Summary], stopped: str | None) -> None:
    students = [float("nan")] + [r["student_macro_f1"]["choice"] for r in rounds]
    kept = [start] + [max(r["student_macro_f1"]["choice"], r["teacher_macro_f1"]["choice"]) for r in rounds]
    report.section("Rounds", "Round 0 is the teacher from labelled faces alone.")
    report.figure(rounds_plot({"teacher": kept, "student": students}, title="Macro-F1 on the choice half over rounds"))
    report.table(
        ["round", "predictions", "pseudo-labels", "share", "new teacher"],
        [
            [
                *(r["round"], r["predictions"], r["accepted"], r["accepted"] / max(r["predictions"], 1)),
                "student" if r["teacher"] == r["student"] else "unchanged",
            ]
            for r in rounds
        ],
    )
    halves = {"choice": "choice half", "feedback": "feedback half", "val": "both"}
    report.table(
        ["round", *(f"{who}, {name}" for name in halves.values() for who in ("teacher", "student"))],
        [
            [r["round"], *(r[f"{who}_macro_f1"][half] for half in halves for who in ("teacher", "student"))]
            for r in rounds
        ],
        caption="Macro-F1 on the halves of the validation set.",
    )
    for r in rounds:
        report.text(f"Round {r['round']}: {r['reason']}.")
    if stopped:
        report.text(f"The loop {stopped}.")


def _add_pseudo_labels(report: Report, classes: tuple[str, ...], last: Summary) -> None:
    report.section(f"Pseudo-labels of round {last['round']}")
    mixes = {"predicted": last["predicted_per_class"], "accepted": last["accepted_per_class"]}
    counts = {name: [mix[c] for c in classes] for name, mix in mixes.items()}
    report.figure(class_histogram(counts, classes, title="Predicted and accepted"), "A rule favours what it accepts.")
    folder = storage.join(last["student"].rsplit("/", 1)[0], "selection")
    if (sheet := _accepted_faces(folder, classes)) is not None:
        report.figure(sheet, "Accepted faces of each class, from the most to the least confident.")


def _accepted_faces(folder: str, classes: tuple[str, ...]) -> bytes | None:
    table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, selection_file.ROWS))))
    chosen: list[tuple[str, str]] = []
    for name in classes:
        rows = table.filter(pc.equal(table["label"], name)).sort_by([("confidence", "descending")])
        places = np.unique(np.linspace(0, max(rows.num_rows - 1, 0), COLUMNS).round().astype(int))
        some = rows.take(pa.array(places[: rows.num_rows]))
        for uri, confidence in zip(some["uri"].to_pylist(), some["confidence"].to_pylist(), strict=True):
            chosen.append((uri, f"{name}\n{confidence:.2f}"))
    return face_sheet(chosen)


def _add_feedback(report: Report, classes: tuple[str, ...], documents: Sequence[Summary]) -> None:
    states = [initial_state(len(classes)), *(FeedbackState.from_json(document["state"]) for document in documents)]
    factors = [snapshot(state) for state in states]
    report.section(
        "Feedback",
        "What the validation confusion of every epoch did to the weight of each class in the loss, and to the "
        "confidence at which its pseudo-labels are accepted (the selection moves its own threshold by as much).",
    )
    report.figure(feedback_plot([factor.loss_weights for factor in factors], classes, neutral=1.0))
    report.figure(
        feedback_plot(
            [factor.thresholds for factor in factors],
            classes,
            neutral=BASE_THRESHOLD,
            bounds=(MIN_THRESHOLD, MAX_THRESHOLD),
            title="Acceptance thresholds",
            ylabel="threshold",
        )
    )
