"""Pictures that a tiny backbone learns within seconds: the class is the strongest colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_fer.config import load_config
from ray_fer.methods.config import TrainBackboneConfig

CLASSES = ("neutral", "anger", "happiness")
SMALL = ("backbone=test_resnet", "image_size=32", "batch_size=16", "warmup_epochs=0", "ema_decay=0.8")


def draw(label: str, rng: np.random.Generator) -> Image.Image:
    pixels = rng.integers(0, 160, (40, 40, 3))
    pixels[..., CLASSES.index(label)] += 60
    return Image.fromarray(pixels.astype(np.uint8))


def write_faces(folder: Path, counts: tuple[int, int, int], seed: int = 0) -> str:
    """Pictures and their manifest; returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = ["path,label"]
    for label, count in zip(CLASSES, counts, strict=True):
        for number in range(count):
            name = f"{label}-{number}.png"
            draw(label, rng).save(folder / name)
            rows.append(f"{name},{label}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return str(manifest)


def write_selection(folder: Path, faces: Path, classes: tuple[str, ...] = CLASSES) -> str:
    """A selection of every picture in ``faces`` with a soft target for its true class."""
    folder.mkdir(parents=True, exist_ok=True)
    uris = sorted(str(path) for path in faces.glob("*.png"))
    labels = [Path(uri).name.partition("-")[0] for uri in uris]
    targets = [[0.8 if name == label else 0.1 for name in CLASSES] for label in labels]
    columns: dict[str, Any] = {
        "uri": uris,
        "label": labels,
        "target": pa.array(targets, pa.list_(pa.float32())),
        "weight": pa.array([1.0] * len(uris), pa.float32()),
        "confidence": pa.array([0.8] * len(uris), pa.float32()),
    }
    pq.write_table(pa.table(columns), folder / "selection.parquet")
    info = {"classes": list(classes), "teacher": "0123", "table": "t", "version": 1, "feedback_version": 0}
    (folder / "selection.json").write_text(json.dumps(info))
    return str(folder)


def config(folder: Path, *arguments: str) -> TrainBackboneConfig:
    """A small training job over ``folder/train`` and ``folder/val``."""
    places = [f"{name}={folder / place}" for name, place in PLACES.items()]
    loaded: TrainBackboneConfig = load_config("train_backbone", [*places, *SMALL, *arguments])
    return loaded


PLACES = {"labeled": "train/manifest.csv", "val": "val/manifest.csv", "out": "model"}


def write_sets(folder: Path, more: tuple[int, int, int]) -> Path:
    """Faces to train on, to validate on, and ``more`` without a use yet, with a selection that holds all of these."""
    write_faces(folder / "train", (24, 12, 12), seed=1)
    write_faces(folder / "val", (10, 10, 10), seed=2)
    write_faces(folder / "more", more, seed=3)
    write_selection(folder / "selection", folder / "more")
    return folder
