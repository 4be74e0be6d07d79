"""Daft's way: read, decode and resize in its engine, the model in a batch UDF, Parquet out."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "true")

import daft
import numpy as np
import torch
from daft import DataType
from daft.io import IOConfig, S3Config

from ray_fer.models.artifact import load_model, open_artifact
from ray_fer.models.torch_engine import Normalised

BATCH = 32
PREDICTION = DataType.struct(
    {"label": DataType.string(), "confidence": DataType.float32(), "probs": DataType.list(DataType.float32())}
)


@daft.cls(max_concurrency=1)
class Predictor:
    """The model in torch, with the threads that torch takes by default."""

    def __init__(self, teacher: str) -> None:
        artifact = open_artifact(teacher)
        self.names = np.array(artifact.classes)
        self.model = Normalised(load_model(artifact), artifact.mean, artifact.std).eval()

    @daft.method.batch(return_dtype=PREDICTION, batch_size=BATCH)
    def predict(self, images: daft.Series) -> list[dict[str, Any]]:
        """Predictions of a batch of images."""
        pixels = torch.from_numpy(np.stack(images.to_pylist()))
        with torch.inference_mode():
            probs = self.model(pixels).softmax(dim=1).numpy()
        best = probs.argmax(axis=1)
        return [
            {"label": self.names[k], "confidence": float(p[k]), "probs": p.tolist()}
            for p, k in zip(probs, best, strict=True)
        ]


def main(folder: str, teacher: str, out: str) -> None:
    """Labels ``folder`` with ``teacher`` into Parquet files in ``out``."""
    side = open_artifact(teacher).image_size
    s3 = S3Config(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
        key_id=os.environ.get("AWS_ACCESS_KEY_ID"),
        access_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        region_name=os.environ.get("AWS_REGION"),
    )
    options = IOConfig(s3=s3)
    files = daft.from_glob_path(f"{folder}/*.jpg", io_config=options)
    data = files["path"].download(io_config=options)
    images = files.select(files["path"], data.decode_image(mode="RGB").resize(side, side).alias("image"))
    predictor = Predictor(teacher)
    images.select(images["path"], predictor.predict(images["image"]).alias("prediction")).write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
