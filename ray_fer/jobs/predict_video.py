"""The expression of every frame of video files: one CSV and one figure per video.

A temporal model brings the width of its box filter with it, chosen on its validation videos. A backbone has none, and
its frames are smoothed over +/- half a second: on Aff-Wild2 that is published to give two thirds of what the best width
(1.7 s) gives, and it still shows a surprise, which lasts for about a second.

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
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.reports.plots import expression_timeline
from ray_fer.resources import device_here
from ray_fer.video.clips import ClipModel
from ray_fer.video.config import PredictVideoConfig
from ray_fer.video.frame_features import Pixels
from ray_fer.video.frames import Video, find_videos

BACKBONE_SMOOTHING_S = 0.5
_DEFAULT_FPS = 25.0

log = logging.getLogger(__name__)


def predict_video(config: PredictVideoConfig) -> dict[str, Any]:
    """Predicts every frame of every video under ``source``.

    Writes, for each, ``OUT/NAME.csv`` (frame, time_s, label, confidence, and the probability of each class) and
    ``OUT/NAME.png``, then ``OUT/summary.json``. NAME is the file's without its extension, and with a part of a hash
    after it where two videos would share it.

    Returns:
        ``videos`` and ``frames`` (counts), ``failed`` (reasons by URI), ``predictions`` (by NAME: ``video``,
        ``frames``, ``seconds``, ``smoothing`` in frames, ``share`` of the frames by class, ``problem`` of a damaged
        file, or of frames for which the model puts out nothing finite, or null), ``out``.

    Raises:
        UserError: when the model or the source cannot be used, or when not one video could be read.
    """
    device = device_here(config.device)
    videos = find_videos(config.source)
    model = ClipModel(config.model, config.batch_size, device)
    failed: dict[str, str] = {}
    predictions: dict[str, dict[str, Any]] = {}
    for number, (name, uri) in enumerate(zip(output_names(videos), videos, strict=True), start=1):
        try:
            predictions[name] = done = _predict(model, uri, name, config.out)
        except UserError as error:
            failed[uri] = str(error)
            log.warning("%d of %d videos: %s", number, len(videos), error)
        else:
            log.info("%d of %d videos: %s, %d frames", number, len(videos), name, done["frames"])
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
    """A name for each video: the file's stem, followed by 8 hex digits of its URI's hash where another has it too.

    Upper and lower case count as the same, for there are file systems that think so.
    """
    stems = [os.path.splitext(uri.rsplit("/", 1)[-1])[0] for uri in uris]
    count = Counter(stem.lower() for stem in stems)
    return [
        stem if count[stem.lower()] == 1 else f"{stem}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
        for stem, uri in zip(stems, uris, strict=True)
    ]


def _predict(model: ClipModel, uri: str, name: str, out: str) -> dict[str, Any]:
    video = Video(uri, model.backbone.image_size)
    times: list[float] = []

    def frames() -> Iterator[tuple[int, Pixels | str]]:
        for frame in video:
            times.append(frame.time_s)
            yield frame.index, frame.pixels

    clip = model(frames())
    fps = _frame_rate(times)
    smoothing = model.temporal.smoothing if model.temporal else round(BACKBONE_SMOOTHING_S * fps)
    probs = clip.smoothed(smoothing)
    labels, confidence = probs.argmax(axis=1), probs.max(axis=1)
    storage.write_bytes(storage.join(out, f"{name}.csv"), _csv(clip.frames, times, probs, model.classes))
    figure = expression_timeline(labels, confidence, model.classes, fps=fps, title=name)
    storage.write_bytes(storage.join(out, f"{name}.png"), figure)
    guessed = [number for number in clip.frames.tolist() if number in clip.problems]
    problem = video.problem
    if guessed and problem is None:
        problem = f"{len(guessed)} frames are filled in from their neighbours: {clip.problems[guessed[0]]}"
    share = np.bincount(labels, minlength=len(model.classes)) / len(labels)
    return {
        "video": uri,
        "frames": len(labels),
        "seconds": round(len(labels) / fps, 3),
        "smoothing": smoothing,
        "share": {label: round(float(part), 4) for label, part in zip(model.classes, share, strict=True)},
        "problem": problem,
    }


def _frame_rate(times: Sequence[float]) -> float:
    """Frames per second on average; the usual rate for what has a single frame or broken time stamps."""
    length = times[-1] - times[0]
    return (len(times) - 1) / length if length > 0 else _DEFAULT_FPS


def _csv(
    frames: NDArray[np.int64], times: Sequence[float], probs: NDArray[np.float32], classes: Sequence[str]
) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "time_s", "label", "confidence", *classes])
    for frame, time_s, row in zip(frames.tolist(), times, probs, strict=True):
        numbers = [f"{value:.4f}" for value in row]
        top = int(row.argmax())
        writer.writerow([frame, f"{time_s:.4f}", classes[top], numbers[top], *numbers])
    return text.getvalue().encode()
