"""From predictions to pseudo-labels: one pass over the table, no image, no GPU, redone for every feedback version.

Of each object only the newest content counts, with all the faces that were found in it, of each picture (by digest)
only one object, and pictures that are also in an excluded manifest (validation, test, the labelled set) never become
pseudo-labels. The newest content is the one labelled last: an object that was overwritten and then restored is not
labelled again, so it is not told from its content in between.

Of several teachers only what all of them have predicted counts, by the content of the object: where one of them is
behind with an overwritten object, there is nothing to combine.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from deltalake import DeltaTable

from ray_fer import storage
from ray_fer.config import SelectPseudoLabelsConfig, as_argument
from ray_fer.data.manifests import read_manifest
from ray_fer.data.read import Item, read_objects
from ray_fer.data.sources.uris import FACE_FRAGMENT
from ray_fer.errors import UserError
from ray_fer.feedback.actor import load_snapshot
from ray_fer.feedback.formulas import FeedbackConfig
from ray_fer.labeling.ensemble import ENSEMBLES
from ray_fer.labeling.rules import RULES, debias
from ray_fer.labeling.table import GONE, MARKS, NO_FACE, OK, files_of, open_table
from ray_fer.models.artifact import sees_faces
from ray_fer.models.teacher import Teacher, check_together, open_teacher

log = logging.getLogger(__name__)

SELECTION_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("label", pa.string()),
        ("target", pa.list_(pa.float32())),
        ("weight", pa.float32()),
        ("confidence", pa.float32()),
    ]
)
LOWEST_THRESHOLD = 0.05
_ANY_SIZE = 1 << 40


def select_pseudo_labels(config: SelectPseudoLabelsConfig) -> dict[str, Any]:
    """Writes ``selection.parquet`` and ``selection.json`` under ``config.out``.

    Args:
        config: see ``conf/select_pseudo_labels.yaml``.

    Returns:
        The summary: accepted in total and per class, predictions considered, what was left out and why.

    Raises:
        UserError: when the table holds no prediction of a teacher, or its classes are others.
    """
    teachers, table = _opened(config)
    models = [_model_in(table, teacher, config) for teacher in teachers]
    teacher = teachers[0]
    excluded = excluded_digests(config.selection.exclude, teacher.classes)
    predictions, left_out = newest_predictions(table, models, excluded)
    if predictions.is_empty():
        raise UserError(f"table={config.table}: no usable prediction of {as_argument('teacher', config.teacher)}")

    n_classes = len(teacher.classes)
    vectors = [predictions[column].list.to_array(n_classes).to_numpy() for column in _probs_of(models)]
    combined = ENSEMBLES[config.selection.ensemble](vectors)
    mine: dict[str, Any] = {"teacher": teacher.id, "model": models[0]}
    if len(teachers) > 1:
        mine = {"teachers": [each.id for each in teachers], "models": models}
        left_out["disagreed"] = len(predictions) - len(combined.rows)
        predictions = predictions.select("uri")[combined.rows]
    thresholds = np.full(n_classes, config.selection.threshold)
    class_weights, log_prior, version = np.ones(n_classes), None, 0
    if config.feedback:
        snapshot = load_snapshot(config.feedback, teacher.classes)
        # The feedback moves thresholds around its own neutral one; here the same moves are made around the config's.
        moved = config.selection.threshold + np.asarray(snapshot.thresholds) - FeedbackConfig().tau0
        thresholds = np.clip(moved, LOWEST_THRESHOLD, 1.0)
        class_weights, log_prior = np.asarray(snapshot.sampling_weights), np.asarray(snapshot.log_debiasing_prior)
        version = snapshot.version

    probs = debias(combined.probs, log_prior)
    accepted = RULES[config.selection.rule](probs, thresholds, class_weights, config.selection)
    targets = probs[accepted.rows]
    if config.selection.targets == "hard":
        targets = np.eye(n_classes, dtype=np.float32)[accepted.labels]
    names = np.array(teacher.classes)
    columns = [
        predictions["uri"].gather(accepted.rows).to_arrow().cast(pa.string()),
        pa.array(names[accepted.labels]),
        pa.array(list(targets), pa.list_(pa.float32())),
        pa.array(accepted.weights, pa.float32()),
        pa.array(probs[accepted.rows].max(axis=1), pa.float32()),
    ]
    selection = pa.Table.from_arrays(columns, schema=SELECTION_SCHEMA)
    counts = Counter(names[accepted.labels].tolist())
    predicted = Counter(names[combined.probs.argmax(axis=1)].tolist())
    summary = {
        "classes": list(teacher.classes),
        **mine,
        "table": storage.normalise(config.table),
        "version": table.version(),
        "teacher_uris": [each.uri for each in teachers],
        "feedback": storage.normalise(config.feedback) if config.feedback else None,
        "feedback_version": version,
        "rule": config.selection.model_dump(),
        "thresholds": dict(zip(teacher.classes, np.round(thresholds, 4).tolist(), strict=True)),
        "sampling_weights": dict(zip(teacher.classes, class_weights.tolist(), strict=True)),
        "considered": len(predictions),
        "left_out": left_out,
        "accepted": selection.num_rows,
        "counts": {name: counts[name] for name in teacher.classes},
        "predicted": {name: predicted[name] for name in teacher.classes},
    }
    sink = pa.BufferOutputStream()
    pq.write_table(selection, sink, compression="zstd")
    storage.write_bytes(storage.join(config.out, "selection.parquet"), sink.getvalue().to_pybytes())
    storage.write_json(storage.join(config.out, "selection.json"), summary)
    log.info("%d of %d predictions accepted: %s", selection.num_rows, len(predictions), summary["counts"])
    return summary | {"selection": storage.normalise(config.out)}


def predicted_counts(config: SelectPseudoLabelsConfig) -> npt.NDArray[np.int64]:
    """How often the teachers' predictions name each class, int64 (K,), over every usable row of the table.

    Raises:
        UserError: when the table holds no prediction of a teacher, or its classes are others.
    """
    teachers, table = _opened(config)
    counts: Counter[str] = Counter()
    for teacher in teachers:
        rows = table.to_pyarrow_dataset(partitions=[("model", "=", _model_in(table, teacher, config))])
        counts.update(rows.to_table(columns=["label"]).column("label").drop_null().to_pylist())
    return np.array([counts[name] for name in teachers[0].classes], np.int64)


def _opened(config: SelectPseudoLabelsConfig) -> tuple[list[Teacher], DeltaTable]:
    teachers = [open_teacher(uri) for uri in config.teacher]
    check_together(teachers)
    table = open_table(config.table, teachers[0].classes)
    if table is None:
        raise UserError(f"table={config.table}: no predictions table there")
    return teachers, table


def _model_in(table: DeltaTable, teacher: Teacher, config: SelectPseudoLabelsConfig) -> str:
    formats = ("float32", "bfloat16") if config.precision == "auto" else (config.precision,)
    flips = (False, True) if config.flip is None else (config.flip,)
    faces = (False, True) if config.faces is None else (config.faces == "detect",)
    for found, flip, precision in itertools.product(faces, flips, formats):
        model = teacher.model_id(precision, flip, found)
        if files_of(table, model):
            return model
    raise UserError(f"table={config.table}: holds no prediction of teacher={teacher.uri} (model {teacher.id})")


def _probs_of(models: Sequence[str]) -> list[str]:
    return [f"probs_{number}" for number in range(len(models))]


def newest_predictions(
    table: DeltaTable, models: Sequence[str], excluded: set[bytes]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The usable predictions of ``models``: (uri, probs_0, probs_1, …) with a column for each model, sorted by uri.

    Of the rows about one content of an object a success counts before a failure, however late that failure came: two
    runs at once may read the same object, and only one of them in vain. Objects whose newest row is a mark that they
    are gone are left out; a mark that one has returned makes the content that it names the newest.

    Args:
        table: the predictions.
        models: ids.
        excluded: digests of pictures to leave out.

    Returns:
        The predictions, and how many were left out: rows as ``superseded``, ``gone`` and ``failed``; objects as
        ``incomplete`` (with several models: not all of them have predicted this content), ``duplicate`` and
        ``excluded``.
    """
    left_out = {"superseded": 0, "gone": 0, "failed": 0}
    newest = [_newest(table, model, left_out) for model in models]
    good = newest[0].rename({"probs": "probs_0"})
    for number, other in enumerate(newest[1:], 1):
        # Of one content, not merely of one object: a model may be behind with what was overwritten.
        theirs = other.drop("picture").rename({"probs": f"probs_{number}"})
        good = good.join(theirs, on=["uri", "digest"], how="inner", maintain_order="left")
    if len(models) > 1:
        left_out["incomplete"] = pl.concat([each["uri"] for each in newest]).n_unique() - len(good)
    unique = good.filter(pl.col("picture") == pl.col("picture").first().over("digest"))
    kept = unique.filter(~pl.col("digest").is_in(pl.Series("digest", list(excluded), pl.Binary).implode()))
    left_out |= {"duplicate": len(good) - len(unique), "excluded": len(unique) - len(kept)}
    return kept.select("uri", *_probs_of(models)), left_out


def _newest(table: DeltaTable, model: str, left_out: dict[str, int]) -> pl.DataFrame:
    """(uri, picture, digest, probs) of the newest content of every picture that ``model`` knows, sorted by uri.

    The picture's URI is another than the row's where that is of a face in it.
    """
    columns = ["uri", "identity", "digest", "probs", "status", "labelled_at"]
    rows = table.to_pyarrow_dataset(file_pruning_predicate=[("model", "=", model)]).to_table(columns=columns)
    frame = pl.DataFrame(pl.from_arrow(rows))
    faces = sees_faces(model)
    frame = frame.with_columns(
        (pl.col("uri").str.replace(FACE_FRAGMENT, "") if faces else pl.col("uri")).alias("picture")
    )
    seen = pl.col("labelled_at").max().over("picture", "identity")
    predicted = frame.with_columns(seen.alias("seen")).filter(~pl.col("status").is_in(MARKS))
    ordered = predicted.sort("picture", "seen", "identity", pl.col("status") == OK, "labelled_at")
    if faces:
        # The last row of a picture tells which content and outcome count; all of its faces go with it.
        told = (pl.col("identity"), pl.col("status") == OK)
        ordered = ordered.filter([each == each.last().over("picture") for each in told])
    newest = ordered.unique("uri", keep="last", maintain_order=True).sort("uri")
    there = newest.join(_gone(frame), on="picture", how="anti", maintain_order="left")
    good = there.filter(pl.col("status") == OK)
    without = int((there["status"] == NO_FACE).sum())
    left_out["superseded"] += len(predicted) - len(newest)
    left_out["gone"] += len(newest) - len(there)
    left_out["failed"] += len(there) - len(good) - without
    if faces:
        left_out["no_face"] = left_out.get("no_face", 0) + without
    return good.select("uri", "picture", "digest", "probs")


def _gone(rows: pl.DataFrame) -> pl.DataFrame:
    """The ``picture`` of the objects whose newest row says that they are gone."""
    marked = pl.col("status") == GONE
    gone = rows.filter(marked).group_by("picture").agg(pl.col("labelled_at").max().alias("gone_at"))
    later = rows.filter(~marked).join(gone, on="picture").filter(pl.col("labelled_at") > pl.col("gone_at"))
    return gone.join(later, on="picture", how="anti").select("picture")


def excluded_digests(manifests: Sequence[str], classes: Sequence[str]) -> set[bytes]:
    """Digests of the pictures that the manifests name; pictures that cannot be read are passed over with a warning.

    Args:
        manifests: whose pictures.
        classes: what labels mean that are no expressions.
    """
    digests: set[bytes] = set()
    for manifest in manifests:
        items = [Item(uri, "", 0) for uri in _uris(manifest, classes)]
        unread = 0
        for read in read_objects(items, _ANY_SIZE):
            if read.data is None:
                unread += 1
            else:
                digests.add(xxhash.xxh3_128_digest(read.data))
        if unread:
            log.warning(
                "exclude=%s: %d of %d pictures cannot be read, so they are not excluded", manifest, unread, len(items)
            )
    return digests


def _uris(manifest: str, classes: Sequence[str]) -> list[str]:
    try:
        return read_manifest(manifest).uris
    except UserError:
        return read_manifest(manifest, classes).uris
