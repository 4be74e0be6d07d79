"""Features of all FER+ faces by pretrained nets, computed once: `python -m benchmarks.ssl.features DATA PRETRAINED`.

PRETRAINED is a folder with ``vggface2_mobilenetv1/`` (a timm folder) and ``faceexpr.onnx`` (an expression net that
others trained). Every view of a face is one file ``VIEW.npy`` in the cache, float16 (N, D) in the order of the table:

* ``whole``: the face at 192 px; average-pooled maps of four blocks side by side, 2,304 numbers;
* ``mirrored``: the same of its mirror image;
* ``centre``: the middle 40 of the 48 px at 160 px: another crop, seen by the same net;
* ``small``: the face at 96 px;
* ``outside`` and ``outside_logits``: the expression net's last features and its seven logits in our order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray

from benchmarks.ssl.faces import Indices, Table, read_table
from ray_fer.expressions import SEVEN
from ray_fer.models.backbone import build_backbone, normalisation

BLOCKS = ((2, 1), (3, 2), (3, 5), (4, 1))
"""Stage and block, 0-based; of 256, 512, 512 and 1,024 channels."""
DEPTHS = {
    "all": slice(0, 2304),
    "early": slice(0, 768),
    "middle": slice(256, 1280),
    "late": slice(768, 2304),
}
"""Columns of ``whole`` and the other views of that net: four depths, and three pairs of neighbours."""
VIEWS: dict[str, tuple[int, int, bool]] = {
    "whole": (0, 192, False),
    "centre": (4, 160, False),
    "small": (0, 96, False),
    "mirrored": (0, 192, True),
}
"""Border that is cut off, side in pixels, mirrored."""
BATCH = 64


@dataclass(frozen=True, eq=False)
class Features:
    """The cache: labels int64 (N,), roles and groups of all faces, and their views, each float16 (N, D)."""

    labels: Indices
    roles: NDArray[np.str_]
    groups: list[str]
    views: dict[str, NDArray[Any]]


def read_features(cache: Path) -> Features:
    """Opens a cache; the views are memory-mapped."""
    facts = np.load(cache / "faces.npz")
    views = {file.stem: np.load(file, mmap_mode="r") for file in sorted(cache.glob("*.npy"))}
    return Features(facts["labels"], facts["roles"], facts["groups"].tolist(), views)


def write_features(table: Table, pretrained: Path, cache: Path) -> None:
    """Computes what is missing in the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(cache / "faces.npz", labels=table.labels, roles=table.roles, groups=np.array(table.groups))
    for view, (border, side, mirrored) in VIEWS.items():
        if not (cache / f"{view}.npy").exists():
            net = pooled_net(pretrained / "vggface2_mobilenetv1", side)
            _write(cache, {view: _all(table, lambda pixels: net(cropped(pixels, border, side, mirrored)))})  # noqa: B023
    if not (cache / "outside.npy").exists():
        expression_net, order = outside_net(pretrained / "faceexpr.onnx")
        both = _all(table, lambda pixels: expression_net(cropped(pixels, 0, 112, False)))
        _write(cache, {"outside": both[:, :-7], "outside_logits": both[:, -7:][:, order]})


def cropped(pixels: torch.Tensor, border: int, side: int, mirrored: bool) -> torch.Tensor:
    """Grey uint8 (B, S, S) to float32 in [0, 1], (B, 3, side, side)."""
    floats = pixels[:, None].float() / 255
    floats = floats[:, :, border : floats.shape[2] - border, border : floats.shape[3] - border]
    resized = F.interpolate(floats, size=side, mode="bilinear", antialias=True, align_corners=False)
    return (resized.flip(3) if mirrored else resized).expand(-1, 3, -1, -1)


def pooled_net(folder: Path, side: int) -> Callable[[torch.Tensor], NDArray[np.float16]]:
    """Pictures (B, 3, side, side) to the pooled maps of `BLOCKS`, (B, 2304)."""
    import openvino

    net = build_backbone("mobilenetv1_100", len(SEVEN), side, pretrained=str(folder)).eval()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in normalisation(net))
    graph = openvino.convert_model(_Pooled(net), example_input=torch.zeros(2, 3, side, side))
    compiled = openvino.Core().compile_model(
        graph, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "bf16"}
    )

    def run(pictures: torch.Tensor) -> NDArray[np.float16]:
        pooled: NDArray[np.float16] = compiled([((pictures - mean) / std).numpy()])[0].astype(np.float16)
        return pooled

    return run


class _Pooled(torch.nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        maps, pooled = self.net.bn1(self.net.conv_stem(pictures)), []
        for i, stage in enumerate(self.net.blocks):
            for j, block in enumerate(stage):
                maps = block(maps)
                if (i, j) in BLOCKS:
                    pooled.append(maps.mean((2, 3)))
        return torch.cat(pooled, 1)


def outside_net(file: Path) -> tuple[Callable[[torch.Tensor], NDArray[np.float16]], list[int]]:
    """Pictures (B, 3, 112, 112) to last features and logits side by side, and which logit is each of `SEVEN`."""
    import openvino

    sidecar = yaml.safe_load(file.with_suffix(".yaml").read_text())
    core = openvino.Core()
    graph = core.read_model(file)
    (last,) = [node for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul"][-1:]
    graph.add_outputs([last.input_value(0)])
    compiled = core.compile_model(graph, "CPU")

    def run(pictures: torch.Tensor) -> NDArray[np.float16]:
        logits, features = compiled([pictures.numpy() * sidecar["scale"]]).values()
        return np.concatenate([features.reshape(len(logits), -1), logits], 1).astype(np.float16)

    return run, [sidecar["classes"].index(name) for name in SEVEN]


@torch.inference_mode()
def _all(table: Table, run: Callable[[torch.Tensor], NDArray[np.float16]]) -> NDArray[np.float16]:
    pixels = torch.from_numpy(table.images)
    return np.concatenate([run(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)])


def _write(cache: Path, views: dict[str, NDArray[np.float16]]) -> None:
    for name, values in views.items():
        np.save(cache / f"{name}.npy", values)
        print(f"{name}: {values.shape}", flush=True)


def main() -> None:
    """Fills the cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with ferplus.parquet")
    parser.add_argument("pretrained", type=Path)
    parser.add_argument("--cache", type=Path, required=True, help="outside of the repository: these are faces")
    arguments = parser.parse_args()
    write_features(read_table(arguments.data / "ferplus.parquet"), arguments.pretrained, arguments.cache)


if __name__ == "__main__":
    main()
