"""Prediction of clips and videos, by a temporal model or by a backbone frame by frame.

Only this file knows how the two differ. A temporal model was trained at one frame rate (its ``frame_step``); at another
rate, motion would look faster or slower than it ever did. So only every ``frame_step``-th frame is encoded, and the
probabilities of the frames between are interpolated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_fer.data.loading import Pixels
from ray_fer.data.manifests import Manifest
from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, open_artifact
from ray_fer.models.softmax import softmax
from ray_fer.video.artifact import TemporalArtifact, is_temporal, load_encoder, open_temporal
from ray_fer.video.encoder import clip_logits
from ray_fer.video.frame_encoder import FrameEncoder
from ray_fer.video.frames import Video, clips_of, read_clip
from ray_fer.video.smoothing import smooth_clip
from ray_fer.video.windows import fill_gaps

_BACKBONE_SMOOTHING_S = 0.5
_DEFAULT_FPS = 25.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ClipProbs:
    """Probabilities of one clip before smoothing.

    Attributes:
        frames: Numbers of the M readable frames, int64 (M,), strictly increasing.
        encoded: Those of them that the model has seen and given finite numbers for, int64 (E,).
        probs: Probabilities of the model at ``encoded``, float32 (E, K).
        framewise: Probabilities of the frame classifier there, float32 (E, K); ``probs`` itself for a backbone.
        problems: Why a frame has no prediction of its own, by frame number.
    """

    frames: Ints
    encoded: Ints
    probs: Floats
    framewise: Floats
    problems: dict[int, str]

    def smoothed(self, half_width: int) -> Floats:
        """Smooth over +/- ``half_width`` encoded frames and interpolate at all ``frames``: float32 (M, K)."""
        return self._interpolated(smooth_clip(self.encoded, self.probs, half_width))

    def framewise_smoothed(self, half_width: int) -> Floats:
        """Smooth the frame classifier's probabilities as `smoothed` does the model's: float32 (M, K)."""
        return self._interpolated(smooth_clip(self.encoded, self.framewise, half_width))

    def _interpolated(self, probs: Floats) -> Floats:
        first, last = int(self.frames[0]), int(self.frames[-1])
        return fill_gaps(self.encoded - first, probs, last - first + 1)[self.frames - first]


class ClipModel:
    """A temporal model or a backbone, loaded once for many clips.

    Args:
        uri: URI of the model.
        batch_size: Frames per call of the backbone.
        device: A device of torch.

    Attributes:
        temporal: The temporal model, None for a backbone.
        backbone: The model that sees the frames.
        classes: The K class names in the order of the probabilities.
        id: Content hash of the model.

    Raises:
        UserError: When neither is at ``uri``.
    """

    def __init__(self, uri: str, batch_size: int, device: str = "cpu") -> None:
        self.temporal: TemporalArtifact | None = open_temporal(uri) if is_temporal(uri) else None
        self.backbone: Artifact = self.temporal.backbone if self.temporal else open_artifact(uri)
        self.classes = self.backbone.classes
        self.id = (self.temporal or self.backbone).id
        self._frames = FrameEncoder(self.backbone, device=device)
        self._encoder = load_encoder(self.temporal).to(device) if self.temporal else None
        self._batch_size = batch_size

    def __call__(self, frames: Iterable[tuple[int, Pixels | str]]) -> ClipProbs:
        """Predict a clip as `ray_fer.video.frames.read_clip` yields it; it is never held in memory.

        Raises:
            UserError: When ``frames`` raises it, or when the model puts out nothing finite.
        """
        step = self.temporal.frame_step if self.temporal else 1
        readable: list[int] = []

        def due() -> Iterator[tuple[int, Pixels | str]]:
            for number, pixels in frames:
                if not isinstance(pixels, str):
                    readable.append(number)
                    if (number - readable[0]) % step:
                        continue
                yield number, pixels

        found = self._frames.encode_clip(due(), self._batch_size)
        if readable and not len(found.frames):
            raise UserError(f"not one frame can be predicted: {found.problems[readable[0]]}")
        probs = found.probs
        if self.temporal and self._encoder is not None and len(found.frames):
            logits = clip_logits(self._encoder, found.frames, found.features, found.probs, self.temporal.stride)
            probs = softmax(logits)
        return ClipProbs(np.array(readable, np.int64), found.frames, probs, found.probs, found.problems)


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """The smoothed prediction of the M frames of a video file.

    Attributes:
        frames: Frame numbers, int64 (M,).
        times: Seconds since the first frame, (M,).
        probs: Probabilities, float32 (M, K).
        fps: Frames per second on average.
        smoothing: Half-width of the box filter in encoded frames.
        problem: What is wrong with the file, or with frames for which the model puts out nothing finite, or None.
    """

    frames: Ints
    times: list[float]
    probs: Floats
    fps: float
    smoothing: int
    problem: str | None


def predict_file(model: ClipModel, uri: str) -> VideoPrediction:
    """Predict every frame of a video file.

    A temporal model brings the width of its box filter, chosen on its validation videos. A backbone has none, and its
    frames are smoothed over +/- half a second. On Aff-Wild2 that is published to give two thirds of what the best width
    (1.7 s) gives, and it still shows a surprise, which lasts for about a second.

    Raises:
        UserError: When the file cannot be read, or when the model puts out nothing finite.
    """
    video = Video(uri, model.backbone.image_size)
    times: list[float] = []

    def frames() -> Iterator[tuple[int, Pixels | str]]:
        for frame in video:
            times.append(frame.time_s)
            yield frame.index, frame.pixels

    clip = model(frames())
    # A single frame and broken time stamps have no rate.
    fps = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else _DEFAULT_FPS
    smoothing = model.temporal.smoothing if model.temporal else round(_BACKBONE_SMOOTHING_S * fps)
    problem = video.problem
    guessed = [number for number in clip.frames.tolist() if number in clip.problems]
    if guessed and problem is None:
        problem = f"{len(guessed)} frames are filled in from their neighbours: {clip.problems[guessed[0]]}"
    return VideoPrediction(clip.frames, times, clip.smoothed(smoothing), fps, smoothing, problem)


def predict_manifest(model: ClipModel, manifest: Manifest) -> tuple[dict[str, Floats], dict[int, str]]:
    """Predict the N rows of a manifest of video frames, clip by clip, with a temporal model.

    Returns:
        Probabilities float32 (N, K), NaN where there are none, by name: ``encoder_smoothed`` as `predict_file` gives
        them; ``frame`` and ``frame_smoothed`` of the frame classifier, as it is and smoothed by its own best box
        filter. Then the reasons by row number.

    Raises:
        UserError: When the manifest is not one of video frames.
    """
    assert model.temporal is not None
    shape = (len(manifest), len(model.classes))
    probs = {name: np.full(shape, np.nan, np.float32) for name in ("encoder_smoothed", "frame", "frame_smoothed")}
    errors: dict[int, str] = {}
    clips = clips_of(manifest)
    for number, clip in enumerate(clips, start=1):
        try:
            found = model(read_clip(clip, model.backbone.image_size))
        except UserError as error:
            errors |= dict.fromkeys(clip.rows.tolist(), str(error))
            continue
        listed = zip(clip.rows.tolist(), clip.frames.tolist(), strict=True)
        errors |= {row: found.problems[frame] for row, frame in listed if frame in found.problems}
        # A video file has frames that the manifest does not list.
        there = np.isin(clip.frames, found.frames) & ~np.isin(clip.frames, list(found.problems))
        if there.any():
            rows, at = clip.rows[there], np.searchsorted(found.frames, clip.frames[there])
            probs["encoder_smoothed"][rows] = found.smoothed(model.temporal.smoothing)[at]
            probs["frame"][rows] = found.framewise_smoothed(0)[at]
            probs["frame_smoothed"][rows] = found.framewise_smoothed(model.temporal.frame_smoothing)[at]
        log.info("%d of %d clips", number, len(clips))
    return probs, dict(sorted(errors.items()))
