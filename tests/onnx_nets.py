"""Small ONNX nets in the styles that people pass round, and their sidecars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

FERPLUS_CLASSES = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"]
FERPLUS_SIDECAR: dict[str, Any] = {
    "classes": FERPLUS_CLASSES,
    "map": {"contempt": None},
    "image_size": 64,
    "mean": 0,
    "std": 1,
    "scale": 255,
    "colour": "grey",
    "layout": "nchw",
    "output": "logits",
}


def write_net(
    path: Path,
    shape: list[Any],
    classes: int,
    *,
    probabilities: bool = False,
    flat: int | None = None,
    seed: int = 0,
    gain: float = 1.0,
    old: bool = False,
    kind: int = TensorProto.FLOAT,
    by_batch: bool = False,
) -> np.ndarray:
    """A net of one linear layer over the flattened input; its weights float32 (pixels, classes).

    Args:
        path: of the file.
        shape: of the input, names for free axes.
        classes: of the output.
        probabilities: whether it ends in a softmax.
        flat: the first axis of the flattening Reshape: 1 as in FER+'s graph is for one picture; None flattens.
        seed: of the weights.
        gain: of the weights.
        old: in the format of FER+'s days, where weights are inputs too.
        kind: of the input's numbers.
        by_batch: whether the mean of the batch is subtracted, as a net in training mode does.
    """
    pixels = int(np.prod(shape[1:]))
    weights = np.random.default_rng(seed).normal(0, gain / np.sqrt(pixels), (pixels, classes)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["floats"], ["flat"])]
    constants = [numpy_helper.from_array(weights, "weights")]
    if flat is not None:
        nodes = [helper.make_node("Reshape", ["floats", "size"], ["flat"])]
        constants.append(numpy_helper.from_array(np.array([flat, pixels], np.int64), "size"))
    nodes.insert(0, helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT))
    if by_batch:
        nodes[-1].output[0] = "whole"
        nodes.append(helper.make_node("ReduceMean", ["whole"], ["mean"], axes=[0], keepdims=1))
        nodes.append(helper.make_node("Sub", ["whole", "mean"], ["flat"]))
    last = "logits" if probabilities else "output"
    nodes.append(helper.make_node("MatMul", ["flat", "weights"], [last]))
    if probabilities:
        nodes.append(helper.make_node("Softmax", ["logits"], ["output"], axis=1))
    inputs = [helper.make_tensor_value_info("input", kind, shape)]
    if old:
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in constants]
    graph = helper.make_graph(
        nodes,
        "net",
        inputs,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [shape[0], classes])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8 if old else 13)])
    model.ir_version = 3 if old else 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return weights


def write_sidecar(path: Path, values: dict[str, Any]) -> None:
    """``path`` with the ending .yaml."""
    path.with_suffix(".yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def ferplus(folder: Path, **changes: Any) -> tuple[str, np.ndarray]:
    """A net like FER+'s: grey 64 px, 0..255, one picture at a time, eight logits; its URI and weights."""
    path = folder / "ferplus.onnx"
    weights = write_net(path, [1, 1, 64, 64], 8, flat=1, gain=0.05, old=True)
    write_sidecar(path, FERPLUS_SIDECAR | changes)
    return str(path), weights
