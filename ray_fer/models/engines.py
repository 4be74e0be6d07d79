"""Inference engines, which map uint8 crops to logits, one batch at a time.

Normalisation is part of the engine, so pixels cross process borders as uint8 and are scaled where the model runs. On
small crops on a CPU, OpenVINO is 1.2 to 2.3 times as fast as torch in eager mode. It uses one stream and one thread,
because labelling runs one actor per core. An ONNX net runs only through OpenVINO. torch is imported only if an engine
needs it: a worker that finds a net's graph on its node's disk starts in two seconds instead of ten.
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
Features = npt.NDArray[np.float32]


class Engine(Protocol):
    """Maps pixels uint8 (B, S, S, 3) to logits float32 (B, K), for any B from 1 to the engine's batch size."""

    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        ...


class Embedder(Engine, Protocol):
    """An engine that gives features beside the logits, from one forward pass, if it was made with ``embed``."""

    def embed(self, pixels: Pixels) -> tuple[Logits, Features]:
        """Logits float32 (B, K) and features float32 (B, D) of ``pixels`` uint8 (B, S, S, 3)."""
        ...


class Adapted:
    """A net that sees the centre of the crops, and whose outputs become calibrated logits over our classes.

    Args:
        net: Maps pixels uint8 (B, side, side, 3) to its own outputs (B, M).
        side: Side in pixels of the input of the net.
        outputs: Maps (B, M) to logits (B, K).
    """

    def __init__(self, net: Engine, side: int, outputs: Outputs) -> None:
        self.net: Any = net
        self.side, self.outputs = side, outputs

    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        return self._logits(self.net(np.ascontiguousarray(centre(pixels, self.side))))

    def embed(self, pixels: Pixels) -> tuple[Logits, Features]:
        """As `Embedder.embed`."""
        raw, features = self.net.embed(np.ascontiguousarray(centre(pixels, self.side)))
        return self._logits(raw), features

    def _logits(self, raw: Logits) -> Logits:
        return raw if self.outputs.trivial else self.outputs(raw)


class Flipped:
    """Test-time flip: the mean of the probabilities of a crop and of its mirror image, as their logarithm."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Any = engine

    def __call__(self, pixels: Pixels) -> Logits:
        """Log-probabilities float32 (B, K) of ``pixels`` uint8 (B, S, S, 3); logits that are not finite are kept."""
        return self._with_mirrored(pixels, self.engine(pixels))

    def embed(self, pixels: Pixels) -> tuple[Logits, Features]:
        """As `Embedder.embed`; the features are of the crop alone, so that a head on them has its place in the net."""
        logits, features = self.engine.embed(pixels)
        return self._with_mirrored(pixels, logits), features

    def _with_mirrored(self, pixels: Pixels, logits: Logits) -> Logits:
        both = logits, self.engine(np.ascontiguousarray(pixels[:, :, ::-1]))
        mean = (softmax(both[0]).astype(np.float64) + softmax(both[1])) / 2
        logits = np.asarray(np.log(np.maximum(mean, np.finfo(np.float32).tiny)), np.float32)
        for side in both:  # the reason is read from the logits that are not finite
            bad = np.isnan(softmax(side)[:, 0])
            logits[bad] = side[bad]
        return logits


def centre(pixels: Pixels, side: int) -> Pixels:
    """The central (B, side, side, 3) of ``pixels`` (B, S, S, 3)."""
    start = (pixels.shape[1] - side) // 2
    return pixels[:, start : start + side, start : start + side]


def make_engine(
    teacher: Teacher,
    name: str,
    *,
    batch_size: int,
    device: str,
    precision: str,
    flip: bool = False,
    embed: bool = False,
) -> Embedder:
    """Makes an engine over ``teacher``.

    Args:
        teacher: A model that `ray_fer.models.teacher.open_teacher` opened.
        name: ``openvino``, ``torch``, or ``auto``, which is OpenVINO on a CPU in float32 and torch otherwise.
        batch_size: The largest number of crops per call.
        device: ``cpu`` or ``cuda``.
        precision: ``float32`` or ``bfloat16``.
        flip: Whether to use test-time flip.
        embed: Whether `Embedder.embed` will be called.

    Raises:
        UserError: If OpenVINO is asked for another device or number format than the CPU and float32, with which the
            predictions would carry another model's id, if the weights cannot be loaded, or if features are asked for
            and cannot be had.
    """
    engine = _net_engine(teacher, name, batch_size, device, precision, embed)
    if teacher.net_size != teacher.image_size or not teacher.outputs.trivial:
        engine = Adapted(engine, teacher.net_size, teacher.outputs)
    return Flipped(engine) if flip else engine


def describe_embedding(teacher: Teacher) -> dict[str, Any]:
    """What embeddings of ``teacher`` are: ``depths`` (or names of layers), ``dimension`` D and ``dtype``, float16.

    The net is loaded and run once on the CPU.

    Raises:
        UserError: If it gives no features.
    """
    depths: Any
    if isinstance(teacher, OnnxTeacher):
        depths, name = list(teacher.sidecar.embedding), "openvino"
    else:
        from ray_fer.models.torch_engine import depths_of

        depths, name = depths_of(teacher), "torch"
    engine = _net_engine(teacher, name, 1, "cpu", "float32", embed=True)
    _, features = engine.embed(np.zeros((1, teacher.net_size, teacher.net_size, 3), np.uint8))
    return {"depths": depths, "dimension": features.shape[1], "dtype": "float16"}


def _net_engine(
    teacher: Teacher, name: str, batch_size: int, device: str, precision: str, embed: bool = False
) -> Embedder:
    fits_openvino = device == "cpu" and precision == "float32"
    if name == "openvino" and not fits_openvino:
        raise UserError(f"engine=openvino: computes in float32 on the CPU, not in {precision} on {device}")
    check_place(teacher, name, device, precision)
    if isinstance(teacher, OnnxTeacher):
        where = (teacher.uri, teacher.sidecar_uri)
        return onnx_engine(teacher.path, teacher.sidecar, *where, batch_size=batch_size, embed=embed)
    if name == "openvino" or (name == "auto" and fits_openvino):
        key = f"{teacher.id}-{teacher.net_size}-{batch_size}{'-embed' if embed else ''}"
        return OpenVINOEngine(kept_graph(key, lambda: _converted(teacher, batch_size, embed)), batch_size=batch_size)
    from ray_fer.models.torch_engine import TorchEngine

    return TorchEngine(teacher, device=device, precision=precision, embed=embed)


def _converted(teacher: Artifact | TimmTeacher, batch_size: int, embed: bool) -> Any:
    from ray_fer.models.torch_engine import converted

    return converted(teacher, batch_size, embed)
