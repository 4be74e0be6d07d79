"""Running a model over the frames of one clip: the temporal model, or a backbone frame by frame.

The only place that knows how the two differ, for `predict_video` and `evaluate` alike. A temporal model was trained at
one rate (its ``frame_step``); at another, motion would look faster or slower than it ever did. So only every such frame
is encoded, and the probabilities of those between are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, open_artifact
from ray_fer.models.softmax import softmax
from ray_fer.video.encoder import TemporalArtifact, clip_logits, is_temporal, load_encoder, open_temporal
from ray_fer.video.frame_features import FrameEncoder, Pixels
from ray_fer.video.smoothing import smooth_clip
from ray_fer.video.windows import fill_gaps

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClipProbs:
    """Probabilities of one clip before smoothing.

    Attributes:
        frames: the M readable frames, int64 (M,), strictly increasing.
        encoded: those of them that the model has seen and made something finite of, int64 (E,).
        probs: of the model at ``encoded``, float32 (E, K).
        framewise: of the frame classifier there, float32 (E, K); ``probs`` itself for a backbone.
        problems: why a frame is not among ``frames``, by frame number.
    """

    frames: Ints
    encoded: Ints
    probs: Floats
    framewise: Floats
    problems: dict[int, str]

    def smoothed(self, half_width: int) -> Floats:
        """Probabilities of all ``frames``, float32 (M, K), box-filtered over +/- ``half_width`` encoded frames."""
        return self._spread(smooth_clip(self.encoded, self.probs, half_width))

    def framewise_smoothed(self, half_width: int) -> Floats:
        """The same of the frame classifier."""
        return self._spread(smooth_clip(self.encoded, self.framewise, half_width))

    def _spread(self, probs: Floats) -> Floats:
        first, last = int(self.frames[0]), int(self.frames[-1])
        return fill_gaps(self.encoded - first, probs, last - first + 1)[self.frames - first]


class ClipModel:
    """A temporal model or a backbone, loaded once for many clips.

    Args:
        uri: of the model.
        batch_size: frames per call of the backbone.
        device: of torch.

    Attributes:
        temporal: the temporal model, None for a backbone.
        backbone: what sees the frames.

    Raises:
        UserError: when neither is at ``uri``.
    """

    def __init__(self, uri: str, batch_size: int, device: str = "cpu") -> None:
        self.temporal: TemporalArtifact | None = open_temporal(uri) if is_temporal(uri) else None
        self.backbone: Artifact = self.temporal.backbone if self.temporal else open_artifact(uri)
        self._frames = FrameEncoder(self.backbone, device=device)
        self._encoder = load_encoder(self.temporal).to(device) if self.temporal else None
        self._batch_size = batch_size

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names in the order of the probabilities."""
        return self.backbone.classes

    @property
    def id(self) -> str:
        """Content hash of the model."""
        return self.temporal.id if self.temporal else self.backbone.id

    def __call__(self, frames: Iterable[tuple[int, Pixels | str]]) -> ClipProbs:
        """Probabilities of a clip, given as `ray_fer.video.frames.read_clip` does; it is never held in memory.

        Raises:
            UserError: from ``frames``, when the video cannot be opened; when the model puts out nothing finite.
        """
        step = self.temporal.frame_step if self.temporal else 1
        readable: list[int] = []

        def due() -> Iterator[tuple[int, Any]]:
            for number, pixels in frames:
                if isinstance(pixels, str):
                    yield number, pixels
                    continue
                readable.append(number)
                if (number - readable[0]) % step == 0:
                    yield number, pixels

        found = self._frames.encode_clip(due(), self._batch_size)
        if readable and not len(found.frames):
            raise UserError(f"not one frame can be predicted: {found.problems[readable[0]]}")
        probs = found.probs
        if self.temporal and self._encoder is not None and len(found.frames):
            logits = clip_logits(self._encoder, found.frames, found.features, found.probs, self.temporal.stride)
            probs = softmax(logits)
        return ClipProbs(np.array(readable, np.int64), found.frames, probs, found.probs, found.problems)
