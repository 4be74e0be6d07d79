"""OpenVINO on one CPU core, for every net that runs there: ours, timm's, and ONNX files, which it reads by itself.

No torch in here: the drivers of labelling look at an ONNX net before there is any cluster. What an ONNX net wants done
to its pixels (colours, scale, layout) becomes part of its graph, so that pixels stay uint8 until they are in it.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ray_fer import storage
from ray_fer.errors import UserError, one_line

if TYPE_CHECKING:
    import openvino

    from ray_fer.models.sidecar import OnnxSidecar

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    # Processors with bf16 units would silently round; the number format is part of the model id.
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": False,
}
_GRAPH = "net.xml"
# How far from 1 probabilities may sum up, and still be probabilities.
_SUM_TOLERANCE = 1e-3


class OpenVINOEngine:
    """One stream, one thread, one fixed batch shape; a smaller batch is padded, a larger one cut.

    Args:
        model: takes uint8 (B, S, S, 3).
        batch_size: B.
        output: which of its outputs.
    """

    def __init__(self, model: openvino.Model, *, batch_size: int, output: int = 0) -> None:
        import openvino

        self.request = openvino.Core().compile_model(model, "CPU", SETTINGS).create_infer_request()
        self.batch_size = batch_size
        self.output = output

    def __call__(self, pixels: Pixels) -> Floats:
        """The output float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        if len(pixels) <= self.batch_size:
            return self._infer(pixels)
        starts = range(0, len(pixels), self.batch_size)
        return np.concatenate([self._infer(pixels[start : start + self.batch_size]) for start in starts])

    def _infer(self, pixels: Pixels) -> Floats:
        rows = len(pixels)
        if rows < self.batch_size:
            padded = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
            padded[:rows] = pixels
            pixels = padded
        self.request.infer([pixels], share_inputs=True)
        # A copy, for the tensor is written again; some nets leave axes of one behind their classes.
        return np.array(self.request.get_output_tensor(self.output).data[:rows], np.float32).reshape(rows, -1)


def kept_graph(key: str, make: Callable[[], openvino.Model]) -> openvino.Model:
    """The graph called ``key``, from the node's cache; the first who asks for it makes it.

    Args:
        key: of whatever the graph depends on.
        make: makes it.
    """
    import openvino

    kept = storage.node_cache() / "openvino" / f"{key}-{openvino.__version__}"
    files = [kept / _GRAPH, (kept / _GRAPH).with_suffix(".bin")]
    if not all(file.exists() for file in files):
        shutil.rmtree(kept, ignore_errors=True)  # what a cleaner of temporary files has left
        partial = kept.with_name(f"{kept.name}.{uuid.uuid4().hex[:8]}")
        openvino.save_model(make(), partial / _GRAPH, compress_to_fp16=False)
        try:
            partial.rename(kept)
        except OSError:  # another process of this node was first
            shutil.rmtree(partial)
    return openvino.Core().read_model(kept / _GRAPH)


def read_onnx(path: Path, uri: str) -> openvino.Model:
    """The graph of an ONNX file.

    Raises:
        UserError: when it is none, or holds what OpenVINO cannot run.
    """
    import openvino

    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"{uri}: cannot be read as ONNX ({one_line(error)[-200:]})") from None


def check_graph(model: openvino.Model, sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> None:
    """Compares what a graph says of itself with its sidecar.

    Raises:
        UserError: naming file and key of the first contradiction.
    """
    if len(model.inputs) != 1:
        raise UserError(f"{uri}: has {len(model.inputs)} inputs; a teacher has one, its pictures")
    shape = model.inputs[0].get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4:
        raise UserError(f"{uri}: its input is {shape}, not pictures with batch, channels, height and width")
    axes = dict(zip(sidecar.layout, range(4), strict=True))
    says = f"the input of {uri} is {shape}"
    channels = shape[axes["c"]]
    if not _may_be(channels, sidecar.channels):
        turned = shape[axes["w" if sidecar.layout == "nchw" else "h"]]
        key = "layout" if turned.is_static and _may_be(turned, sidecar.channels) else "colour"
        raise UserError(f"{sidecar_uri}: {key}: {getattr(sidecar, key)}: {says}")
    for axis in (axes["h"], axes["w"]):
        if not _may_be(shape[axis], sidecar.image_size):
            raise UserError(f"{sidecar_uri}: image_size: {sidecar.image_size}: {says}")
    columns = model.outputs[output_index(model, sidecar, uri, sidecar_uri)].get_partial_shape()
    if columns.rank.is_static and (len(columns) < 2 or not _may_be(columns[1], len(sidecar.classes))):
        raise UserError(f"{sidecar_uri}: classes: {len(sidecar.classes)} names: the output of {uri} is {columns}")


def _may_be(axis: openvino.Dimension, length: int) -> bool:
    return bool(axis.is_dynamic or axis.get_length() == length)


def output_index(model: openvino.Model, sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> int:
    """Which output of the graph the sidecar means.

    Raises:
        UserError: when it names none of them, or none of several.
    """
    names = [output.get_names() for output in model.outputs]
    known = ", ".join(sorted(name for group in names for name in group))
    if sidecar.output_name is None:
        if len(names) > 1:
            raise UserError(f"{sidecar_uri}: output_name: required, for {uri} has several outputs ({known})")
        return 0
    for index, group in enumerate(names):
        if sidecar.output_name in group:
            return index
    raise UserError(f"{sidecar_uri}: output_name: {sidecar.output_name!r} is not an output of {uri} ({known})")


def onnx_engine(path: Path, sidecar: OnnxSidecar, uri: str, sidecar_uri: str, *, batch_size: int) -> OpenVINOEngine:
    """An engine over an ONNX file that maps uint8 RGB (B, S, S, 3) to the net's own outputs (B, M).

    Nets whose graph is made for one picture at a time run so.

    Raises:
        UserError: when the graph cannot run, or contradicts its sidecar.
    """
    index = output_index(read_onnx(path, uri), sidecar, uri, sidecar_uri)
    reason: Exception | None = None
    for size in dict.fromkeys((batch_size, 1)):
        model = read_onnx(path, uri)
        try:
            side, channels = sidecar.image_size, sidecar.channels
            shape = [size, channels, side, side] if sidecar.layout == "nchw" else [size, side, side, channels]
            model.reshape(shape)
            out = model.outputs[index].get_partial_shape()
            if out.is_static and tuple(out.to_shape())[:2] != (size, len(sidecar.classes)):
                raise RuntimeError(f"its output is {out} for {size} pictures and {len(sidecar.classes)} classes")
            engine = OpenVINOEngine(with_preprocessing(model, sidecar), batch_size=size, output=index)
            engine(np.zeros((size, side, side, 3), np.uint8))
            return engine
        except RuntimeError as error:
            reason = error
    assert reason is not None
    raise UserError(f"{uri}: cannot run ({one_line(reason)[-200:]})")


def with_preprocessing(model: openvino.Model, sidecar: OnnxSidecar) -> openvino.Model:
    """``model`` behind what makes its input of uint8 RGB (B, S, S, 3)."""
    import openvino
    from openvino.preprocess import ColorFormat, PrePostProcessor

    processor = PrePostProcessor(model)
    tensor = processor.input().tensor()
    tensor.set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC")).set_color_format(ColorFormat.RGB)
    processor.input().model().set_layout(openvino.Layout(sidecar.layout.upper()))
    steps = processor.input().preprocess().convert_element_type(openvino.Type.f32)
    if sidecar.colour != "rgb":
        steps.convert_color(ColorFormat.GRAY if sidecar.colour == "grey" else ColorFormat.BGR)
    white = 255 / sidecar.scale
    steps.mean([value * white for value in sidecar.mean]).scale([value * white for value in sidecar.std])
    return processor.build()


def net_input(sidecar: OnnxSidecar, pixels: Pixels) -> Floats:
    """What the net sees of uint8 RGB ``pixels`` (B, S, S, 3): float32 in its layout, made by the same graph."""
    import openvino
    from openvino import opset13 as ops

    rows, side = len(pixels), pixels.shape[1]
    channels = sidecar.channels
    shape = [rows, channels, side, side] if sidecar.layout == "nchw" else [rows, side, side, channels]
    entry = ops.parameter(shape, openvino.Type.f32)
    through = openvino.Model([ops.result(ops.multiply(entry, ops.constant(np.float32(1))))], [entry])
    return OpenVINOEngine(with_preprocessing(through, sidecar), batch_size=rows)(pixels).reshape(shape)


def check_outputs(engine: OpenVINOEngine, sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> None:
    """Runs the net on a grey and a noisy picture: probabilities are told from logits by what they are.

    Raises:
        UserError: when the outputs are not what the sidecar says, or no numbers.
    """
    side = sidecar.image_size
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    raw = engine(np.stack([np.full_like(noise, 128), noise]))
    if raw.shape != (2, len(sidecar.classes)):
        raise UserError(f"{sidecar_uri}: classes: {len(sidecar.classes)} names: {uri} puts out {raw.shape[1:]} numbers")
    if not np.isfinite(raw).all():
        raise UserError(f"{uri}: puts out what is no number for a grey or a noisy picture")
    sums_up = bool((raw >= 0).all() and (np.abs(raw.sum(axis=1) - 1) < _SUM_TOLERANCE).all())
    if sums_up != (sidecar.output == "probabilities"):
        found = "they are" if sums_up else "they are not"
        raise UserError(f"{sidecar_uri}: output: {sidecar.output}: by what {uri} puts out, {found} probabilities")
