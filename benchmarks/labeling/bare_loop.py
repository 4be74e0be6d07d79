"""No framework at all: one single-threaded process per core reads, decodes, infers, in turn. The practical limit."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.labeling.material import list_pictures
from ray_fer.data.decode import decode_into
from ray_fer.data.read import Item, read_objects
from ray_fer.models.artifact import open_artifact
from ray_fer.models.engines import make_engine
from ray_fer.models.softmax import softmax

BATCH = 32


def read(paths: list[str]) -> Iterator[bytes]:
    """Files one by one, objects on S3 as the project reads them, many at a time."""
    if paths[0].startswith("s3://"):
        for one in read_objects([Item(path, "", 0) for path in paths], 1 << 30):
            assert one.data is not None, one.error
            yield one.data
        return
    for path in paths:
        with open(path, "rb") as file:
            yield file.read()


def label(paths: list[str], teacher: str, out: str) -> None:
    """Labels ``paths`` into one Parquet file."""
    torch.set_num_threads(1)
    artifact = open_artifact(teacher)
    engine = make_engine(artifact, "auto", batch_size=BATCH, device="cpu", precision="float32")
    pixels = np.empty((BATCH, artifact.image_size, artifact.image_size, 3), np.uint8)
    probs = []
    contents = read(paths)
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        for row, data in enumerate(islice(contents, len(batch))):
            decode_into(data, pixels[row])
        probs.append(softmax(engine(pixels[: len(batch)])))
    every = np.concatenate(probs)
    columns = {
        "uri": paths,
        "label": np.array(artifact.classes)[every.argmax(axis=1)],
        "confidence": every.max(axis=1),
        "probs": pa.FixedSizeListArray.from_arrays(every.ravel(), every.shape[1]),
    }
    pq.write_table(pa.table(columns), out, compression="zstd")


def main(folder: str, teacher: str, out: str) -> None:
    """Labels ``folder`` with ``teacher`` into ``out``."""
    Path(out).mkdir()
    paths = list_pictures(folder)
    cores = len(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=label, args=(paths[core::cores], teacher, f"{out}/{core}.parquet"))
        for core in range(cores)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
