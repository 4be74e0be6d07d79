"""Schemas of the JSON files of a training run: the claim on its folder, and a model's provenance and metrics."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict


class Identity(TypedDict):
    """The arguments of a run, and the content hashes of the files that they name."""

    arguments: dict[str, Any]
    contents: dict[str, Any]


class Claim(TypedDict):
    """The contents of ``.run/claim.json``."""

    identity: Identity
    start: dict[str, Any]


class Provenance(TypedDict, total=False):
    """``provenance.json`` of any model; only a model that a job of the package trained has an identity."""

    identity: Identity


class Trained(TypedDict):
    """``provenance.json`` of a model that a job of the package trained."""

    identity: Identity
    counts: dict[str, Any]
    parents: dict[str, Any]
    config: dict[str, Any]
    packages: dict[str, Any]
    git_commit: str | None
    stages: NotRequired[dict[str, float]]


class Half(TypedDict):
    """The metrics of one half of the validation set."""

    macro_f1: float | None
    confusion_matrix: list[list[int]]


class Validation(TypedDict):
    """The metrics of the whole validation set and of both halves."""

    macro_f1: float | None
    accuracy: float | None
    epoch: int
    feedback_version: NotRequired[int | None]
    choice: Half
    feedback: Half


class Metrics(TypedDict, total=False):
    """``metrics.json`` of any backbone; one that was trained elsewhere may have other keys."""

    val: dict[str, Any]
    history: list[Any]
    resumed: list[int]
    labelled_counts: list[float]


class BackboneMetrics(TypedDict):
    """``metrics.json`` of a backbone that a job of the package trained."""

    val: Validation
    history: list[Any]
    resumed: list[int]


class Reconstruction(TypedDict):
    """The metrics of the epoch that was kept."""

    reconstruction: float
    epoch: int


class PreTrained(TypedDict):
    """``metrics.json`` of a backbone that was pre-trained without labels."""

    val: Reconstruction
    history: list[Any]


class Scores(TypedDict):
    """Macro-F1 of the whole validation set and of both halves."""

    val: float | None
    choice: float
    feedback: float | None


class Round(TypedDict):
    """``round.json`` of a round of self-training."""

    round: int
    labelled_by: str
    predictions: int
    accepted: int
    accepted_per_class: dict[str, int]
    predicted_per_class: dict[str, int]
    thresholds: dict[str, float]
    feedback_version: int
    student: str
    teacher: str
    teacher_macro_f1: Scores
    student_macro_f1: Scores
    reason: str
    asked: int


class Score(TypedDict):
    """The macro-F1 of the whole validation set."""

    macro_f1: float | None


class Scored(TypedDict):
    """``metrics.json`` of a model, in any version of the package."""

    val: Score


class EncoderScores(TypedDict):
    """Macro-F1 of an encoder on its validation set."""

    encoder_smoothed: float


class EncoderValidation(TypedDict):
    """The metrics of the epoch that was kept."""

    epoch: int
    scores: EncoderScores


class EncoderMetrics(TypedDict):
    """``metrics.json`` of a temporal model."""

    val: EncoderValidation
    history: list[Any]
    resumed: list[int]
