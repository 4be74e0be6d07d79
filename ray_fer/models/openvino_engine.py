"""OpenVINO on one CPU core, for every net that runs there: ours, timm's, and ONNX files (`onnx_net`)."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

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
    # Processors with bf16 units would silently round; the number format is part of the model id.
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": False,
}
_GRAPH = "net.xml"


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
