"""How good is a model on labelled pictures or videos: numbers, figures, one page, and every single prediction.

A picture that cannot be read is listed and counted but neither scored nor fatal: of a million crops some are broken,
and a metric over the rest is what everybody wants. What would make the numbers wrong without anybody noticing is an
error: a label that the model cannot predict.

A temporal model is evaluated on a manifest of video frames, clip by clip, smoothed as it is when it predicts; its frame
classifier is scored on the same frames, for that, smoothed, is what it has to beat.

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
from ray_fer.evaluation.metrics import (
    apply_temperature,
    confusion_matrix,
    evaluate_probs,
    expected_calibration_error,
    macro_f1,
    reliability_bins,
)
from ray_fer.jobs.config import EvaluateConfig
from ray_fer.models.engines import Engine, make_engine
from ray_fer.models.softmax import softmax, why_not_finite
from ray_fer.models.teacher import OnnxTeacher, Teacher, check_teacher, open_teacher
from ray_fer.reports.evaluation import evaluation_figures, evaluation_report
from ray_fer.resources import device_here
from ray_fer.video.clips import ClipModel
from ray_fer.video.encoder import is_temporal
from ray_fer.video.frames import clips_of, read_clip

_LISTED = 100

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates a model on a manifest and writes metrics.json, figures, report.html and predictions.parquet.

    Raises:
        UserError: when the model or the manifest cannot be used, when a label is a class that the model lacks, or when
            nothing labelled could be read.
    """
    if is_temporal(config.model):
        return _evaluate_temporal(config)
    teacher = open_teacher(config.model)
    check_teacher(teacher, device=config.device)
    device = "cpu" if isinstance(teacher, OnnxTeacher) else device_here(config.device)
    manifest = labelled_for(teacher.classes, config.data, config.split)
    probs, errors = predict_pictures(teacher, manifest.uris, config.batch_size, device)
    others = _before_calibration(probs, manifest, teacher.outputs.temperature)
    return publish(config, teacher.id, manifest, probs, errors, others)


def _before_calibration(probs: NDArray[np.float32], manifest: Manifest, temperature: float) -> dict[str, float]:
    """The temperature that a model brought along, and the calibration error that it would have without."""
    scored = (manifest.labels >= 0) & ~np.isnan(probs[:, 0])
    if temperature == 1.0 or not scored.any():
        return {}
    # Calibrated probabilities are softmax(z / T), so that dividing their logarithms by 1 / T undoes it.
    raw = apply_temperature(probs[scored], 1 / temperature)
    error = expected_calibration_error(reliability_bins(raw, manifest.labels[scored]))
    return {"temperature": temperature, "ece_uncalibrated": error}


def _evaluate_temporal(config: EvaluateConfig) -> dict[str, Any]:
    model = ClipModel(config.model, config.batch_size, device_here(config.device))
    assert model.temporal is not None
    manifest = labelled_for(model.classes, config.data, config.split)
    probs, framewise, framewise_smoothed = (
        np.full((len(manifest), len(model.classes)), np.nan, np.float32) for _ in range(3)
    )
    errors: dict[int, str] = {}
    clips = clips_of(manifest)
    for number, clip in enumerate(clips, start=1):
        try:
            found = model(read_clip(clip, model.backbone.image_size))
        except UserError as error:
            errors |= dict.fromkeys(clip.rows.tolist(), str(error))
            continue
        errors |= {
            int(row): found.problems[frame]
            for row, frame in zip(clip.rows, clip.frames.tolist(), strict=True)
            if frame in found.problems
        }
        # A video file has frames that the manifest does not list.
        predicted = found.frames[~np.isin(found.frames, list(found.problems))]
        _, listed, _ = np.intersect1d(clip.frames, predicted, return_indices=True)
        there = np.searchsorted(found.frames, clip.frames[listed])
        if len(there):
            rows = clip.rows[listed]
            probs[rows] = found.smoothed(model.temporal.smoothing)[there]
            framewise[rows] = found.framewise_smoothed(0)[there]
            framewise_smoothed[rows] = found.framewise_smoothed(model.temporal.frame_smoothing)[there]
        log.info("%d of %d clips", number, len(clips))
    scored = (manifest.labels >= 0) & ~np.isnan(probs[:, 0])
    scores = {
        name: macro_f1(confusion_matrix(manifest.labels[scored], values[scored].argmax(axis=1), len(model.classes)))
        for name, values in (("frame_macro_f1", framewise), ("frame_smoothed_macro_f1", framewise_smoothed))
    }
    return publish(config, model.id, manifest, probs, dict(sorted(errors.items())), scores)


def labelled_for(classes: tuple[str, ...], data: str, split: str | None) -> Manifest:
    """The manifest ``data`` with its labels in the order of the model's ``classes``; -1 stays -1.

    Labels that are indices, or names that are no expressions, are understood as the model's classes.

    Raises:
        UserError: naming the class, when a row has a label that the model lacks.
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
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Probabilities of pictures.

    Args:
        teacher: the model.
        uris: N pictures.
        batch_size: pictures per inference call.
        device: ``cpu`` or ``cuda``.

    Returns:
        float32 (N, K), NaN for pictures that could not be read or whose output is not finite; and the reasons by row
        number.
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


def publish(
    config: EvaluateConfig,
    model_id: str,
    manifest: Manifest,
    probs: NDArray[np.float32],
    errors: dict[int, str],
    others: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Writes what is known about N predictions to ``config.out`` and returns the job's summary.

    Args:
        config: of the job.
        model_id: content hash of the model.
        manifest: N rows, labels and classes in the model's order.
        probs: float32 (N, K), NaN where there is no prediction.
        errors: why, by row number.
        others: further scores by name, for metrics.json and the summary.

    Raises:
        UserError: when not one labelled row has a prediction.
    """
    scored = (manifest.labels >= 0) & ~np.isnan(probs[:, 0])
    if not scored.any():
        reason = f" ({next(iter(errors.values()))})" if errors else ""
        raise UserError(f"data={config.data}: no labelled row could be evaluated{reason}")
    p, y = probs[scored], manifest.labels[scored]
    metrics = evaluate_probs(p, y, manifest.classes)
    figures = evaluation_figures(metrics, p, y)
    unreadable = [{"uri": manifest.uris[row], "error": reason} for row, reason in list(errors.items())[:_LISTED]]
    place = {"model": config.model, "model_id": model_id, "data": config.data, "split": config.split}
    for name, png in figures.items():
        storage.write_bytes(storage.join(config.out, f"{name}.png"), png)
    page = evaluation_report(metrics, title="Evaluation", model=config.model, data=config.data, figures=figures)
    report = storage.join(config.out, "report.html")
    storage.write_bytes(report, page.encode())
    storage.write_bytes(storage.join(config.out, "predictions.parquet"), _predictions(manifest, probs, errors))
    document = {**place, **metrics, **(others or {}), "n_unreadable": len(errors), "unreadable": unreadable}
    storage.write_json(storage.join(config.out, "metrics.json"), document)
    return {
        **{key: metrics[key] for key in ("macro_f1", "accuracy", "n", "ece")},
        **(others or {}),
        "unreadable": len(errors),
        "f1": {name: scores["f1"] for name, scores in metrics["per_class"].items()},
        "report": report,
    }


def _predictions(manifest: Manifest, probs: NDArray[np.float32], errors: dict[int, str]) -> bytes:
    """Parquet of every row: uri, video and frame where known, label, prediction, probs (null if unreadable), error."""
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
