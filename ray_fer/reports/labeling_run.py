"""The page about a labelling run: how fast, which classes, how sure, and what the faces look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_fer.labeling.progress import Progress
from ray_fer.reports.evaluation import Report
from ray_fer.reports.face_sheet import face_sheet
from ray_fer.reports.plots import class_histogram, confidence_histogram, throughput_plot


def run_report(summary: dict[str, Any], progress: Progress, by_model: Mapping[str, Progress]) -> str:
    """The HTML page of a run.

    Args:
        summary: what the job returns.
        progress: the run's sums; its samples are read again for their crops.
        by_model: the sums of each teacher.
    """
    models = f"model{'s' * (len(by_model) > 1)} {', '.join(by_model)}"
    report = Report("Pseudo-labels", f"run {summary['run']}, {models}, table {summary['table']}")
    report.key_numbers(
        {
            "labelled": summary["labelled"],
            "already labelled": summary["already_labelled"],
            "without a prediction": progress.failed,
            "images per second": round(progress.rate()),
            "GPU-hours" if progress.device == "cuda" else "core-hours": progress.device_hours(progress.seconds),
        }
    )
    report.section("Throughput")
    report.figure(throughput_plot(progress.timeline), "Images per second, as units were finished.")
    labels = progress.labels()
    sure = progress.confidence[:, round(progress.threshold * progress.confidence.shape[1]) :].sum(axis=1)
    above = f"at {progress.threshold:g} or more"
    report.section("Predictions")
    mixes = {"predicted": list(labels.values()), above: sure.tolist()}
    if len(by_model) > 1:
        mixes = {model: list(part.labels().values()) for model, part in by_model.items()}
    report.figure(class_histogram(mixes, progress.classes, title="Predicted classes"))
    report.figure(confidence_histogram(progress.confidence, progress.classes, threshold=progress.threshold))
    failures = {status: count for status, count in summary["statuses"].items() if status != "ok"}
    if failures:
        report.table(["status", "images"], [list(item) for item in failures.items()])
    if len(by_model) > 1:
        counts = ("teacher", "labelled", "already_labelled", "sure_share")
        rows = [[model, *(part[count] for count in counts)] for model, part in summary["models"].items()]
        report.table(["model", "teacher", "labelled", "already labelled", above], rows)
    chosen = [
        (uri, f"{name}\n{confidence:.2f}")
        for name in progress.classes
        for _, uri, confidence in sorted(progress.samples[name], key=lambda sample: -sample[2])
    ]
    if (sheet := face_sheet(chosen)) is not None:
        report.section("Faces")
        report.figure(sheet, "A random sample of every predicted class, from the most to the least sure.")
    return report.html()
