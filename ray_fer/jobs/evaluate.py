"""The job that evaluates a model on labelled pictures or videos: numbers, figures, one page, and every prediction.

A picture that cannot be read is listed and counted, but neither scored nor fatal: of a million crops some are broken,
and the metrics are about the rest. A label that the model cannot predict would make the metrics wrong without anybody
noticing, so it is an error.

A temporal model is evaluated on a manifest of video frames, clip by clip, smoothed as when it predicts. Its frame
classifier is scored on the same frames, because the encoder has to beat the smoothed frame classifier.

On a CPU one single-threaded engine runs per core, each doing whole batches (read, decode, infer), which measures faster
than a pipeline of stages.
"""

from __future__ import annotations

import io
import logging
import os
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.data.loading import MAX_PICTURE_BYTES, decode_read
from ray_fer.data.manifests import Manifest, read_manifest
from ray_fer.data.read import Item, read_objects
from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import apply_temperature, expected_calibration_error, reliability_bins
from ray_fer.evaluation.metrics import confusion_matrix, evaluate_probs, macro_f1
from ray_fer.jobs.config import EvaluateConfig
from ray_fer.models.engines import Engine, make_engine
from ray_fer.models.softmax import softmax, why_not_finite
from ray_fer.models.teacher import OnnxTeacher, Teacher, check_teacher, open_teacher
from ray_fer.reports.evaluation import evaluation_figures, evaluation_report
from ray_fer.resources import device_here
from ray_fer.video.artifact import is_temporal
from ray_fer.video.prediction import ClipModel, predict_manifest

_LISTED = 100

Floats = NDArray[np.float32]

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a model on a manifest and write metrics.json, figures, report.html and predictions.parquet.

    Returns:
        ``macro_f1``, ``accuracy``, ``n``, ``ece``; ``temperature`` and ``ece_uncalibrated`` of a calibrated model;
        ``frame_macro_f1`` and ``frame_smoothed_macro_f1`` of the frame classifier of a temporal model; ``unreadable``
        (a count), ``f1`` by class, ``report`` (URI of the page).

    Raises:
        UserError: When the model or the manifest cannot be used, when a label is a class that the model lacks, or when
            nothing labelled could be read.
    """
    if is_temporal(config.model):
        return _evaluate_temporal(config)
    teacher = open_teacher(config.model)
    check_teacher(teacher, device=config.device)
    device = "cpu" if isinstance(teacher, OnnxTeacher) else device_here(config.device)
    manifest = labelled_for(teacher.classes, config.data, config.split)
    probs, errors = predict_pictures(teacher, manifest.uris, config.batch_size, device)
    scored = _scored(config, manifest, probs, errors)
    others = _before_calibration(probs[scored], manifest.labels[scored], teacher.outputs.temperature)
    return _publish(config, teacher.id, manifest, probs, errors, others)


def _evaluate_temporal(config: EvaluateConfig) -> dict[str, Any]:
    model = ClipModel(config.model, config.batch_size, device_here(config.device))
    manifest = labelled_for(model.classes, config.data, config.split)
    probs, errors = predict_manifest(model, manifest)
    scored = _scored(config, manifest, probs["encoder_smoothed"], errors)
    others = {}
    for name in ("frame", "frame_smoothed"):
        predictions = probs[name][scored].argmax(axis=1)
        confusion = confusion_matrix(manifest.labels[scored], predictions, len(model.classes))
        others[f"{name}_macro_f1"] = macro_f1(confusion)
    return _publish(config, model.id, manifest, probs["encoder_smoothed"], errors, others)


def _scored(config: EvaluateConfig, manifest: Manifest, probs: Floats, errors: dict[int, str]) -> NDArray[np.bool_]:
    """Mark the rows that have a label and a prediction, bool (N,).

    Raises:
        UserError: When there is none.
    """
    scored: NDArray[np.bool_] = (manifest.labels >= 0) & ~np.isnan(probs[:, 0])
    if not scored.any():
        reason = f" ({next(iter(errors.values()))})" if errors else ""
        raise UserError(f"data={config.data}: no labelled row could be evaluated{reason}")
    return scored


def _before_calibration(probs: Floats, labels: NDArray[np.int64], temperature: float) -> dict[str, float]:
    """Return the temperature of a calibrated model, and the calibration error that it would have without."""
    if temperature == 1.0:
        return {}
    # Calibrated probabilities are softmax(z / T), so that dividing their logarithms by 1 / T undoes it.
    raw = apply_temperature(probs, 1 / temperature)
    error = expected_calibration_error(reliability_bins(raw, labels))
    return {"temperature": temperature, "ece_uncalibrated": error}


def labelled_for(classes: tuple[str, ...], data: str, split: str | None) -> Manifest:
    """Read the manifest ``data`` with its labels in the order of the model's ``classes``; -1 stays -1.

    Labels that are indices, or names that are no expressions, are taken for the model's classes.

    Raises:
        UserError: Naming the class, when a row has a label that the model lacks.
    """
    try:
        manifest = read_manifest(data, split=split)
    except UserError as error:
        try:
            return read_manifest(data, classes, split)
        except UserError as second:
            raise UserError(f"{error}; with the model's classes: {second}") from None
    used = {manifest.classes[label] for label in np.unique(manifest.labels) if label >= 0}
    if lacking := sorted(used - set(classes)):
        known = ", ".join(classes)
        raise UserError(f"data={data}: there are rows of class {lacking[0]}, which the model lacks (it has {known})")
    order = np.array([classes.index(name) if name in classes else -1 for name in manifest.classes] + [-1], np.int64)
    return replace(manifest, labels=order[manifest.labels], classes=classes)


def predict_pictures(
    teacher: Teacher, uris: Sequence[str], batch_size: int, device: str = "cpu"
) -> tuple[Floats, dict[int, str]]:
    """Predict pictures.

    Args:
        teacher: The model.
        uris: URIs of N pictures.
        batch_size: Pictures per inference call.
        device: ``cpu`` or ``cuda``.

    Returns:
        Probabilities float32 (N, K), NaN for pictures that could not be read or whose output is not finite; and the
        reasons by row number.
    """
    probs = np.full((len(uris), len(teacher.classes)), np.nan, np.float32)
    errors: dict[int, str] = {}
    starts = range(0, len(uris), batch_size)
    n_engines = 1 if device == "cuda" else min(os.cpu_count() or 1, len(starts))
    engines: queue.SimpleQueue[Engine] = queue.SimpleQueue()
    for _ in range(n_engines):
        engines.put(make_engine(teacher, "auto", batch_size=batch_size, device=device, precision="float32"))

    def run(start: int) -> None:
        rows = range(start, min(start + batch_size, len(uris)))
        pixels = np.empty((len(rows), teacher.image_size, teacher.image_size, 3), np.uint8)
        good: list[int] = []
        reads = read_objects((Item(uris[row], "", 0) for row in rows), MAX_PICTURE_BYTES)
        for row, read in zip(rows, reads, strict=True):
            problem = decode_read(read, pixels[len(good)])
            if problem is None:
                good.append(row)
            else:
                errors[row] = problem
        if good:
            engine = engines.get()
            try:
                logits = engine(pixels[: len(good)])
            finally:
                engines.put(engine)
            probs[good] = found = softmax(logits)
            for number in np.flatnonzero(np.isnan(found[:, 0])).tolist():
                errors[good[number]] = why_not_finite(logits[number], teacher.classes)

    with ThreadPoolExecutor(max(n_engines, 1)) as workers:
        for done, _ in enumerate(workers.map(run, starts), start=1):
            if done % 100 == 0:
                log.info("%d of %d pictures", min(done * batch_size, len(uris)), len(uris))
    return probs, dict(sorted(errors.items()))


def _publish(
    config: EvaluateConfig,
    model_id: str,
    manifest: Manifest,
    probs: Floats,
    errors: dict[int, str],
    others: dict[str, float],
) -> dict[str, Any]:
    """Write what is known about N predictions to ``config.out`` and return the job's summary.

    Args:
        config: The job's config.
        model_id: Content hash of the model.
        manifest: N rows, with labels and classes in the model's order.
        probs: Probabilities, float32 (N, K), NaN where there is no prediction.
        errors: Why there is none, by row number.
        others: Further scores by name, for metrics.json and the summary.
    """
    scored = _scored(config, manifest, probs, errors)
    metrics = evaluate_probs(probs[scored], manifest.labels[scored], manifest.classes)
    figures = evaluation_figures(metrics, probs[scored], manifest.labels[scored])
    page = evaluation_report(metrics, model=config.model, data=config.data, figures=figures)
    files = {f"{name}.png": png for name, png in figures.items()}
    files |= {"report.html": page.encode(), "predictions.parquet": _predictions(manifest, probs, errors)}
    for name, content in files.items():
        storage.write_bytes(storage.join(config.out, name), content)
    place = {"model": config.model, "model_id": model_id, "data": config.data, "split": config.split}
    unreadable = [{"uri": manifest.uris[row], "error": reason} for row, reason in list(errors.items())[:_LISTED]]
    document = {**place, **metrics, **others, "n_unreadable": len(errors), "unreadable": unreadable}
    storage.write_json(storage.join(config.out, "metrics.json"), document)
    return {
        **{key: metrics[key] for key in ("macro_f1", "accuracy", "n", "ece")},
        **others,
        "unreadable": len(errors),
        "f1": {name: scores["f1"] for name, scores in metrics["per_class"].items()},
        "report": storage.join(config.out, "report.html"),
    }


def _predictions(manifest: Manifest, probs: Floats, errors: dict[int, str]) -> bytes:
    """Make the Parquet file: uri, video and frame where known, label, prediction, probs (null if unreadable), error."""
    known = ~np.isnan(probs[:, 0])
    predicted = np.where(known, np.where(known[:, None], probs, 0).argmax(axis=1), -1)
    names = [*manifest.classes, None]
    columns: dict[str, Any] = {"uri": manifest.uris}
    if manifest.videos is not None:
        columns["video"] = manifest.videos
    if manifest.frames is not None:
        columns["frame"] = pa.array(manifest.frames, pa.int64())
    columns["label"] = pa.array([names[index] for index in manifest.labels], pa.string())
    columns["prediction"] = pa.array([names[index] for index in predicted], pa.string())
    columns["probs"] = pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), probs.shape[1], mask=pa.array(~known))
    columns["error"] = pa.array([errors.get(row) for row in range(len(probs))], pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, metadata={"classes": ",".join(manifest.classes)}), buffer)
    return buffer.getvalue()
