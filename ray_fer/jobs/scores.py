"""What the summaries of jobs say of a model that one of them trained."""

from __future__ import annotations

from typing import Any

from ray_fer.models.artifact import Artifact
from ray_fer.models.records import BackboneMetrics


def scores_of_model(artifact: Artifact) -> dict[str, Any]:
    """The part of a training's summary that is the same for every method."""
    best = artifact.trained_metrics(BackboneMetrics)["val"]
    return {
        "model": artifact.uri,
        "id": artifact.id,
        "classes": list(artifact.classes),
        "val_macro_f1": best["macro_f1"],
        "val_accuracy": best["accuracy"],
        "choice_macro_f1": best["choice"]["macro_f1"],
        "feedback_macro_f1": best["feedback"]["macro_f1"],
        "temperature": artifact.temperature,
    }


def scores_of_halves(artifact: Artifact) -> dict[str, Any]:
    """Macro-F1 of the whole validation set and of its halves."""
    metrics = artifact.trained_metrics(BackboneMetrics)["val"]
    return {"val": metrics["macro_f1"], **{half: metrics[half]["macro_f1"] for half in ("choice", "feedback")}}
