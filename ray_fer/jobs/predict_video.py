"""The job that predicts the expression of every frame of video files: one CSV and one figure per video.

A whole frame is taken for a face, as everywhere in ray-fer: videos are crops. Frames are decoded, encoded and forgotten
one batch at a time, so that an hour of video needs no more memory than its features do. A video that cannot be read is
reported, and the others are done.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.reports.plots import expression_timeline
from ray_fer.resources import device_here
from ray_fer.video.config import PredictVideoConfig
from ray_fer.video.frames import find_videos
from ray_fer.video.prediction import ClipModel, VideoPrediction, predict_file

log = logging.getLogger(__name__)


def predict_video(config: PredictVideoConfig) -> dict[str, Any]:
    """Predict every frame of every video under ``source``.

    For each video this writes ``OUT/NAME.csv`` (frame, time_s, label, confidence, and the probability of each class)
    and ``OUT/NAME.png``, then ``OUT/summary.json``. NAME is the name of the file without its extension, followed by a
    part of a hash where two videos would share it.

    Returns:
        ``model`` and ``model_id``; ``videos`` and ``frames`` (counts); ``failed`` (reasons by URI); ``out``; and
        ``predictions`` by NAME: ``video``, ``frames``, ``seconds``, ``smoothing`` in frames, ``share`` of the frames by
        class, and ``problem`` of a damaged file or of frames without finite numbers, or null.

    Raises:
        UserError: When the model or the source cannot be used, or when not one video could be read.
    """
    device = device_here(config.device)
    videos = find_videos(config.source)
    model = ClipModel(config.model, config.batch_size, device)
    failed: dict[str, str] = {}
    predictions: dict[str, dict[str, Any]] = {}
    for number, (name, uri) in enumerate(zip(output_names(videos), videos, strict=True), start=1):
        try:
            found = predict_file(model, uri)
            predictions[name] = {"video": uri, **_publish(found, model.classes, name, config.out)}
        except UserError as error:
            failed[uri] = str(error)
            log.warning("%d of %d videos: %s", number, len(videos), error)
        else:
            log.info("%d of %d videos: %s, %d frames", number, len(videos), name, len(found.frames))
    if not predictions:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"no video could be read: {next(iter(failed.values()))}{more}")
    summary = {
        "model": config.model,
        "model_id": model.id,
        "videos": len(predictions),
        "frames": sum(done["frames"] for done in predictions.values()),
        "failed": failed,
        "predictions": predictions,
        "out": config.out,
    }
    storage.write_json(storage.join(config.out, "summary.json"), summary)
    return summary


def output_names(uris: Sequence[str]) -> list[str]:
    """Name each video by its file's stem, followed by 8 hex digits of its URI's hash where another has that stem too.

    Upper and lower case count as the same, because some file systems do not tell them apart.
    """
    stems = [os.path.splitext(uri.rsplit("/", 1)[-1])[0] for uri in uris]
    count = Counter(stem.lower() for stem in stems)
    return [
        stem if count[stem.lower()] == 1 else f"{stem}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
        for stem, uri in zip(stems, uris, strict=True)
    ]


def _publish(found: VideoPrediction, classes: Sequence[str], name: str, out: str) -> dict[str, Any]:
    """Write the CSV and the figure of one video, and return its part of the summary."""
    labels, confidence = found.probs.argmax(axis=1), found.probs.max(axis=1)
    storage.write_bytes(storage.join(out, f"{name}.csv"), _csv(found, classes))
    figure = expression_timeline(labels, confidence, classes, fps=found.fps, title=name)
    storage.write_bytes(storage.join(out, f"{name}.png"), figure)
    share = np.bincount(labels, minlength=len(classes)) / len(labels)
    return {
        "frames": len(labels),
        "seconds": round(len(labels) / found.fps, 3),
        "smoothing": found.smoothing,
        "share": {label: round(float(part), 4) for label, part in zip(classes, share, strict=True)},
        "problem": found.problem,
    }


def _csv(found: VideoPrediction, classes: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "time_s", "label", "confidence", *classes])
    for frame, time_s, row in zip(found.frames.tolist(), found.times, found.probs, strict=True):
        numbers = [f"{value:.4f}" for value in row]
        top = int(row.argmax())
        writer.writerow([frame, f"{time_s:.4f}", classes[top], numbers[top], *numbers])
    return text.getvalue().encode()
