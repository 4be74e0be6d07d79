"""What is read of the files that a training run leaves: its claim, and a finished model's provenance and metrics."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict


class Identity(TypedDict):
    """See `claim.identity_of`."""

    arguments: dict[str, Any]
    contents: dict[str, Any]


class Claim(TypedDict):
    """``.run/claim.json``."""

    identity: Identity
    start: dict[str, Any]


class Provenance(TypedDict, total=False):
    """``provenance.json`` of any model; only one that a job of ours trained has an identity."""

    identity: Identity


class Trained(TypedDict):
    """``provenance.json`` of a model that a job of ours trained."""

    identity: Identity
    counts: dict[str, Any]
    parents: dict[str, Any]
    config: dict[str, Any]
    packages: dict[str, Any]
    git_commit: str | None


class Half(TypedDict):
    """Of one half of the validation set."""

    macro_f1: float | None
    confusion_matrix: list[list[int]]


class Validation(TypedDict):
    """Of the whole validation set and of both halves."""

    macro_f1: float | None
    accuracy: float | None
    epoch: int
    feedback_version: NotRequired[int | None]
    choice: Half
    feedback: Half


class BackboneMetrics(TypedDict):
    """``metrics.json`` of a backbone that a job of ours trained."""

    val: Validation
    history: list[Any]
    resumed: list[int]


class Scores(TypedDict):
    """Macro-F1 of the whole validation set and of both halves."""

    val: float | None
    choice: float
    feedback: float | None


class Round(TypedDict):
    """``round.json`` of a loop."""

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
    """Of the whole validation set."""

    macro_f1: float | None


class Scored(TypedDict):
    """``metrics.json`` of any version."""

    val: Score


class EncoderScores(TypedDict):
    """Macro-F1 of an encoder on its validation set."""

    encoder_smoothed: float


class EncoderValidation(TypedDict):
    """Of the epoch that was kept."""

    epoch: int
    scores: EncoderScores


class EncoderMetrics(TypedDict):
    """``metrics.json`` of a temporal model."""

    val: EncoderValidation
    history: list[Any]
    resumed: list[int]
