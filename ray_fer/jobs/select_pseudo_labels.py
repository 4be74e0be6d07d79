"""From predictions to pseudo-labels: no image, no GPU, redone for every feedback version.

The probabilities of the predictions that count, 4 K bytes a row and teacher, are held while the rule's statistics are
made of them, and the URIs of what is accepted while they are sorted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from ray_fer import storage
from ray_fer.config import as_argument
from ray_fer.errors import UserError
from ray_fer.labeling.config import SelectPseudoLabelsConfig
from ray_fer.labeling.predictions import BATCH_ROWS, Predictions
from ray_fer.labeling.select import DebiasedBatches, find_predictions, make_rule, open_teachers, selection_context
from ray_fer.selection import file as selection_file
from ray_fer.selection import fit
from ray_fer.selection.ensemble import ENSEMBLES, Combined, named_otherwise_without

log = logging.getLogger(__name__)


def select_pseudo_labels(config: SelectPseudoLabelsConfig) -> dict[str, Any]:
    """Writes ``selection.parquet`` and ``selection.json`` under ``config.out``.

    Args:
        config: see ``conf/select_pseudo_labels.yaml``.

    Returns:
        The summary: accepted in total and per class, predictions considered, what was left out and why.

    Raises:
        UserError: the table holds no prediction of a teacher, its classes are others, or the rule needs what the
            teacher does not say of its labelled faces.
    """
    teachers, table = open_teachers(config)
    classes, rule = teachers[0].classes, make_rule(config.selection)
    known, class_weights, version = selection_context(config, teachers[0])
    predictions, left_out = find_predictions(config, teachers, table)
    models = predictions.models
    if not len(predictions):
        raise UserError(f"table={config.table}: no usable prediction of {as_argument('teacher', config.teacher)}")
    combined, added = _combined(config, predictions, len(classes))
    mine: dict[str, Any] = {"teacher": teachers[0].id, "model": models[0]}
    if len(teachers) > 1:
        mine = {"teachers": [each.id for each in teachers], "models": models, "named_otherwise_without": added}
        left_out["disagreed"] = len(predictions) - len(combined.rows)
        predictions = predictions.take(combined.rows)
    batches = DebiasedBatches(combined.probs, known.log_prior)
    state = fit(rule, batches, known)
    chosen = np.flatnonzero(np.concatenate([rule.accept(probs, state, known).weights > 0 for probs in batches]))
    uris = pl.concat([part for _, part in predictions.take(chosen).column("uri")] or [pl.Series(dtype=pl.String)])
    counts, targets = np.zeros(len(classes), np.int64), config.selection.targets
    with (
        storage.open_output(storage.join(config.out, selection_file.ROWS)) as file,
        pq.ParquetWriter(file, selection_file.SCHEMA, compression="zstd") as writer,
    ):
        for rows, places in _in_order(uris):
            accepted = rule.accept(batches.part(chosen[places]), state, known)
            counts += np.bincount(accepted.labels, minlength=len(classes))
            writer.write_table(selection_file.to_table(rows, accepted, class_weights, classes, targets))
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
        "predicted": _by_class(classes, np.bincount(combined.probs.argmax(axis=1), minlength=len(classes))),
    }
    storage.write_json(storage.join(config.out, selection_file.INFO), summary)
    log.info("%d of %d predictions accepted: %s", counts.sum(), len(predictions), summary["counts"])
    return summary | {"selection": storage.normalise(config.out)}


def _combined(
    config: SelectPseudoLabelsConfig, predictions: Predictions, n_classes: int
) -> tuple[Combined, list[float]]:
    """What the teachers say together, and what each adds; their own probabilities are not held any longer."""
    theirs = [predictions.probs(number, n_classes) for number in range(len(predictions.models))]
    added = named_otherwise_without(theirs) if len(theirs) > 1 else []
    return ENSEMBLES[config.selection.ensemble](theirs), added


def _in_order(uris: pl.Series) -> Iterator[tuple[Any, npt.NDArray[np.int64]]]:
    """Yields the URIs of a batch and their places, sorted by URI.

    However the table's files lie, a student draws from the same rows in the same order.
    """
    order = uris.arg_sort().to_numpy()
    for start in range(0, len(order), BATCH_ROWS):
        part = order[start : start + BATCH_ROWS]
        yield uris.gather(part).to_arrow(), part


def predicted_counts(config: SelectPseudoLabelsConfig) -> npt.NDArray[np.int64]:
    """Counts the teachers' predictions of each class, int64 (K,), over the pictures that are selected from.

    Raises:
        UserError: the table holds no prediction of a teacher, or its classes are others.
    """
    teachers, table = open_teachers(config)
    predictions, _ = find_predictions(config, teachers, table)
    n_classes = len(teachers[0].classes)
    labels = [predictions.probs(number, n_classes).argmax(axis=1) for number in range(len(teachers))]
    return np.bincount(np.concatenate(labels), minlength=n_classes)


def _by_class(classes: Sequence[str], values: npt.NDArray[Any]) -> dict[str, Any]:
    return dict(zip(classes, values.tolist(), strict=True))
