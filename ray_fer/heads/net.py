"""The head itself: a standardised embedding through one hidden layer, and the mean of several such heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ray_fer.heads.examples import Floats

CLIP = 5.0
"""Standard deviations beyond which a number is cut: a few outliers would else rule the hidden layer."""
_SMALLEST_SCALE = 1e-3  # of the mean scale: below lies a number that hardly ever differs from zero


def moments(blocks: Iterable[Floats]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, (D,) each, of blocks (B, D), in one pass."""
    count, total, square = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        wide = np.asarray(block, dtype=np.float64)
        count, total, square = count + len(wide), total + wide.sum(axis=0), square + (wide**2).sum(axis=0)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - mean**2, 0.0))


class Head(nn.Module):
    """Embeddings (B, D) to logits (B, K).

    z = W2 relu(W1 clip((x - mean) / scale, -5, 5) + b1) + b2, with dropout behind the hidden layer. The last
    layer starts at zero: the first predictions are even, whatever the embeddings are.

    Args:
        mean: (D,), of each column.
        scale: (D,), standard deviation of each column.
        n_classes: K.
        hidden: width of the hidden layer; 0: none, a linear head.
        dropout: of the hidden layer.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: Floats, scale: Floats, n_classes: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        floor = max(_SMALLEST_SCALE * float(np.mean(scale)), float(np.finfo(np.float32).tiny))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).clamp(min=floor))
        width = len(self.mean)
        layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)] if hidden else []
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(hidden or width, n_classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def standardised(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, D) to float32 (B, D), within ±5."""
        return ((embeddings.float() - self.mean) / self.scale).clamp_(-CLIP, CLIP)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of embeddings (B, D) as they are kept."""
        logits: torch.Tensor = self.last(self.layers(self.standardised(embeddings)))
        return logits


class MeanOfHeads(nn.Module):
    """Several heads, each on some columns of the embeddings side by side; logits are those of their mean probability.

    Args:
        heads: one or more.
        columns: of each head, [first, last).
    """

    def __init__(self, heads: Sequence[nn.Module], columns: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.columns = tuple(columns)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """log(mean_h softmax(z_h)), (B, K)."""
        parts = [
            F.log_softmax(head(embeddings[:, first:last]), 1)
            for head, (first, last) in zip(self.heads, self.columns, strict=True)
        ]
        # Not logsumexp, of which the ONNX exporter forgets the axis.
        mean = torch.stack(parts).exp().mean(dim=0)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
