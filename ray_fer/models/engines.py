"""Inference engines: uint8 crops in, logits out, one batch at a time.

Normalisation is part of the engine, so that pixels cross process borders as uint8 and are scaled where the model runs.
OpenVINO is 1.2 to 2.3 times torch eager on small crops on a CPU and uses one stream and one thread here: labelling runs
one actor per core. On CUDA the torch engine runs bfloat16, channels-last. An ONNX net runs through OpenVINO alone.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, load_model
from ray_fer.models.openvino_engine import OpenVINOEngine, net_input, onnx_engine
from ray_fer.models.outputs import Outputs
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import OnnxTeacher, Teacher, TimmTeacher, check_place, load_timm

if TYPE_CHECKING:
    import openvino

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
    """The net's own logits, by torch on ``device``; bfloat16 autocast when ``precision`` says so."""

    def __init__(self, teacher: Artifact | TimmTeacher, *, device: str = "cpu", precision: str = "float32") -> None:
        self.device = torch.device(device)
        self.autocast = precision == "bfloat16"
        model = _normalised(teacher).to(self.device).eval()
        self.model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(batch)
        result: Logits = logits.float().cpu().numpy()
        return result


class Centred:
    """An engine over the centre of the crops, for nets whose training saw no borders."""

    def __init__(self, engine: Engine, side: int) -> None:
        self.engine = engine
        self.side = side

    def __call__(self, pixels: Pixels) -> Logits:
        """What the engine makes of the central (B, side, side, 3) of ``pixels``."""
        return self.engine(np.ascontiguousarray(centre(pixels, self.side)))


class Mapped:
    """An engine whose outputs are calibrated, mapped or merged on their way out."""

    def __init__(self, engine: Engine, outputs: Outputs) -> None:
        self.engine = engine
        self.outputs = outputs

    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) over our classes."""
        return self.outputs(self.engine(pixels))


class Flipped:
    """Test-time flip: the mean of the probabilities of a crop and of its mirror image, as their logarithm."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, pixels: Pixels) -> Logits:
        """Log-probabilities float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
        mean = (softmax(self.engine(pixels)).astype(np.float64) + softmax(self.engine(mirrored))) / 2
        return np.asarray(np.log(np.maximum(mean, np.finfo(np.float32).tiny)), np.float32)


def centre(pixels: Pixels, side: int) -> Pixels:
    """The central (B, side, side, 3) of ``pixels`` (B, S, S, 3)."""
    start = (pixels.shape[1] - side) // 2
    return pixels[:, start : start + side, start : start + side]


def make_engine(
    teacher: Teacher, name: str, *, batch_size: int, device: str, precision: str, flip: bool = False
) -> Engine:
    """The engine ``name`` (``auto``: OpenVINO on a CPU in float32, torch otherwise) over ``teacher``.

    Args:
        teacher: from `ray_fer.models.teacher.open_teacher`.
        name: ``auto``, ``openvino`` or ``torch``.
        batch_size: crops per call.
        device: ``cpu`` or ``cuda``.
        precision: ``float32`` or ``bfloat16``.
        flip: test-time flip.

    Raises:
        UserError: for OpenVINO in another number format or place: its predictions would carry another model's id; and
            when the weights cannot be loaded.
    """
    engine = _net_engine(teacher, name, batch_size, device, precision)
    if teacher.net_size != teacher.image_size:
        engine = Centred(engine, teacher.net_size)
    if not teacher.outputs.trivial:
        engine = Mapped(engine, teacher.outputs)
    return Flipped(engine) if flip else engine


def seen_by_net(teacher: Teacher, pixels: Pixels) -> Pixels:
    """What enters the net of the crops ``pixels`` uint8 (B, S, S, 3), taken from its input and de-normalised.

    Returns:
        uint8 RGB (B, S', S', 3); of a net that sees grey the three channels are equal.
    """
    pixels = np.ascontiguousarray(centre(pixels, teacher.net_size))
    if isinstance(teacher, OnnxTeacher):
        said = teacher.sidecar
        inputs = net_input(said, pixels)
        inputs = inputs.transpose(0, 2, 3, 1) if said.layout == "nchw" else inputs
        levels = (inputs * np.array(said.std) + np.array(said.mean)) * (255 / said.scale)
        levels = levels[..., ::-1] if said.colour == "bgr" else levels
    else:
        assert isinstance(teacher, Artifact | TimmTeacher)
        net = Normalised(torch.nn.Identity(), teacher.mean, teacher.std)
        inputs = net(torch.from_numpy(pixels)).numpy().transpose(0, 2, 3, 1)
        levels = (inputs * np.array(teacher.std) + np.array(teacher.mean)) * 255
    rounded = np.rint(levels).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rounded, (*rounded.shape[:3], 3)))


def _net_engine(teacher: Teacher, name: str, batch_size: int, device: str, precision: str) -> Engine:
    fits_openvino = device == "cpu" and precision == "float32"
    if name == "openvino" and not fits_openvino:
        raise UserError(f"engine=openvino: computes in float32 on the CPU, not in {precision} on {device}")
    check_place(teacher, name, device, precision)
    if isinstance(teacher, OnnxTeacher):
        where = (teacher.uri, teacher.sidecar_uri)
        return onnx_engine(teacher.path, teacher.sidecar, *where, batch_size=batch_size)
    assert isinstance(teacher, Artifact | TimmTeacher)
    if name == "openvino" or (name == "auto" and fits_openvino):
        return OpenVINOEngine(_converted(teacher, batch_size), batch_size=batch_size)
    return TorchEngine(teacher, device=device, precision=precision)


def _normalised(teacher: Artifact | TimmTeacher) -> Normalised:
    model = load_timm(teacher) if isinstance(teacher, TimmTeacher) else load_model(teacher)
    return Normalised(model, teacher.mean, teacher.std)


def _converted(teacher: Artifact | TimmTeacher, batch_size: int) -> openvino.Model:
    import openvino

    example = torch.zeros(batch_size, teacher.net_size, teacher.net_size, 3, dtype=torch.uint8)
    model = _normalised(teacher).eval()
    with warnings.catch_warnings():  # it traces with what torch calls deprecated
        warnings.simplefilter("ignore")
        return openvino.convert_model(model, example_input=example, input=[tuple(example.shape)])
