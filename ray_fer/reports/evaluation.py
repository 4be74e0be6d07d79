"""The page about one evaluation: how good a model is on one labelled set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_fer.evaluation.metrics import Reliability, class_scores
from ray_fer.reports.metric_plots import class_score_bars, confusion_plot, coverage_plot, reliability_plot
from ray_fer.reports.page import Report
from ray_fer.reports.plots import class_histogram

_MOST_FREQUENT = 10

Metrics = Mapping[str, Any]
Predictions = tuple[NDArray[np.floating[Any]], NDArray[np.int64]]
"""Probabilities (N, K) and true class indices (N,), without the rows that have no label."""
Figures = dict[str, tuple[Callable[..., bytes], str]]
"""By the name of its file, what draws a figure and the figure's caption."""


def _reliability(metrics: Metrics) -> bytes:
    bins: dict[str, Any] = {key: np.asarray(values, np.float64) for key, values in metrics["reliability"].items()}
    return reliability_plot(Reliability(**bins))


def _class_mix(metrics: Metrics, predictions: Predictions) -> bytes:
    probs, labels = predictions
    counted = {"true labels": labels, "predictions": probs.argmax(axis=1)}
    counts = {name: np.bincount(indices, minlength=probs.shape[1]) for name, indices in counted.items()}
    return class_histogram(counts, metrics["classes"])


def _coverage(_: Metrics, predictions: Predictions) -> bytes:
    probs, labels = predictions
    return coverage_plot(probs.max(axis=1, initial=0.0), probs.argmax(axis=1) == labels)


# These are drawn from the metrics alone, the others from metrics and predictions.
METRIC_FIGURES: Figures = {
    "confusion_matrix": (
        lambda metrics: confusion_plot(metrics["confusion_matrix"], metrics["classes"]),
        "Rows are true, columns predicted; colour and percentage are shares of the true class.",
    ),
    "per_class_f1": (
        lambda metrics: class_score_bars(class_scores(metrics["confusion_matrix"]), metrics["classes"]),
        "F1 of each class; the triangles are its precision and recall.",
    ),
    "reliability": (
        _reliability,
        "Accuracy against confidence: calibrated means on the diagonal. Pale bins: under 10 examples.",
    ),
}
PREDICTION_FIGURES: Figures = {
    "class_mix": (_class_mix, "True labels against predictions: differences are the model's bias on this set."),
    "coverage": (_coverage, "What an acceptance threshold keeps, and how much of that is right."),
}
CAPTIONS = {name: caption for name, (_, caption) in (METRIC_FIGURES | PREDICTION_FIGURES).items()}


def metric_figures(metrics: Metrics) -> dict[str, bytes]:
    """Draw the figures that the result of `ray_fer.evaluation.metrics.evaluate_probs` suffices for: PNG by name."""
    return {name: draw(metrics) for name, (draw, _) in METRIC_FIGURES.items()}


def evaluation_figures(metrics: Metrics, probs: ArrayLike, labels: ArrayLike) -> dict[str, bytes]:
    """Draw all figures of an evaluation: PNG by name.

    Args:
        metrics: The result of `ray_fer.evaluation.metrics.evaluate_probs`.
        probs: Probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
    """
    truth = np.asarray(labels, np.int64)
    known = truth != -1
    predictions = np.asarray(probs)[known], truth[known]
    more = {name: draw(metrics, predictions) for name, (draw, _) in PREDICTION_FIGURES.items()}
    return metric_figures(metrics) | more


def evaluation_report(metrics: Metrics, *, model: str, data: str, figures: Mapping[str, bytes]) -> str:
    """Render the HTML page of one evaluation.

    Args:
        metrics: The result of `ray_fer.evaluation.metrics.evaluate_probs`.
        model: Which model was evaluated, e.g. its id or URI.
        data: On which labelled set.
        figures: The result of `evaluation_figures` or of `metric_figures`.
    """
    report = Report("Evaluation", f"model {model} on {data}")
    report.key_numbers(
        {
            "macro-F1": metrics["macro_f1"],
            "standard error of macro-F1": metrics["macro_f1_se"],
            "accuracy": metrics["accuracy"],
            "calibration error (ECE)": metrics["ece"],
            "negative log-likelihood": metrics["nll"],
            "examples": metrics["n"],
        }
    )
    report.text(
        "Macro-F1 is the unweighted mean of the F1 of the classes, pooled over all examples; a class that is neither "
        "true nor predicted anywhere is left out. The standard error is a bootstrap that takes examples as independent."
    )
    report.section("Classes").table(
        ["class", "examples", "precision", "recall", "F1"],
        [
            [name, row["support"], row["precision"], row["recall"], row["f1"]]
            for name, row in metrics["per_class"].items()
        ],
        "n/a is a ratio without examples or without predictions.",
    )
    report.section("Figures")
    for name, png in figures.items():
        report.figure(png, CAPTIONS[name])
    report.section("Most frequent confusions").table(
        ["true", "predicted", "examples", "share of the true class"], _confusions(metrics)
    )
    return report.html()


def _confusions(metrics: Metrics) -> list[list[object]]:
    classes, confusion = metrics["classes"], metrics["confusion_matrix"]
    pairs = [
        [classes[i], classes[j], n, n / sum(row)]
        for i, row in enumerate(confusion)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:_MOST_FREQUENT]
