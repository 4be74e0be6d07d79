"""The page about a labelling run: how fast, which classes, how confident, and what the faces look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.reports.faces import face_sheet
from ray_fer.reports.page import Report
from ray_fer.reports.plots import class_histogram, confidence_histogram, throughput_plot


def run_report(
    summary: Mapping[str, Any],
    *,
    failed: int,
    threshold: float,
    confidence: NDArray[np.int64],
    samples: Mapping[str, Sequence[tuple[str, str, float]]],
    timeline: Sequence[tuple[float, int]],
) -> str:
    """Render the HTML page of a run.

    Args:
        summary: What the job returns.
        failed: Images without a prediction.
        threshold: Confidence from which a prediction is likely to be accepted.
        confidence: Predictions of each class over B equal bins of the confidence from 0 to 1, int64 (K, B).
        samples: (digest, uri, confidence) of some faces of each predicted class; they are read again for the page.
        timeline: Points (seconds since the start, images so far).
    """
    classes, models = list(summary["predicted"]), summary.get("models", {})
    names = list(models) or [summary["model"]]
    subtitle = f"run {summary['run']}, model{'s' * (len(names) > 1)} {', '.join(names)}, table {summary['table']}"
    report = Report("Pseudo-labels", subtitle)
    cost = "gpu_hours" if "gpu_hours" in summary else "core_hours"
    report.key_numbers(
        {
            "labelled": summary["labelled"],
            "already labelled": summary["already_labelled"],
            "without a prediction": failed,
            "images per second": round(summary["images_per_second"]),
            {"gpu_hours": "GPU-hours", "core_hours": "core-hours"}[cost]: summary[cost],
        }
    )
    report.section("Throughput")
    report.figure(throughput_plot(timeline), "Images per second, as units were finished.")
    above = f"at {threshold:g} or more"
    report.section("Predictions")
    if models:
        mixes = {model: list(part["predicted"].values()) for model, part in models.items()}
    else:
        accepted = confidence[:, round(threshold * confidence.shape[1]) :].sum(axis=1)
        mixes = {"predicted": list(summary["predicted"].values()), above: accepted.tolist()}
    report.figure(class_histogram(mixes, classes, title="Predicted classes"))
    report.figure(confidence_histogram(confidence, classes, threshold=threshold))
    if failures := {status: count for status, count in summary["statuses"].items() if status != "ok"}:
        report.table(["status", "images"], [list(item) for item in failures.items()])
    if models:
        counts = ("teacher", "labelled", "already_labelled", "sure_share")
        rows = [[model, *(part[count] for count in counts)] for model, part in models.items()]
        report.table(["model", "teacher", "labelled", "already labelled", above], rows)
    chosen = [
        (uri, f"{name}\n{score:.2f}")
        for name in classes
        for _, uri, score in sorted(samples[name], key=lambda sample: -sample[2])
    ]
    if (sheet := face_sheet(chosen)) is not None:
        report.section("Faces")
        report.figure(sheet, "A random sample of every predicted class, from the most to the least confident.")
    return report.html()
