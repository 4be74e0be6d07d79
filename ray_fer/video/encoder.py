"""The temporal encoder: a small Transformer over the features of neighbouring frames, and the folder it is kept in.

A reconstruction of the temporal encoder of arXiv:2403.11942: what could be read of it names a Transformer over the
features of neighbouring frames, a per-frame head, overlapping windows and post-processing, but neither equations nor
sizes. Ours, and not the paper's: the frame classifier's log-probabilities are a second input and a residual path, and
the head starts at zero, so that an untrained encoder *is* the frame classifier and training adds what neighbours know.

Shapes: B windows of T frames, D features, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from typing_extensions import TypedDict

from ray_fer import storage
from ray_fer.config import Count
from ray_fer.documents import parse_document
from ray_fer.errors import UserError, one_line
from ray_fer.models.artifact import METRICS, PROVENANCE, Artifact, open_artifact
from ray_fer.models.weights import check_safetensors
from ray_fer.video.windows import average_windows, frame_grid, gather, window_starts

WEIGHTS = "temporal.safetensors"
CONFIG = "temporal.json"
BACKBONE = "backbone"

_MIN_PROBABILITY = 1e-6
_WINDOWS_PER_CALL = 64

Floats = NDArray[np.float32]


class Config(TypedDict):
    """``temporal.json``."""

    classes: list[str]
    encoder: dict[str, Any]
    stride: Count
    frame_step: Count
    smoothing: Annotated[int, Field(ge=0)]
    frame_smoothing: Annotated[int, Field(ge=0)]
    backbone: str


class TemporalEncoder(nn.Module):
    """Logits per frame from the features and probabilities of the frames of a window.

    Args:
        dim: D.
        n_classes: K.
        window: the largest T.
        width: of the encoder.
        layers: pre-norm Transformer layers.
        heads: attention heads; divide ``width``.
        dropout: in the layers and after the embedding.
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
        """Takes mean and spread of the inputs from training frames, (M, D) and (M, K); saved with the weights."""
        inputs = np.concatenate([features, np.log(np.maximum(probs, _MIN_PROBABILITY))], axis=1)
        deviation = inputs.std(axis=0, dtype=np.float64)
        # A feature that never varies (a dead ReLU) says nothing: it stays as it is instead of being blown up.
        scale = 1 / np.where(deviation > 1e-6, deviation, 1)
        self.mean.copy_(torch.from_numpy(inputs.mean(axis=0, dtype=np.float64)))
        self.scale.copy_(torch.from_numpy(scale))

    def forward(self, features: torch.Tensor, probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, K); where ``mask`` is false they mean nothing.

        Args:
            features: (B, T, D).
            probs: of the frame classifier, (B, T, K).
            mask: bool (B, T), false for absent frames, which nothing of the output depends on.
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
    """Pre-norm attention and feed-forward (4 x width), each added to its input."""

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
        """(B, T, width) -> (B, T, width); ``visible`` bool (B, 1, T, T): which key a query may see."""
        batch, length, width = x.shape
        qkv = self.to_qkv(self.norm_attention(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.dropout(self.from_heads(attended.transpose(1, 2).reshape(batch, length, width)))
        fed: torch.Tensor = x + self.dropout(self.feedforward(self.norm_feedforward(x)))
        return fed


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Positions of Vaswani et al., 2017 (arXiv:1706.03762, section 3.5), float32 (length, width)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


@torch.inference_mode()
def clip_logits(
    encoder: TemporalEncoder, frames: NDArray[np.int64], features: Floats, probs: Floats, stride: int
) -> Floats:
    """Logits of the M frames of one clip, float32 (M, K): windows on the clip's grid, averaged where they overlap.

    Args:
        encoder: in evaluation mode, on any device.
        frames: frame numbers, int64 (M,), strictly increasing, M >= 1.
        features: (M, D).
        probs: of the frame classifier, (M, K).
        stride: steps between the starts of windows, at most the encoder's window.
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


@dataclass(frozen=True)
class TemporalArtifact:
    """A temporal model on disk, opened but not loaded: encoder, backbone, and how to run them.

    Attributes:
        uri: where it was opened.
        folder: a local copy.
        id: content hash (16 hex digits) of the encoder, its settings and the backbone.
        config: ``temporal.json``.
        backbone: the artifact whose features the encoder was trained on.
    """

    uri: str
    folder: Path
    id: str
    config: dict[str, Any]
    backbone: Artifact

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.config["classes"])

    @property
    def stride(self) -> int:
        """Steps between the starts of windows at inference."""
        return int(self.config["stride"])

    @property
    def frame_step(self) -> int:
        """Frames of a video per step of the encoder."""
        return int(self.config["frame_step"])

    @property
    def smoothing(self) -> int:
        """Half-width, in steps, of the box filter over the encoder's probabilities."""
        return int(self.config["smoothing"])

    @property
    def frame_smoothing(self) -> int:
        """Half-width, in steps, of the box filter over the frame classifier's probabilities."""
        return int(self.config["frame_smoothing"])


def save_temporal(
    uri: str,
    encoder: TemporalEncoder,
    backbone: Artifact,
    *,
    stride: int,
    frame_step: int,
    smoothing: int,
    frame_smoothing: int,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> TemporalArtifact:
    """Writes the temporal model to ``uri`` with a copy of its backbone, so that predicting needs nothing else.

    Args:
        uri: the folder, local or ``s3://``.
        encoder: what was trained.
        backbone: what its features come from.
        stride: see `TemporalArtifact.stride`, and so on.
        frame_step: see there.
        smoothing: see there.
        frame_smoothing: see there.
        metrics: what becomes ``metrics.json``.
        provenance: what becomes ``provenance.json``.
    """
    config = {
        "classes": list(backbone.classes),
        "encoder": encoder.sizes,
        "stride": stride,
        "frame_step": frame_step,
        "smoothing": smoothing,
        "frame_smoothing": frame_smoothing,
        "backbone": backbone.id,
        "feature_normalisation": f"{WEIGHTS}: mean, scale",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / BACKBONE).mkdir()
        for path in backbone.folder.iterdir():
            if path.is_file():  # not the checkpoints of its training
                shutil.copyfile(path, folder / BACKBONE / path.name)
        save_file({key: value.cpu().contiguous() for key, value in encoder.state_dict().items()}, folder / WEIGHTS)
        (folder / METRICS).write_text(storage.to_json(metrics, indent=2))
        (folder / PROVENANCE).write_text(storage.to_json(provenance, indent=2))
        (folder / CONFIG).write_text(storage.to_json(config, indent=2))
        storage.upload_folder(folder, uri, last=CONFIG)
    return open_temporal(uri)


def is_temporal(uri: str) -> bool:
    """Whether a temporal model is at ``uri``."""
    return storage.exists(storage.join(uri, CONFIG))


def open_temporal(uri: str) -> TemporalArtifact:
    """Opens the temporal model at ``uri`` (downloaded once per node if remote) without loading its weights.

    Raises:
        UserError: when there is none, or when its backbone is another than it was trained with.
    """
    uri = storage.normalise(uri)
    for name in (CONFIG, WEIGHTS):
        if not storage.exists(storage.join(uri, name)):
            raise UserError(f"{uri}: no temporal model there ({name} is missing)")
    folder = storage.local_copy(uri)
    config = dict(parse_document((folder / CONFIG).read_bytes(), storage.join(uri, CONFIG), Config))
    check_safetensors(f"{uri}/{WEIGHTS}", folder / WEIGHTS)
    backbone = open_artifact(str(folder / BACKBONE))
    if backbone.id != config["backbone"]:
        raise UserError(f"{uri}: its backbone is {backbone.id}, but it was trained with {config['backbone']}")
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update((folder / WEIGHTS).read_bytes())
    return TemporalArtifact(uri, folder, digest.hexdigest()[:16], config, backbone)


def load_encoder(artifact: TemporalArtifact) -> TemporalEncoder:
    """The encoder with its weights, on the CPU, in evaluation mode.

    Raises:
        UserError: when the weights are not those of the encoder that ``temporal.json`` describes.
    """
    try:
        encoder = TemporalEncoder(**artifact.config["encoder"])
        encoder.load_state_dict(load_file(artifact.folder / WEIGHTS))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        what = f"its weights do not fit the encoder of its {CONFIG}: {one_line(error)}"
        raise UserError(f"{artifact.uri}: {what}") from None
    return encoder.eval()
