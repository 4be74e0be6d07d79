"""An expression net of somebody else as a teacher: ``faceexpr.onnx`` of the pretrained nets, see their README."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_fer.expressions import SEVEN
from ray_fer.methods.batch import Faces
from ray_fer.models.engines import make_engine
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import open_teacher

NET = Path(os.environ.get("RAY_FER_OUTSIDE", "../shared/pretrained/faceexpr.onnx"))
_AT_ONCE = 64


@functools.lru_cache(1)
def _engine() -> tuple[Any, list[int], int]:
    teacher = open_teacher(str(NET.resolve()))
    engine = make_engine(teacher, "auto", batch_size=_AT_ONCE, device="cpu", precision="float32")
    return engine, [teacher.classes.index(name) for name in SEVEN], teacher.image_size


def outside_teacher(faces: Faces) -> NDArray[np.float64]:
    """Its probabilities (N, K) of faces, which are resized to what it sees."""
    engine, order, side = _engine()
    parts = []
    for start in range(0, len(faces), _AT_ONCE):
        pixels, _ = faces.images.batch(np.arange(start, min(start + _AT_ONCE, len(faces))))
        maps = torch.as_tensor(np.asarray(pixels)).permute(0, 3, 1, 2).float()
        resized = torch.nn.functional.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
        crops = resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        parts.append(softmax(engine(np.ascontiguousarray(crops)))[:, order].astype(np.float64))
    return np.concatenate(parts)
