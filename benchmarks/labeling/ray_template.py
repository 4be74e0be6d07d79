"""The way that Ray's documentation shows batch inference: read_images → map_batches(actor) → write_parquet."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import ray
import torch

from ray_fer.models.artifact import load_model, open_artifact
from ray_fer.models.torch_engine import Normalised

BATCH = 32


class Predictor:
    """The model in torch; Ray gives the process the threads that its CPUs allow."""

    def __init__(self, teacher: str) -> None:
        artifact = open_artifact(teacher)
        # Not "classes": cloudpickle would take that for torch.classes, which it cannot pickle.
        self.names = np.array(artifact.classes)
        self.model = Normalised(load_model(artifact), artifact.mean, artifact.std).eval()

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Adds the predictions to a batch of images."""
        probs = self.model(torch.from_numpy(np.stack(batch["image"]))).softmax(dim=1).numpy()
        return {
            "path": batch["path"],
            "label": self.names[probs.argmax(axis=1)],
            "confidence": probs.max(axis=1),
            "probs": probs,
        }


def main(folder: str, teacher: str, out: str) -> None:
    """Labels ``folder`` with ``teacher`` into Parquet files in ``out``."""
    ray.init(address="local", logging_level="warning", log_to_driver=False)
    side = open_artifact(teacher).image_size
    images = ray.data.read_images(folder, size=(side, side), mode="RGB", include_paths=True)
    predictions = images.map_batches(
        Predictor, fn_constructor_args=(teacher,), batch_size=BATCH, num_cpus=1, concurrency=(1, 2)
    )
    predictions.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
