"""The temporal encoder: a small Transformer over the features of neighbouring frames.

It is a reconstruction of the temporal encoder of arXiv:2403.11942. What could be read of it names a Transformer over
the features of neighbouring frames, a per-frame head, overlapping windows and post-processing, but neither equations
nor sizes. Ours, and not the paper's: the frame classifier's log-probabilities are a second input and a residual path,
and the head starts at zero. So an untrained encoder *is* the frame classifier, and training adds what neighbours know.

Shapes: B windows of T frames, D features, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ray_fer.video.windows import average_windows, frame_grid, gather, window_starts

_MIN_PROBABILITY = 1e-6
_WINDOWS_PER_CALL = 64

Floats = NDArray[np.float32]


class TemporalEncoder(nn.Module):
    """Computes logits per frame from the features and probabilities of the frames of a window.

    Args:
        dim: D.
        n_classes: K.
        window: The largest T.
        width: Width of the encoder.
        layers: Number of pre-norm Transformer layers.
        heads: Number of attention heads; divides ``width``.
        dropout: Dropout in the layers and after the embedding.
    """

    def __init__(
        self, dim: int, n_classes: int, *, window: int, width: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.sizes = {
            "dim": dim, "n_classes": n_classes, "window": window, "width": width, "layers": layers, "heads": heads,
            "dropout": dropout,
        }  # fmt: skip
        self.window = window
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.positions: torch.Tensor
        self.register_buffer("mean", torch.zeros(dim + n_classes))
        self.register_buffer("scale", torch.ones(dim + n_classes))
        self.register_buffer("positions", sinusoids(window, width), persistent=False)
        self.embed = nn.Linear(dim + n_classes, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def normalise_inputs(self, features: Floats, probs: Floats) -> None:
        """Set mean and scale of the inputs from training frames, (M, D) and (M, K); they are saved with the weights."""
        inputs = np.concatenate([features, np.log(np.maximum(probs, _MIN_PROBABILITY))], axis=1)
        deviation = inputs.std(axis=0, dtype=np.float64)
        # A feature that never varies (a dead ReLU) keeps its scale instead of being blown up.
        scale = 1 / np.where(deviation > 1e-6, deviation, 1)
        self.mean.copy_(torch.from_numpy(inputs.mean(axis=0, dtype=np.float64)))
        self.scale.copy_(torch.from_numpy(scale))

    def forward(self, features: torch.Tensor, probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, T, K), which mean nothing where ``mask`` is false.

        Args:
            features: Features, (B, T, D).
            probs: Probabilities of the frame classifier, (B, T, K).
            mask: bool (B, T), false for absent frames, on which nothing else in the output depends.
        """
        log_probs = probs.clamp_min(_MIN_PROBABILITY).log()
        x = (torch.cat([features, log_probs], dim=-1) - self.mean) * self.scale
        x = torch.where(mask[..., None], x, 0)
        x = self.dropout(self.embed(x) + self.positions[: x.shape[1]])
        # Absent frames see themselves: a row without any key would be NaN.
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        visible = (mask[:, None, :] | itself)[:, None]
        for layer in self.layers:
            x = layer(x, visible)
        logits: torch.Tensor = log_probs + self.head(self.norm(x))
        return logits


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward (4 x width), each added to its input.

    `torch.nn.TransformerEncoderLayer` is not the same: it also drops attention weights, starts from other weights, and
    takes a path at inference whose sums have another order.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.from_heads = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Map (B, T, width) to (B, T, width); ``visible``, bool (B, 1, T, T), says which key a query may see."""
        batch, length, width = x.shape
        qkv = self.to_qkv(self.norm_attention(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.dropout(self.from_heads(attended.transpose(1, 2).reshape(batch, length, width)))
        fed: torch.Tensor = x + self.dropout(self.feedforward(self.norm_feedforward(x)))
        return fed


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Return the positions of Vaswani et al., 2017 (arXiv:1706.03762, section 3.5), float32 (length, width)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


@torch.inference_mode()
def clip_logits(
    encoder: TemporalEncoder, frames: NDArray[np.int64], features: Floats, probs: Floats, stride: int
) -> Floats:
    """Compute the logits of the M frames of one clip, averaged over the windows on its grid that overlap.

    Args:
        encoder: An encoder in evaluation mode, on any device.
        frames: Frame numbers, int64 (M,), strictly increasing, M >= 1.
        features: Features, (M, D).
        probs: Probabilities of the frame classifier, (M, K).
        stride: Steps between the starts of windows, at most the encoder's window.

    Returns:
        float32 (M, K).
    """
    grid = frame_grid(frames)
    starts = window_starts(grid.length, encoder.window, stride)
    inputs = (grid.spread(features), grid.spread(probs), grid.present)
    device = encoder.mean.device
    outputs = []
    for first in range(0, len(starts), _WINDOWS_PER_CALL):
        some = starts[first : first + _WINDOWS_PER_CALL]
        windows = (torch.from_numpy(gather(values, some, encoder.window)).to(device) for values in inputs)
        outputs.append(encoder(*windows).float().cpu().numpy())
    return average_windows(np.concatenate(outputs), starts, grid.length)[grid.positions]
