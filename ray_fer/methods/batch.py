"""What methods train on: sets of faces by index, and the batches that are drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ray_fer.feedback.factors import sampling_probabilities
from ray_fer.training.loop import Batch

Indices = NDArray[np.int64]
Stream = Callable[[int], Iterator[tuple[Indices, Any, Any]]]
"""From an epoch to this rank's rows, their pixels and which of them are readable, step by step."""


class Images(Protocol):
    """Pictures by index."""

    def batch(self, indices: Indices) -> tuple[Any, Any]:
        """Pixels uint8 (B, S, S, 3) and which of them are readable, bool (B,); arrays or tensors."""
        ...


@dataclass(frozen=True, eq=False)
class Faces:
    """A set of faces, empty where a job has none of that kind.

    Attributes:
        images: The pixels by index.
        uris: N names, for messages.
        labels: int64 (N,), -1 where unknown.
        domains: int64 (N,), the source of each face, counted from 0 as the job is given them; None where all are from
            one.
    """

    images: Images
    uris: Sequence[str]
    labels: Indices
    domains: Indices | None = None

    def __len__(self) -> int:
        return len(self.uris)


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Selected predictions.

    Attributes:
        faces: M pictures.
        targets: float32 (M, K); rows sum to 1.
        weights: float32 (M,), how often each is drawn, relative to the others, without any feedback.
    """

    faces: Faces
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]

    def weights_under(self, sampling_weights: NDArray[np.float64], n_draws: int) -> NDArray[np.float64]:
        """How often each row is drawn, (M,), relative to the others, under the feedback's sampling weights.

        Args:
            sampling_weights: (K,).
            n_draws: Rows drawn per epoch.
        """
        labels = self.targets.argmax(axis=1)
        counts = np.bincount(labels, minlength=len(sampling_weights))
        mass = np.bincount(labels, self.weights, minlength=len(sampling_weights))
        wanted = sampling_probabilities(sampling_weights, mass, counts, n_draws)
        tilted: NDArray[np.float64] = self.weights * (wanted / np.where(mass > 0, mass, 1.0))[labels]
        return tilted


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of B labelled faces and of the M pseudo-labelled ones behind them; an unreadable face has weight 0.

    Attributes:
        labels: int64 (B,).
        label_weights: float (B,).
        soft: float (M, K).
        soft_weights: float (M,).
        label_count: Labelled faces of the step over all ranks.
        soft_count: Pseudo-labelled faces of the step over all ranks.
    """

    labels: torch.Tensor
    label_weights: torch.Tensor
    soft: torch.Tensor
    soft_weights: torch.Tensor
    label_count: int
    soft_count: int


@dataclass(frozen=True, eq=False)
class LabeledBatch(Batch):
    """Labelled faces, and pseudo-labelled ones behind them.

    Attributes:
        targets: Their targets.
    """

    targets: Targets
