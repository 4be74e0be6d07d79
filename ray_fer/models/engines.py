"""Inference engines: uint8 crops in, logits out, one batch at a time.

Normalisation is part of the engine, so that pixels cross process borders as uint8 and are scaled where the model runs.
OpenVINO is 1.2 to 2.3 times torch eager on small crops on a CPU and uses one stream and one thread here: labelling runs
one actor per core. An ONNX net runs through OpenVINO alone. torch is imported by need only: a worker that finds a net's
graph on its node's disk labels after two seconds instead of ten.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ray_fer.data.decode import Pixels
from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact
from ray_fer.models.onnx_net import onnx_engine
from ray_fer.models.openvino_engine import OpenVINOEngine, kept_graph
from ray_fer.models.outputs import Outputs
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import OnnxTeacher, Teacher, TimmTeacher, check_place

Logits = npt.NDArray[np.float32]


class Engine(Protocol):
    """Maps pixels uint8 (B, S, S, 3) to logits float32 (B, K), for any B from 1 to the batch size it was made for."""

    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        ...


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
        """Log-probabilities float32 (B, K) of ``pixels`` uint8 (B, S, S, 3); logits that have none are as they are."""
        both = self.engine(pixels), self.engine(np.ascontiguousarray(pixels[:, :, ::-1]))
        mean = (softmax(both[0]).astype(np.float64) + softmax(both[1])) / 2
        logits = np.asarray(np.log(np.maximum(mean, np.finfo(np.float32).tiny)), np.float32)
        for side in both:  # what has no probabilities keeps its reason
            bad = np.isnan(softmax(side)[:, 0])
            logits[bad] = side[bad]
        return logits


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
        graph = kept_graph(f"{teacher.id}-{teacher.net_size}-{batch_size}", lambda: _converted(teacher, batch_size))
        return OpenVINOEngine(graph, batch_size=batch_size)
    from ray_fer.models.torch_engine import TorchEngine

    return TorchEngine(teacher, device=device, precision=precision)


def _converted(teacher: Artifact | TimmTeacher, batch_size: int) -> Any:
    from ray_fer.models.torch_engine import converted

    return converted(teacher, batch_size)
