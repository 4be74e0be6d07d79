"""Inference engines: uint8 crops in, logits out, one batch at a time.

Normalisation is part of the engine, so that pixels cross process borders as uint8 and are scaled where the model runs.
OpenVINO is 1.2 to 2.3 times torch eager on small crops on a CPU and uses one stream and one thread here: labelling runs
one actor per core. On CUDA the torch engine runs bfloat16, channels-last.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, load_model

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class Engine(Protocol):
    """Maps pixels uint8 (B, S, S, 3) to logits float32 (B, K), for any B from 1 to the batch size it was made for."""

    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        ...


class Normalised(torch.nn.Module):
    """A model that takes uint8 NHWC pixels: scales to [0, 1], normalises, and calls the backbone.

    Args:
        model: maps float (B, 3, S, S) to logits (B, K).
        mean: per channel, pixels in [0, 1].
        std: per channel.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        x = pixels.to(self.scale.dtype) * self.scale + self.shift
        logits: torch.Tensor = self.model(x.permute(0, 3, 1, 2))
        return logits


class TorchEngine:
    """torch on ``device``; bfloat16 autocast when ``precision`` says so."""

    def __init__(self, artifact: Artifact, *, device: str = "cpu", precision: str = "float32") -> None:
        self.device = torch.device(device)
        self.autocast = precision == "bfloat16"
        model = Normalised(load_model(artifact), artifact.mean, artifact.std).to(self.device).eval()
        self.model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(batch)
        result: Logits = logits.float().cpu().numpy()
        return result


class OpenVINOEngine:
    """OpenVINO on the CPU: one stream, one thread, one fixed batch shape; a smaller batch is padded."""

    def __init__(self, artifact: Artifact, *, batch_size: int) -> None:
        import openvino

        example = torch.zeros(batch_size, artifact.image_size, artifact.image_size, 3, dtype=torch.uint8)
        model = Normalised(load_model(artifact), artifact.mean, artifact.std).eval()
        with warnings.catch_warnings():  # it traces with what torch calls deprecated
            warnings.simplefilter("ignore")
            converted = openvino.convert_model(model, example_input=example, input=[tuple(example.shape)])
        settings = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Processors with bf16 units would silently round; the number format is part of the model id.
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        self.request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
        self.batch_size = batch_size

    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        rows = len(pixels)
        if rows < self.batch_size:
            padded = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
            padded[:rows] = pixels
            pixels = padded
        self.request.infer([pixels], share_inputs=True)
        logits: Logits = np.array(self.request.get_output_tensor(0).data[:rows], np.float32)
        return logits


def make_engine(artifact: Artifact, name: str, *, batch_size: int, device: str, precision: str) -> Engine:
    """The engine ``name`` (``auto``: OpenVINO on a CPU in float32, torch otherwise).

    Raises:
        UserError: for OpenVINO in another number format or place: its predictions would carry another model's id.
    """
    fits_openvino = device == "cpu" and precision == "float32"
    if name == "openvino" and not fits_openvino:
        raise UserError(f"engine=openvino: computes in float32 on the CPU, not in {precision} on {device}")
    if name == "openvino" or (name == "auto" and fits_openvino):
        return OpenVINOEngine(artifact, batch_size=batch_size)
    return TorchEngine(artifact, device=device, precision=precision)
