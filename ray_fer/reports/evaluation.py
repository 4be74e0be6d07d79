"""The page about one evaluation: how good a model is on one labelled set."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ray_fer.reports.page import Report

# The files of `ray_fer.reports.figures` in the order of the page: these need the metrics alone, the others all.
METRIC_FIGURES = ("confusion_matrix", "per_class_f1", "reliability")
PREDICTION_FIGURES = ("class_mix", "coverage")
_FIGURES = {name: import_module(f"ray_fer.reports.figures.{name}") for name in (*METRIC_FIGURES, *PREDICTION_FIGURES)}
CAPTIONS: dict[str, str] = {name: figure.CAPTION for name, figure in _FIGURES.items()}

_MOST_FREQUENT = 10

Metrics = Mapping[str, Any]


def metric_figures(metrics: Metrics) -> dict[str, bytes]:
    """Draw the figures that the result of `ray_fer.evaluation.metrics.evaluate_probs` suffices for: PNG by name."""
    return {name: _FIGURES[name].draw(metrics) for name in METRIC_FIGURES}


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
    return metric_figures(metrics) | {name: _FIGURES[name].draw(metrics, *predictions) for name in PREDICTION_FIGURES}


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
