"""torch's way: a DataLoader with one worker per core decodes, the main process infers."""

from __future__ import annotations

import io
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.labeling.material import list_pictures
from ray_fer.models.artifact import load_model, open_artifact
from ray_fer.models.torch_engine import Normalised

BATCH = 32


class Pictures(Dataset[torch.Tensor]):
    """Files as uint8 (S, S, 3), decoded and resized by Pillow with its JPEG draft mode, as torchvision users do."""

    def __init__(self, paths: list[str], side: int) -> None:
        self.paths, self.side = paths, side
        self._fs: s3fs.S3FileSystem | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self._open(self.paths[index])) as image:
            image.draft("RGB", (self.side, self.side))
            crop = image.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(crop))

    def _open(self, path: str) -> str | io.BytesIO:
        if not path.startswith("s3://"):
            return path
        if self._fs is None:  # in the worker, for its event loop would not survive the fork
            self._fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        return io.BytesIO(self._fs.cat_file(path))


@torch.inference_mode()
def main(folder: str, teacher: str, out: str) -> None:
    """Labels ``folder`` with ``teacher`` into a Parquet file in ``out``."""
    artifact = open_artifact(teacher)
    model = Normalised(load_model(artifact), artifact.mean, artifact.std).eval()
    paths = list_pictures(folder)
    s3fs.S3FileSystem.clear_instance_cache()
    loader = DataLoader(Pictures(paths, artifact.image_size), BATCH, num_workers=len(os.sched_getaffinity(0)))
    probs = np.concatenate([model(pixels).softmax(dim=1).numpy() for pixels in loader])
    columns = {
        "uri": paths,
        "label": np.array(artifact.classes)[probs.argmax(axis=1)],
        "confidence": probs.max(axis=1),
        "probs": pa.FixedSizeListArray.from_arrays(probs.ravel(), probs.shape[1]),
    }
    os.mkdir(out)
    pq.write_table(pa.table(columns), f"{out}/predictions.parquet", compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
