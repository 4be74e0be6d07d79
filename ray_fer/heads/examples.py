"""What a head learns from: rows of embeddings with soft targets, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.errors import UserError

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]


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
    weights: NDArray[np.float64] = targets.astype(np.float64) @ per_class
    weights /= weights.sum()
    return weights


def draw(weights: Floats, shape: tuple[int, int], generator: np.random.Generator) -> Indices:
    """Indices of the given shape, drawn with replacement in proportion to ``weights`` (N,)."""
    edges = np.cumsum(weights, dtype=np.float64)
    rows: Indices = np.searchsorted(edges, generator.random(shape) * edges[-1], side="right")
    return np.minimum(rows, len(weights) - 1, out=rows)


def spool(blocks: Iterable[Floats], file: Path) -> NDArray[np.float16]:
    """Writes a stream of embeddings to a file and maps it, so that rows can be drawn in any order in bounded memory.

    Args:
        blocks: (B, D) each, of any B; D is the same.
        file: overwritten; 2 bytes a number.

    Returns:
        float16 (N, D), memory-mapped, read-only.

    Raises:
        UserError: if there is no row, if the blocks differ in D, or if a number is not finite as float16.
    """
    rows, width = 0, 0
    with file.open("wb") as out:
        for block in blocks:
            width = width or block.shape[1]
            with np.errstate(over="ignore"):
                halves = np.ascontiguousarray(block, dtype=np.float16)
            if halves.shape[1] != width:
                raise UserError(f"embeddings of {width} and of {halves.shape[1]} numbers: they are of different models")
            check_finite(halves, rows)
            out.write(halves.tobytes())
            rows += len(halves)
    if not rows:
        raise UserError("there are no embeddings")
    return np.memmap(file, np.float16, mode="r", shape=(rows, width))


def check_finite(embeddings: Floats, first_row: int = 0) -> None:
    """Raises `UserError` with the number of the first row that holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise UserError(f"the embedding in row {first_row + bad[0]} is not finite")
