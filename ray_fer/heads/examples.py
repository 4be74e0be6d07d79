"""What a head learns from: rows of embeddings with soft targets, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]
_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows to learn from.

    Attributes:
        embeddings: (N, D), float16 or float32, whose rows are taken by an array of indices: an array or a memory map,
            of which only the drawn rows are read.
        targets: float32 (N, K), distributions.
        draws: float64 (N,), proportional to how often a row is drawn; see `draw_weights`.
    """

    embeddings: Any
    targets: Floats
    draws: Floats

    def __len__(self) -> int:
        """N."""
        return len(self.targets)


def one_hot(labels: Indices, n_classes: int) -> NDArray[np.float32]:
    """Distributions float32 (N, K) of labels (N,)."""
    return np.eye(n_classes, dtype=np.float32)[labels]


def draw_weights(targets: Floats, power: float) -> NDArray[np.float64]:
    """How often each row is drawn, (N,), summing to 1, so that a class is drawn as the power of its mass.

    Row i weighs sum_k t_ik m_k^(power - 1) with the masses m_k = sum_i t_ik. With one-hot targets class k has exactly
    the share m_k^power / sum_j m_j^power of the draws: power 1 draws rows evenly, 0 classes evenly, and 1/2 is the
    square-root sampling of arXiv:1805.00932. A soft target counts for each class by its share, so that a face that is
    probably of a rare class is drawn more often, and none is excluded.

    Args:
        targets: (N, K), distributions.
        power: between 0 and 1.
    """
    mass = targets.sum(axis=0, dtype=np.float64)
    per_class = np.where(mass > 0, np.maximum(mass, 1e-12) ** (power - 1), 0.0)
    weights = targets @ per_class
    normalised: NDArray[np.float64] = (weights / weights.sum()).astype(np.float64)
    return normalised


def draw(weights: Floats, shape: tuple[int, int], generator: np.random.Generator) -> Indices:
    """Indices of the given shape, drawn with replacement in proportion to ``weights`` (N,)."""
    edges = np.cumsum(weights, dtype=np.float64)
    rows = np.searchsorted(edges, generator.random(shape) * edges[-1], side="right")
    inside: Indices = np.minimum(rows, len(weights) - 1).astype(np.int64)
    return inside


def blocks_of(embeddings: Any) -> Iterator[Any]:
    """Embeddings (N, D) in blocks of rows, for what a memory map need not hold at once."""
    return (embeddings[start : start + _BLOCK] for start in range(0, len(embeddings), _BLOCK))
