"""ONNX files through OpenVINO: a check of the graph against its sidecar, and an engine over it.

The module does not import torch, because the drivers of labelling check an ONNX net before there is a cluster. The
preprocessing of the pixels (colours, scale, layout) becomes part of the graph, whose input is uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ray_fer.data.decode import Pixels
from ray_fer.errors import UserError, one_line
from ray_fer.models.openvino_engine import OpenVINOEngine, from_pixels
from ray_fer.models.probe import probe_pictures

if TYPE_CHECKING:
    import openvino

    from ray_fer.models.sidecar import OnnxSidecar

Floats = npt.NDArray[np.float32]

# The integer types that an input may have, with their lowest and highest values.
_INTEGERS = {"u8": (0, 255), "i8": (-128, 127), "u16": (0, 65535), "i16": (-32768, 32767)}
_INTEGERS |= dict.fromkeys(("i32", "i64", "u32", "u64"), (-(2**31), 2**31 - 1))
_FLOATS = ("f16", "bf16", "f32", "f64")
# The difference between the outputs of one picture in two batches that is tolerated, as a share of the largest output.
_SAME = 1e-3
_LAYERS_SHOWN = 8


def read_onnx(path: Path, uri: str) -> openvino.Model:
    """The graph of an ONNX file.

    Raises:
        UserError: If the file is not ONNX, or OpenVINO does not support an operation in it.
    """
    import openvino

    try:
        return openvino.Core().read_model(path)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{uri}: cannot be read as ONNX ({one_line(error)[-200:]})") from None


def constants(model: openvino.Model) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The names and values of the weights of a graph, as `check_finite` takes them."""
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            yield node.get_friendly_name(), node.data


def check_graph(model: openvino.Model, sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> None:
    """Compares the inputs and outputs of a graph with its sidecar.

    Raises:
        UserError: If they contradict each other; the message names file and key of the first contradiction.
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
    _check_type(model.inputs[0].get_element_type().get_type_name(), sidecar, uri, sidecar_uri)
    for axis in (axes["h"], axes["w"]):
        if not _may_be(shape[axis], sidecar.image_size):
            raise UserError(f"{sidecar_uri}: image_size: {sidecar.image_size}: {says}")
    columns = model.outputs[output_index(model, sidecar, uri, sidecar_uri)].get_partial_shape()
    if columns.rank.is_static and (len(columns) < 2 or not _may_be(columns[1], len(sidecar.classes))):
        raise UserError(f"{sidecar_uri}: classes: {len(sidecar.classes)} names: the output of {uri} is {columns}")


def _check_type(kind: str, sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> None:
    if kind in _FLOATS:
        return
    if kind not in _INTEGERS:
        raise UserError(f"{uri}: its input is of {kind}, not of numbers that pixels can be")
    says = f"the input of {uri} is of integers ({kind})"
    if sidecar.scale != 255:
        raise UserError(f"{sidecar_uri}: scale: {sidecar.scale}: {says}, so white is 255")
    if set(sidecar.std) != {1.0}:
        raise UserError(f"{sidecar_uri}: std: {sidecar.std[0]:g}: {says}, so nothing can be divided: say std: 1")
    low, high = _INTEGERS[kind]
    for mean in sidecar.mean:
        if not (mean.is_integer() and low <= -mean and 255 - mean <= high):
            raise UserError(f"{sidecar_uri}: mean: {mean:g}: {says} from {low} to {high}")


def _may_be(axis: openvino.Dimension, length: int) -> bool:
    return bool(axis.is_dynamic or axis.get_length() == length)


def output_index(model: openvino.Model, sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> int:
    """The index of the graph's output that the sidecar names.

    Raises:
        UserError: If there is no output of that name, or the sidecar names none of several outputs.
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


def add_features(model: openvino.Model, sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> int:
    """Adds an output float32 (B, D) to a graph: the layers that the sidecar names as ``embedding``, side by side.

    Of a map (by the layout of the sidecar) or of tokens (B, T, D) the mean over all places is taken.

    Returns:
        The index of the output.

    Raises:
        UserError: If the sidecar names no layer, or the graph has none of that name with such a shape.
    """
    import openvino
    from openvino import opset13 as ops

    axes: dict[int, list[int]] = {2: [], 3: [1], 4: [2, 3] if sidecar.layout == "nchw" else [1, 2]}
    found: dict[str, openvino.Output] = {}
    inner: list[str] = []
    for node in model.get_ordered_ops():
        for output in node.outputs() if node.get_type_name() not in ("Constant", "Parameter", "Result") else ():
            rank = output.get_partial_shape().rank
            if rank.is_static and rank.get_length() in axes:
                names = [*sorted(output.get_names()), node.get_friendly_name()]
                found |= dict.fromkeys(names, output)
                inner = [*inner[1 - _LAYERS_SHOWN :], names[0]]
    if unknown := [name for name in sidecar.embedding or [""] if name not in found]:
        given = f"{unknown[0]!r} is no layer of {uri}" if sidecar.embedding else "required for embed=true"
        outputs = ", ".join(sorted(name for each in model.outputs for name in each.get_names()))
        layers = f"its outputs are {outputs}, its last layers {', '.join(inner)}"
        raise UserError(f"{sidecar_uri}: embedding: {given}; {layers}")
    pooled = []
    for output in (found[name] for name in sidecar.embedding):
        mean = ops.constant(np.array(axes[len(output.get_partial_shape())], np.int64))
        wide = ops.convert(output, openvino.Type.f32)
        pooled.append(ops.reduce_mean(wide, mean, False) if mean.data.size else wide)
    model.add_results([ops.result(ops.concat(pooled, 1))])
    return len(model.outputs) - 1


def onnx_engine(
    path: Path, sidecar: OnnxSidecar, uri: str, sidecar_uri: str, *, batch_size: int, embed: bool = False
) -> OpenVINOEngine:
    """An engine over an ONNX file that maps uint8 RGB (B, S, S, 3) to the net's own outputs (B, M).

    The engine runs ``batch_size`` pictures at a time if it can. It runs the graph's own batch size if that is fixed,
    and one picture if the output of a picture depends on the others.

    Args:
        path: The local file.
        sidecar: The description of the net.
        uri: The URI of the file, for messages.
        sidecar_uri: The URI of the sidecar, for messages.
        batch_size: The largest number of pictures per inference.
        embed: Whether the engine gives features too; see `add_features`.

    Raises:
        UserError: If the graph cannot run, or contradicts its sidecar.
    """
    first = read_onnx(path, uri)
    index = output_index(first, sidecar, uri, sidecar_uri)
    axis = first.inputs[0].get_partial_shape()[0]
    reason: Exception | None = None
    for size in dict.fromkeys((batch_size, *([axis.get_length()] if axis.is_static else []), 1)):
        model = read_onnx(path, uri)
        try:
            side, channels = sidecar.image_size, sidecar.channels
            shape = [size, channels, side, side] if sidecar.layout == "nchw" else [size, side, side, channels]
            model.reshape(shape)
            out = model.outputs[index].get_partial_shape()
            if out.is_static and tuple(out.to_shape())[:2] != (size, len(sidecar.classes)):
                raise RuntimeError(f"its output is {out} for {size} pictures and {len(sidecar.classes)} classes")
            features = add_features(model, sidecar, uri, sidecar_uri) if embed else 0
            graph = with_preprocessing(model, sidecar, index)
            if embed and tuple(model.outputs[features].get_partial_shape().to_shape())[:1] != (size,):
                raise RuntimeError(
                    f"its embedding is {model.outputs[features].get_partial_shape()} for {size} pictures"
                )
            engine = OpenVINOEngine(graph, batch_size=size, output=index, features=features)
            if _sees_each_alone(engine, side):
                return engine
        except (RuntimeError, ValueError) as error:
            reason = error
    assert reason is not None
    raise UserError(f"{uri}: cannot run ({one_line(reason)[-200:]})")


def _sees_each_alone(engine: OpenVINOEngine, side: int) -> bool:
    """Whether the output of a picture is independent of its batch, which is not so for a net in training mode."""
    pictures = probe_pictures(side)
    together, apart = engine(pictures)[1::2], engine(pictures[1::2])
    tolerance = _SAME * np.abs(together[np.isfinite(together)]).max(initial=0)
    return engine.batch_size == 1 or np.allclose(together, apart, rtol=0, atol=tolerance, equal_nan=True)


def with_preprocessing(model: openvino.Model, sidecar: OnnxSidecar, output: int = 0) -> openvino.Model:
    """``model`` preceded by its preprocessing: the input becomes uint8 RGB (B, S, S, 3), and ``output`` float32."""
    import openvino
    from openvino import opset13 as ops
    from openvino.preprocess import ColorFormat

    integral = model.inputs[0].get_element_type().is_integral()
    processor, steps = from_pixels(model, sidecar.layout.upper())
    if sidecar.colour != "rgb":
        steps.convert_color(ColorFormat.GRAY if sidecar.colour == "grey" else ColorFormat.BGR)
    white = 255 / sidecar.scale
    steps.mean([value * white for value in sidecar.mean]).scale([value * white for value in sidecar.std])
    if integral:
        steps.custom(lambda node: ops.round(node, "half_to_even").output(0))
    processor.output(output).tensor().set_element_type(openvino.Type.f32)
    return processor.build()


def net_input(sidecar: OnnxSidecar, pixels: Pixels) -> Floats:
    """The input of the net for uint8 RGB ``pixels`` (B, S, S, 3): float32 in the net's layout, by the same graph."""
    import openvino
    from openvino import opset13 as ops

    rows, side = len(pixels), pixels.shape[1]
    channels = sidecar.channels
    shape = [rows, channels, side, side] if sidecar.layout == "nchw" else [rows, side, side, channels]
    entry = ops.parameter(shape, openvino.Type.f32)
    through = openvino.Model([ops.result(ops.multiply(entry, ops.constant(np.float32(1))))], [entry])
    return OpenVINOEngine(with_preprocessing(through, sidecar), batch_size=rows)(pixels).reshape(shape)
