"""The backbone as an encoder of video frames: features and probabilities, the inputs of the temporal encoder.

One forward pass gives both: the vector that goes into the classifier, and the classifier's logits. Everything is
float32, so that features extracted on a GPU fit an encoder that later runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from ray_fer.data.loading import Pixels
from ray_fer.models.artifact import Artifact, load_model
from ray_fer.models.softmax import softmax, why_not_finite
from ray_fer.models.torch_engine import Normalised

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """The M readable frames of a clip and the numbers of the others.

    Attributes:
        frames: Frame numbers, int64 (M,), strictly increasing.
        features: Features, float32 (M, D).
        probs: Probabilities, float32 (M, K).
        problems: Why a frame is not among them, by frame number.
    """

    frames: NDArray[np.int64]
    features: Floats
    probs: Floats
    problems: dict[int, str]


class FrameEncoder:
    """Maps pixels uint8 (B, S, S, 3) to features float32 (B, D) and probabilities float32 (B, K).

    Args:
        artifact: The backbone.
        device: A device of torch.

    Attributes:
        dim: D.
    """

    def __init__(self, artifact: Artifact, *, device: str = "cpu") -> None:
        self.artifact = artifact
        self.device = torch.device(device)
        backbone = _WithFeatures(load_model(artifact))
        self._model = Normalised(backbone, artifact.mean, artifact.std).to(self.device).eval()
        size = artifact.image_size
        self.dim = self(np.zeros((1, size, size, 3), np.uint8))[0].shape[1]

    def __call__(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Compute features (B, D) and probabilities (B, K) of ``pixels``."""
        features, logits = self._encode(pixels)
        return features, softmax(logits)

    @torch.inference_mode()
    def _encode(self, pixels: Pixels) -> tuple[Floats, Floats]:
        outputs = self._model(torch.from_numpy(pixels).to(self.device)).float().cpu().numpy()
        n_classes = len(self.artifact.classes)
        return np.ascontiguousarray(outputs[:, n_classes:]), self.artifact.outputs(outputs[:, :n_classes])

    def encode_clip(self, frames: Iterable[tuple[int, Pixels | str]], batch_size: int) -> ClipFeatures:
        """Encode a clip as `ray_fer.video.frames.read_clip` yields it: frame numbers with pixels or a problem.

        A frame whose features or logits are not finite is among the problems.
        """
        numbers: list[int] = []
        problems: dict[int, str] = {}
        done: list[tuple[Floats, Floats]] = []

        def readable() -> Iterator[tuple[int, Pixels]]:
            for number, pixels in frames:
                if isinstance(pixels, str):
                    problems[number] = pixels
                else:
                    yield number, pixels

        waiting = readable()
        while batch := list(islice(waiting, batch_size)):
            features, logits = self._encode(np.stack([pixels for _, pixels in batch]))
            probs = softmax(logits)
            good = np.isfinite(np.concatenate([features, probs], axis=1)).all(axis=1)
            for row, (number, _) in enumerate(batch):
                if good[row]:
                    numbers.append(number)
                elif np.isfinite(probs[row]).all():
                    problems[number] = "the model's features are not finite"
                else:
                    problems[number] = why_not_finite(logits[row], self.artifact.classes)
            done.append((features[good], probs[good]))
        empty = (np.empty((0, self.dim), np.float32), np.empty((0, len(self.artifact.classes)), np.float32))
        features, probs = (np.concatenate(parts) for parts in zip(empty, *done, strict=True))
        return ClipFeatures(np.array(numbers, np.int64), features, probs, problems)


class _WithFeatures(torch.nn.Module):
    """Wraps a timm model to return (B, K + D): the logits and, after them, the classifier's input."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        map_ = self.model.forward_features(x)  # type: ignore[operator]
        # Not get_classifier(): some heads (distilled ones) have two.
        logits = self.model.forward_head(map_)  # type: ignore[operator]
        features = self.model.forward_head(map_, pre_logits=True)  # type: ignore[operator]
        return torch.cat([logits, features], dim=1)
