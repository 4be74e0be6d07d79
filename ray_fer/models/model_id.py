"""The id of a model in predictions: its content, the number format, test-time flip and the face detector."""

from __future__ import annotations

from typing import Any

from ray_fer.models.face_detector import DETECTOR

_FACES = "-faces-"


def model_id(content: str, precision: str, flip: bool, faces: bool) -> str:
    """The id that predictions carry.

    Two models never share it, nor does one model in two number formats or behind two face detectors.

    Args:
        content: The hash of weights, preprocessing and class order.
        precision: The number format, ``float32`` or ``bfloat16``.
        flip: Whether test-time flip is on.
        faces: Whether the model sees crops that the face detector found, rather than whole pictures.
    """
    return f"{content}-{precision}" + ("-flip" if flip else "") + (f"{_FACES}{DETECTOR}" if faces else "")


def sees_faces(model: str) -> bool:
    """Whether the model with this id sees detected faces, so that a picture has any number of predictions."""
    return _FACES in model


def made_with(model: str) -> dict[str, Any]:
    """The arguments of `pseudo_label` that give predictions of the model with this id."""
    _, precision, *others = model.partition(_FACES)[0].split("-")
    return {"precision": precision, "flip": "flip" in others, "faces": "detect" if sees_faces(model) else "none"}


def resolve_precision(precision: str, on_gpu: bool) -> str:
    """Resolves ``auto`` to bfloat16 on a GPU and float32 on a CPU or a GPU that would only emulate bfloat16.

    A driver without a GPU cannot ask the GPUs of its cluster, which are assumed to support bfloat16.
    """
    if precision != "auto":
        return precision
    if not on_gpu:
        return "float32"
    import torch

    # GPUs before Ampere emulate bfloat16, which is slower than float32 and less exact.
    lacking = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float32" if lacking else "bfloat16"
