"""OpenVINO on one CPU core, for artifacts, timm checkpoints, ONNX files (`onnx_net`) and the face detector."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ray_fer import storage
from ray_fer.data.decode import Pixels

if TYPE_CHECKING:
    import openvino

Floats = npt.NDArray[np.float32]

SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    # CPUs with bf16 units would round silently, but the number format is part of the model id.
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": False,
}
_GRAPH = "net.xml"


def from_pixels(model: openvino.Model, layout: str) -> tuple[Any, Any]:
    """Starts the preprocessing of a graph whose new input is uint8 RGB (B, S, S, 3).

    Args:
        model: The graph.
        layout: The layout of the graph's own input, such as ``NCHW``.

    Returns:
        The ``PrePostProcessor`` that builds the graph, and its steps, which begin with a conversion to float32.
    """
    import openvino
    from openvino.preprocess import ColorFormat, PrePostProcessor

    processor = PrePostProcessor(model)
    tensor = processor.input().tensor()
    tensor.set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC")).set_color_format(ColorFormat.RGB)
    processor.input().model().set_layout(openvino.Layout(layout))
    return processor, processor.input().preprocess().convert_element_type(openvino.Type.f32)


class OpenVINOEngine:
    """A graph on one stream and one thread with a fixed batch size; smaller batches are padded, larger ones are split.

    Args:
        model: A graph whose input is uint8 (batch_size, S, S, 3).
        batch_size: The number of pictures per inference.
        output: The index of the output to return.
        features: The index of the output of which `embed` returns the values too.
    """

    def __init__(self, model: openvino.Model, *, batch_size: int, output: int = 0, features: int = 1) -> None:
        import openvino

        self.request = openvino.Core().compile_model(model, "CPU", SETTINGS).create_infer_request()
        self.batch_size = batch_size
        self.output = output
        self.features = features

    def __call__(self, pixels: Pixels) -> Floats:
        """The output float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        return self._run(pixels, self.output)[0]

    def embed(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """The outputs float32 (B, K) and (B, D) of ``pixels`` uint8 (B, S, S, 3)."""
        logits, features = self._run(pixels, self.output, self.features)
        return logits, features

    def _run(self, pixels: Pixels, *outputs: int) -> list[Floats]:
        if len(pixels) <= self.batch_size:
            return self._infer(pixels, outputs)
        starts = range(0, len(pixels), self.batch_size)
        parts = [self._infer(pixels[start : start + self.batch_size], outputs) for start in starts]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _infer(self, pixels: Pixels, outputs: Sequence[int]) -> list[Floats]:
        rows = len(pixels)
        if rows < self.batch_size:
            padded = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
            padded[:rows] = pixels
            pixels = padded
        self.request.infer([pixels], share_inputs=True)
        # The tensor is reused, so its values are copied. Some nets have axes of length one after the classes.
        tensors = [self.request.get_output_tensor(index).data for index in outputs]
        return [np.array(tensor[:rows], np.float32).reshape(rows, -1) for tensor in tensors]


def kept_graph(key: str, make: Callable[[], openvino.Model]) -> openvino.Model:
    """The graph called ``key`` from the node's cache; the first process that asks for it makes it.

    Args:
        key: Identifies everything that the graph depends on.
        make: Makes the graph.
    """
    import openvino

    def save(folder: Path) -> None:
        openvino.save_model(make(), folder / _GRAPH, compress_to_fp16=False)

    name = f"openvino/{key}-{openvino.__version__}"
    kept = storage.node_cache() / name
    if not all((kept / _GRAPH).with_suffix(suffix).exists() for suffix in (".xml", ".bin")):
        shutil.rmtree(kept, ignore_errors=True)  # a cleaner of temporary files may leave a part
    return openvino.Core().read_model(storage.cached_folder(name, save) / _GRAPH)
