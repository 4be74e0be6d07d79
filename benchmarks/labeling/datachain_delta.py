"""DataChain's incremental way: `delta=True`, keyed by path and compared by ETag, the model in a map."""

import os
import sys

os.environ.setdefault("DATACHAIN_NO_ANALYTICS", "1")
os.environ.setdefault("ITERATIVE_DO_NOT_TRACK", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import datachain as dc
import numpy as np
import torch
from PIL import Image

from ray_fer.models.artifact import load_model, open_artifact
from ray_fer.models.torch_engine import Normalised

BATCH = 256  # rows between inserts; its default of 10,000 loses more when it is killed


class Predictor:
    """The model in torch, one picture at a time, as its documentation shows."""

    def __init__(self, teacher: str) -> None:
        artifact = open_artifact(teacher)
        self.names, self.side = artifact.classes, artifact.image_size
        self.model = Normalised(load_model(artifact), artifact.mean, artifact.std).eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[float]:
        """Probabilities (K,)."""
        crop = image.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR)
        probs: list[float] = self.model(torch.from_numpy(np.array(crop))[None]).softmax(dim=1)[0].tolist()
        return probs


def main(source: str, teacher: str, out: str) -> None:
    """Labels what is new in ``source`` into a dataset of the catalog in the folder ``out``; prints its rows."""
    os.makedirs(out, exist_ok=True)
    os.environ["DATACHAIN_ROOT_DIR"] = out
    endpoint = os.environ.get("AWS_ENDPOINT_URL")

    def label(file: dc.ImageFile, predictor: Predictor) -> tuple[list[float], str]:
        try:
            probs = predictor(file.read())
        except Exception as error:  # a row with an error instead of the end of the chain
            return [], f"{type(error).__name__}: {error}"
        return probs, ""

    options = {"aws_endpoint_url": endpoint} if endpoint and source.startswith("s3://") else None
    chain = dc.read_storage(
        source,
        type="image",
        update=True,
        delta=True,
        delta_on="file.path",
        delta_compare=["file.etag", "file.version"],
        delta_retry="error",
        client_config=options,
    )
    predictions = (
        chain.settings(parallel=len(os.sched_getaffinity(0)), prefetch=16, batch_size=BATCH)
        .setup(predictor=lambda: Predictor(teacher))
        .map(label, output={"probs": list[float], "error": str})
        .save("predictions")
    )
    print(predictions.count())


if __name__ == "__main__":
    main(*sys.argv[1:])
