"""Inputs of the selection of pseudo-labels: predictions, the context of a rule, and probabilities in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from deltalake import DeltaTable

from ray_fer.errors import UserError
from ray_fer.feedback.factors import moved_thresholds
from ray_fer.feedback.store import load_snapshot
from ray_fer.labeling.config import SelectPseudoLabelsConfig
from ray_fer.labeling.exclusions import read_exclusions
from ray_fer.labeling.predictions import BATCH_ROWS, Predictions, newest_predictions
from ray_fer.labeling.table import files_of, open_table
from ray_fer.models.artifact import Artifact
from ray_fer.models.teacher import Teacher, check_together, open_teacher
from ray_fer.selection import RULES, Rule, SelectionContext, debias, smoothed_prior
from ray_fer.selection.config import SelectionConfig
from ray_fer.selection.ranks import Ranked

Floats = npt.NDArray[np.floating]


def open_teachers(config: SelectPseudoLabelsConfig) -> tuple[list[Teacher], DeltaTable]:
    """Opens the teachers and the table of their predictions.

    Raises:
        UserError: If there is no table, or if its classes differ from the teachers'.
    """
    teachers = [open_teacher(uri) for uri in config.teacher]
    check_together(teachers)
    table = open_table(config.table, teachers[0].classes)
    if table is None:
        raise UserError(f"table={config.table}: no predictions table there")
    return teachers, table


def find_predictions(
    config: SelectPseudoLabelsConfig, teachers: Sequence[Teacher], table: DeltaTable
) -> tuple[Predictions, dict[str, int]]:
    """Finds the predictions of the teachers that may become pseudo-labels (see `newest_predictions`).

    Returns:
        The predictions, and the number of rows or objects that were left out for each reason.

    Raises:
        UserError: If the table holds no prediction of a teacher.
    """
    models = [model_in(table, teacher, config) for teacher in teachers]
    return newest_predictions(table, models, read_exclusions(config.selection))


def make_rule(config: SelectionConfig) -> Rule:
    """Returns the rule that ``config`` names, with those of its parameters that ``config`` has."""
    rule = RULES[config.rule]
    constants = {field.name: getattr(config, field.name) for field in fields(rule) if hasattr(config, field.name)}
    # The bins are so fine that ranking a complete table accepts no row beyond the last one wanted.
    return rule(**constants | ({"bins": 1 << 20} if issubclass(rule, Ranked) else {}))


def selection_context(config: SelectPseudoLabelsConfig, teacher: Teacher) -> tuple[SelectionContext, Floats, int]:
    """Returns the context of the rule, the class weights (K,), and the version of the feedback.

    Raises:
        UserError: If the rule needs facts that the teacher does not have.
    """
    thresholds = np.full(len(teacher.classes), config.selection.threshold)
    class_weights, log_prior, version = np.ones(len(teacher.classes)), None, 0
    if config.feedback:
        snapshot = load_snapshot(config.feedback, teacher.classes)
        thresholds = moved_thresholds(config.selection.threshold, snapshot.thresholds)
        class_weights, log_prior = snapshot.sampling_weights, snapshot.log_debiasing_prior
        version = snapshot.version
    context = SelectionContext(thresholds, **_labelled(teacher), log_prior=log_prior)
    for name in RULES[config.selection.rule].needs:
        if getattr(context, name) is None:
            what = f"{name} of the faces that it was trained on, which this version of train_backbone keeps"
            raise UserError(f"selection.rule={config.selection.rule}: teacher={teacher.uri} does not say the {what}")
    return context, class_weights, version


def _labelled(teacher: Teacher) -> dict[str, Any]:
    """Returns the fields of the context that an artifact of ours has, which are statistics of its labelled faces."""
    metrics: Mapping[str, Any] = teacher.metrics if isinstance(teacher, Artifact) else {}
    known: dict[str, Any] = {}
    if counts := metrics.get("labelled_counts"):
        known |= {"labelled_counts": np.asarray(counts, np.float64), "labelled_prior": smoothed_prior(counts)}
    if confidence := metrics.get("val", {}).get("confidence_of_correct"):
        known["labelled_confidence"] = np.asarray(confidence, np.float64)
    return known


@dataclass(frozen=True, eq=False)
class DebiasedBatches:
    """Batches of probabilities without the feedback's prior, which each iteration computes again.

    Attributes:
        probs: Probabilities, float32 (N, K).
        log_prior: Logarithm of the prior, (K,), or None if there is no feedback.
    """

    probs: npt.NDArray[np.float32]
    log_prior: Floats | None

    def part(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Returns the probabilities of some rows, float32 (M, K)."""
        return np.asarray(debias(self.probs[rows], self.log_prior))

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return (self.part(slice(start, start + BATCH_ROWS)) for start in range(0, len(self.probs), BATCH_ROWS))


def model_in(table: DeltaTable, teacher: Teacher, config: SelectPseudoLabelsConfig) -> str:
    """Returns the id that the predictions of ``teacher`` carry in the table.

    Raises:
        UserError: If there is none of the number format, flip and faces that ``config`` names.
    """
    formats = ("float32", "bfloat16") if config.precision == "auto" else (config.precision,)
    flips = (False, True) if config.flip is None else (config.flip,)
    faces = (False, True) if config.faces is None else (config.faces == "detect",)
    for found, flip, precision in itertools.product(faces, flips, formats):
        model = teacher.model_id(precision, flip, found)
        if files_of(table, model):
            return model
    raise UserError(f"table={config.table}: holds no prediction of teacher={teacher.uri} (model {teacher.id})")
