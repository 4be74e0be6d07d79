"""The job that shows what a teacher sees of a picture and predicts for it: a wrong size, crop or colour shows here."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from ray_fer import storage
from ray_fer.data.crop import decode_uri
from ray_fer.data.decode import DecodeError, Pixels
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError, prefixed
from ray_fer.jobs.config import InspectTeacherConfig
from ray_fer.models.artifact import Artifact
from ray_fer.models.engines import centre, make_engine
from ray_fer.models.onnx_net import net_input
from ray_fer.models.softmax import softmax, why_not_finite
from ray_fer.models.teacher import OnnxTeacher, Teacher, TimmTeacher, check_teacher, open_teacher
from ray_fer.models.torch_engine import Normalised


def inspect_teacher(config: InspectTeacherConfig) -> dict[str, Any]:
    """Write a PNG of what enters the net, taken from its input and de-normalised, to ``out``.

    Returns:
        ``png``, ``model_id``, ``label`` and ``probs`` by class (both null, and an ``error``, where the output is not
        finite), and the sides in pixels of the decoded crop, ``image_size``, and of the part of it that enters the net,
        ``net_size``.

    Raises:
        UserError: When the teacher or the image cannot be used.
    """
    out = storage.normalise_argument("out", config.out)
    image = storage.normalise_argument("image", config.image)
    with prefixed("teacher="):
        teacher = open_teacher(config.teacher)
    check_teacher(teacher)
    try:
        pixels = decode_uri(image, storage.read_bytes(split_face(image)[0]), teacher.image_size)[None]
    except FileNotFoundError:
        raise UserError(f"image={config.image}: no such file") from None
    except DecodeError as error:
        raise UserError(f"image={config.image}: {error}") from None
    # For one picture the conversion to OpenVINO would take longer than all the rest.
    name = "openvino" if isinstance(teacher, OnnxTeacher) else "torch"
    engine = make_engine(teacher, name, batch_size=1, device="cpu", precision="float32")
    logits = engine(pixels)
    probs = softmax(logits)[0]
    found: dict[str, Any] = {
        "label": teacher.classes[int(np.argmax(probs))],
        "probs": {name: round(float(p), 4) for name, p in zip(teacher.classes, probs, strict=True)},
    }
    if np.isnan(probs).any():
        found = {"label": None, "probs": None, "error": why_not_finite(logits[0], teacher.classes)}
    buffer = io.BytesIO()
    Image.fromarray(seen_by_net(teacher, pixels)[0]).save(buffer, "PNG")
    storage.write_bytes(out, buffer.getvalue())
    return {
        "png": out,
        "model_id": teacher.model_id("float32"),
        **found,
        "image_size": teacher.image_size,
        "net_size": teacher.net_size,
    }


def seen_by_net(teacher: Teacher, pixels: Pixels) -> Pixels:
    """Return what enters the net of the crops ``pixels``, uint8 (B, S, S, 3), de-normalised.

    Returns:
        uint8 RGB (B, S', S', 3); for a net that sees grey the three channels are equal.
    """
    pixels = np.ascontiguousarray(centre(pixels, teacher.net_size))
    if isinstance(teacher, OnnxTeacher):
        sidecar = teacher.sidecar
        inputs = net_input(sidecar, pixels)
        inputs = inputs.transpose(0, 2, 3, 1) if sidecar.layout == "nchw" else inputs
        levels = (inputs * np.array(sidecar.std) + np.array(sidecar.mean)) * (255 / sidecar.scale)
        levels = levels[..., ::-1] if sidecar.colour == "bgr" else levels
    else:
        assert isinstance(teacher, Artifact | TimmTeacher)
        net = Normalised(torch.nn.Identity(), teacher.mean, teacher.std)
        inputs = net(torch.from_numpy(pixels)).numpy().transpose(0, 2, 3, 1)
        levels = (inputs * np.array(teacher.std) + np.array(teacher.mean)) * 255
    rounded = np.rint(levels).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rounded, (*rounded.shape[:3], 3)))
