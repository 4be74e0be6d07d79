"""Engines by torch, and what turns a torch net into a graph for OpenVINO.

On CUDA the torch engine runs bfloat16, channels-last. Importing this imports torch and, with the first net, timm.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ray_fer.data.decode import Pixels
from ray_fer.models.artifact import Artifact, load_model
from ray_fer.models.teacher import TimmTeacher, load_timm

if TYPE_CHECKING:
    import openvino

# The share of red, green and blue in grey, ITU-R BT.601, as in Pillow, OpenCV and OpenVINO.
LUMA = (0.299, 0.587, 0.114)
Logits = npt.NDArray[np.float32]


class Normalised(torch.nn.Module):
    """A model that takes uint8 NHWC pixels: scales to [0, 1], normalises, and calls the backbone.

    Args:
        model: maps float (B, C, S, S) to logits (B, K).
        mean: of each of the C channels, pixels in [0, 1]; of a single channel, the model sees grey.
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
        x = pixels.to(self.scale.dtype)
        if len(self.scale) == 1:
            x = (x * x.new_tensor(LUMA)).sum(dim=3, keepdim=True)
        x = x * self.scale + self.shift
        logits: torch.Tensor = self.model(x.permute(0, 3, 1, 2))
        return logits


class TorchEngine:
    """The net's own logits, by torch on ``device``; bfloat16 autocast when ``precision`` says so."""

    def __init__(self, teacher: Artifact | TimmTeacher, *, device: str = "cpu", precision: str = "float32") -> None:
        self.device = torch.device(device)
        self.autocast = precision == "bfloat16"
        model = normalised(teacher).to(self.device).eval()
        self.model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(batch)
        result: Logits = logits.float().cpu().numpy()
        return result


def normalised(teacher: Artifact | TimmTeacher) -> Normalised:
    """The net of ``teacher`` with its normalisation.

    Raises:
        UserError: when the weights cannot be loaded.
    """
    model = load_timm(teacher) if isinstance(teacher, TimmTeacher) else load_model(teacher)
    return Normalised(model, teacher.mean, teacher.std)


def converted(teacher: Artifact | TimmTeacher, batch_size: int) -> openvino.Model:
    """The same as a graph of the fixed batch shape uint8 (B, S, S, 3)."""
    import openvino

    example = torch.zeros(batch_size, teacher.net_size, teacher.net_size, 3, dtype=torch.uint8)
    model = normalised(teacher).eval()
    with warnings.catch_warnings():  # it traces with what torch calls deprecated
        warnings.simplefilter("ignore")
        return openvino.convert_model(model, example_input=example, input=[tuple(example.shape)])
