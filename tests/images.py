"""Small pictures and models that tests make for themselves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from ray_fer.models.artifact import Artifact, save_artifact

CLASSES = ("neutral", "anger", "happiness")


def picture(seed: int, size: int = 40, kind: str = "JPEG") -> bytes:
    """An encoded RGB picture that is unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write_pictures(folder: Path, seeds: range) -> None:
    """One JPEG per seed, in two levels of folders."""
    for seed in seeds:
        path = folder / f"part-{seed % 3}" / f"{seed:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))


def tiny_model(
    uri: str, seed: int = 0, classes: tuple[str, ...] = CLASSES, image_size: int = 32, **facts: Any
) -> Artifact:
    """An artifact of a small untrained backbone whose predictions differ from picture to picture."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet10t", num_classes=len(classes))
    with torch.no_grad():
        model.get_classifier().weight.mul_(20)
    half = (0.5, 0.5, 0.5)
    facts = {"mean": half, "std": half, "metrics": {}, "provenance": {}} | facts
    return save_artifact(uri, model, classes=classes, image_size=image_size, **facts)


_DEADLY = b"a decoder dies of this"


def deadly_picture() -> bytes:
    """A JPEG that kills the process that decodes it, where `write_deadly_decoder` has been."""
    return picture(0) + _DEADLY


def write_deadly_decoder(folder: Path, once: bool = False) -> str:
    """A folder that, on PYTHONPATH, gives the JPEG library a bug: it kills its process when it sees certain bytes."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, pathlib, simplejpeg\n"
        "header = simplejpeg.decode_jpeg_header\n"
        "died = pathlib.Path(__file__).with_name('died')\n"
        "def decode_jpeg_header(data, **options):\n"
        f"    if data.endswith({_DEADLY!r}) and not ({once} and died.exists()):\n"
        "        died.touch()\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return header(data, **options)\n"
        "simplejpeg.decode_jpeg_header = decode_jpeg_header\n"
    )
    return str(folder)
