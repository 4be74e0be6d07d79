"""From predictions to pseudo-labels: no image, no GPU, redone for every feedback version.

Which predictions count is found first (`predictions`). The probabilities of those, 4 K bytes a row and teacher, are
held while the rule's statistics are made of them, and the URIs of what is accepted while they are sorted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from ray_fer import storage
from ray_fer.config import as_argument
from ray_fer.errors import UserError
from ray_fer.feedback.factors import moved_thresholds
from ray_fer.feedback.store import load_snapshot
from ray_fer.labeling.config import SelectPseudoLabelsConfig
from ray_fer.labeling.exclusions import read_exclusions
from ray_fer.labeling.predictions import BATCH_ROWS, Predictions, newest_predictions
from ray_fer.labeling.table import files_of, open_table
from ray_fer.models.artifact import Artifact
from ray_fer.models.teacher import Teacher, check_together, open_teacher
from ray_fer.selection import RULES, Accepted, Known, Rule, debias, fit, harden, smoothed_prior
from ray_fer.selection import file as selection_file
from ray_fer.selection.config import SelectionConfig
from ray_fer.selection.ensemble import ENSEMBLES
from ray_fer.selection.ranks import Ranked

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.floating]


def select_pseudo_labels(config: SelectPseudoLabelsConfig) -> dict[str, Any]:
    """Writes ``selection.parquet`` and ``selection.json`` under ``config.out``.

    Args:
        config: see ``conf/select_pseudo_labels.yaml``.

    Returns:
        The summary: accepted in total and per class, predictions considered, what was left out and why.

    Raises:
        UserError: when the table holds no prediction of a teacher, its classes are others, or the rule needs what the
            teacher does not say of its labelled faces.
    """
    teachers, table = _opened(config)
    classes, names = teachers[0].classes, np.array(teachers[0].classes)
    rule, (known, class_weights, version) = make_rule(config.selection), known_to(config, teachers[0])
    predictions, left_out = _usable(table, teachers, config)
    models = predictions.models
    if not len(predictions):
        raise UserError(f"table={config.table}: no usable prediction of {as_argument('teacher', config.teacher)}")
    vectors = [predictions.probs(number, len(classes)) for number in range(len(models))]
    combined = ENSEMBLES[config.selection.ensemble](vectors)
    del vectors
    mine: dict[str, Any] = {"teacher": teachers[0].id, "model": models[0]}
    if len(teachers) > 1:
        mine = {"teachers": [each.id for each in teachers], "models": models}
        left_out["disagreed"] = len(predictions) - len(combined.rows)
        predictions = predictions.take(combined.rows)

    batches = Debiased(combined.probs, known.log_prior)
    state = fit(rule, batches, known)
    chosen = np.flatnonzero(np.concatenate([rule.accept(probs, state, known).weights > 0 for probs in batches]))
    uris = pl.concat([part for _, part in predictions.take(chosen).column("uri")] or [pl.Series(dtype=pl.String)])
    # However the table's files lie, a student draws from the same rows in the same order.
    order = uris.arg_sort().to_numpy()
    counts = np.zeros(len(classes), np.int64)
    with (
        storage.open_output(storage.join(config.out, selection_file.ROWS)) as file,
        pq.ParquetWriter(file, selection_file.SCHEMA, compression="zstd") as writer,
    ):
        for start in range(0, len(order), BATCH_ROWS):
            part = order[start : start + BATCH_ROWS]
            accepted = rule.accept(batches.part(chosen[part]), state, known)
            counts += np.bincount(accepted.labels, minlength=len(classes))
            writer.write_table(_table(uris.gather(part), accepted, class_weights, names, config.selection.targets))
    predicted = np.bincount(combined.probs.argmax(axis=1), minlength=len(classes))
    summary = {
        "classes": list(classes),
        **mine,
        "table": storage.normalise(config.table),
        "version": table.version(),
        "teacher_uris": [each.uri for each in teachers],
        "feedback": storage.normalise(config.feedback) if config.feedback else None,
        "feedback_version": version,
        "rule": config.selection.model_dump(),
        "thresholds": _by_class(classes, np.asarray(known.thresholds).round(4)),
        "sampling_weights": _by_class(classes, class_weights),
        "considered": len(predictions),
        "left_out": left_out,
        "accepted": int(counts.sum()),
        "counts": _by_class(classes, counts),
        "predicted": _by_class(classes, predicted),
    }
    storage.write_json(storage.join(config.out, selection_file.INFO), summary)
    log.info("%d of %d predictions accepted: %s", counts.sum(), len(predictions), summary["counts"])
    return summary | {"selection": storage.normalise(config.out)}


def predicted_counts(config: SelectPseudoLabelsConfig) -> npt.NDArray[np.int64]:
    """How often the teachers' predictions name each class, int64 (K,), over the pictures that are selected from.

    Raises:
        UserError: when the table holds no prediction of a teacher, or its classes are others.
    """
    teachers, table = _opened(config)
    predictions, _ = _usable(table, teachers, config)
    n_classes = len(teachers[0].classes)
    labels = [predictions.probs(number, n_classes).argmax(axis=1) for number in range(len(teachers))]
    return np.bincount(np.concatenate(labels), minlength=n_classes)


def make_rule(config: SelectionConfig) -> Rule:
    """The rule that ``config`` names, with those of its constants that are keys of ``config``."""
    rule = RULES[config.rule]
    constants = {field.name: getattr(config, field.name) for field in fields(rule) if hasattr(config, field.name)}
    # Of a whole table, so finely that no neighbour of the last one wanted is let in.
    return rule(**constants | ({"bins": 1 << 20} if issubclass(rule, Ranked) else {}))


@dataclass(frozen=True, eq=False)
class Debiased:
    """Batches of probabilities without the feedback's prior, as often as they are gone over.

    Attributes:
        probs: (N, K).
        log_prior: (K,), None without.
    """

    probs: npt.NDArray[np.float32]
    log_prior: Floats | None

    def part(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Of these rows."""
        return np.asarray(debias(self.probs[rows], self.log_prior))

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return (self.part(slice(start, start + BATCH_ROWS)) for start in range(0, len(self.probs), BATCH_ROWS))


def known_to(config: SelectPseudoLabelsConfig, teacher: Teacher) -> tuple[Known, Floats, int]:
    """What the rule may know, the class weights (K,), and the feedback's version.

    Raises:
        UserError: when the rule needs what the teacher does not say.
    """
    thresholds = np.full(len(teacher.classes), config.selection.threshold)
    class_weights, log_prior, version = np.ones(len(teacher.classes)), None, 0
    if config.feedback:
        snapshot = load_snapshot(config.feedback, teacher.classes)
        thresholds = moved_thresholds(config.selection.threshold, snapshot.thresholds)
        class_weights, log_prior = snapshot.sampling_weights, snapshot.log_debiasing_prior
        version = snapshot.version
    known = Known(thresholds, **_labelled(teacher), log_prior=log_prior)
    for name in RULES[config.selection.rule].needs:
        if getattr(known, name) is None:
            what = f"{name} of the faces that it was trained on, which this version of train_backbone keeps"
            raise UserError(f"selection.rule={config.selection.rule}: teacher={teacher.uri} does not say the {what}")
    return known, class_weights, version


def _labelled(teacher: Teacher) -> dict[str, Any]:
    """What an artifact of ours says of its labelled faces."""
    metrics: Mapping[str, Any] = teacher.metrics if isinstance(teacher, Artifact) else {}
    known: dict[str, Any] = {}
    if counts := metrics.get("labelled_counts"):
        known |= {"labelled_counts": np.asarray(counts, np.float64), "labelled_prior": smoothed_prior(counts)}
    if confidence := metrics.get("val", {}).get("confidence_of_correct"):
        known["labelled_confidence"] = np.asarray(confidence, np.float64)
    return known


def _table(
    uris: pl.Series,
    accepted: Accepted,
    class_weights: Floats,
    names: npt.NDArray[np.str_],
    targets: str,
) -> pa.Table:
    labels, soft = accepted.labels, accepted.targets
    kept = harden(labels, len(names)) if targets == "hard" else soft
    ends = np.arange(0, kept.size + 1, len(names), dtype=np.int32)
    columns = [
        uris.to_arrow().cast(pa.string()),
        pa.DictionaryArray.from_arrays(labels, names.tolist()).cast(pa.string()),
        pa.ListArray.from_arrays(ends, pa.array(kept.ravel())),
        pa.array(accepted.weights * class_weights[labels], pa.float32()),
        pa.array(soft.max(axis=1)),
    ]
    return pa.Table.from_arrays(columns, schema=selection_file.SCHEMA)


def _by_class(classes: Sequence[str], values: npt.NDArray[Any]) -> dict[str, Any]:
    return dict(zip(classes, values.tolist(), strict=True))


def _opened(config: SelectPseudoLabelsConfig) -> tuple[list[Teacher], DeltaTable]:
    teachers = [open_teacher(uri) for uri in config.teacher]
    check_together(teachers)
    table = open_table(config.table, teachers[0].classes)
    if table is None:
        raise UserError(f"table={config.table}: no predictions table there")
    return teachers, table


def _usable(
    table: DeltaTable, teachers: Sequence[Teacher], config: SelectPseudoLabelsConfig
) -> tuple[Predictions, dict[str, int]]:
    models = [_model_in(table, teacher, config) for teacher in teachers]
    return newest_predictions(table, models, read_exclusions(config.selection))


def _model_in(table: DeltaTable, teacher: Teacher, config: SelectPseudoLabelsConfig) -> str:
    formats = ("float32", "bfloat16") if config.precision == "auto" else (config.precision,)
    flips = (False, True) if config.flip is None else (config.flip,)
    faces = (False, True) if config.faces is None else (config.faces == "detect",)
    for found, flip, precision in itertools.product(faces, flips, formats):
        model = teacher.model_id(precision, flip, found)
        if files_of(table, model):
            return model
    raise UserError(f"table={config.table}: holds no prediction of teacher={teacher.uri} (model {teacher.id})")
