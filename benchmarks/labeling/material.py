"""What the contestants work on: pictures that the project draws, and an untrained teacher of a given architecture."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import s3fs

from ray_fer.models.artifact import save_artifact
from ray_fer.models.backbone import build_backbone, normalisation
from ray_fer.synthetic.action_units import sample_action_units
from ray_fer.synthetic.face import render_face
from ray_fer.synthetic.identity import draw_identity
from ray_fer.synthetic.nuisance import draw_nuisance, encode_jpeg
from ray_fer.synthetic.plan import CLASSES

SIDE, QUALITY, DIFFICULTY = 256, 90, 0.5
_CHUNK = 100
_PUT_AT_ONCE = 1000


def write_pictures(folder: Path, sizes: Sequence[int]) -> dict[int, Path]:
    """For each of ``sizes`` a folder of so many colour JPEGs of 256 px, quality 90; what is there already stays.

    The sets begin with the same pictures, which lie on the disk once.
    """
    pool_folder = folder / "faces"
    pool_folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(max(sizes)) if not _path(pool_folder, number).exists()]
    chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(_write, pool_folder, chunk) for chunk in chunks]:
            future.result()
    return {size: _linked(pool_folder, folder / f"faces-{size}", size) for size in sizes}


def write_crops(folder: Path, parquet: Path, sizes: Sequence[int]) -> dict[int, Path]:
    """The same of the JPEGs in the column ``image`` of a Parquet file, over and over where there are too few."""
    pool_folder = folder / f"{parquet.stem}-{max(sizes)}-files"
    if not pool_folder.exists():
        part = pool_folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        crops = pq.read_table(parquet, columns=["image"])["image"].to_pylist()
        for number in range(max(sizes)):
            _path(part, number).write_bytes(crops[number % len(crops)])
        part.rename(pool_folder)
    return {size: _linked(pool_folder, folder / f"{parquet.stem}-{size}", size) for size in sizes}


def upload(folder: Path, bucket: str) -> str:
    """Puts the files of ``folder`` on S3, and answers with their prefix."""
    fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    fs.makedirs(bucket, exist_ok=True)
    uri = f"s3://{bucket}/{folder.name}"
    paths = sorted(folder.iterdir())
    for start in range(0, len(paths), _PUT_AT_ONCE):
        chunk = paths[start : start + _PUT_AT_ONCE]
        fs.pipe({f"{uri}/{path.name}": path.read_bytes() for path in chunk})
    return uri


def list_pictures(folder: str) -> list[str]:
    """The paths in a folder or the URIs below a prefix, sorted."""
    if folder.startswith("s3://"):
        fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        return sorted(f"s3://{path}" for path in fs.ls(folder, detail=False))
    return sorted(entry.path for entry in os.scandir(folder))


def _linked(pool_folder: Path, target: Path, size: int) -> Path:
    target.mkdir(exist_ok=True)
    for number in range(size):
        if not _path(target, number).exists():
            _path(target, number).hardlink_to(_path(pool_folder, number))
    return target


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.jpg"


def _write(folder: Path, numbers: list[int]) -> None:
    for number in numbers:
        rng = np.random.default_rng(number)
        vector = sample_action_units(CLASSES[number % len(CLASSES)], rng, difficulty=DIFFICULTY)
        image = render_face(draw_identity(rng), vector, draw_nuisance(rng, DIFFICULTY), SIDE)
        _path(folder, number).write_bytes(encode_jpeg(image, QUALITY))


def write_teacher(folder: Path, backbone: str, image_size: int) -> Path:
    """An untrained model artifact: labelling does not care how good a teacher is."""
    target = folder / f"{backbone}-{image_size}"
    if not (target / "config.json").exists():
        model = build_backbone(backbone, len(CLASSES), image_size)
        mean, std = normalisation(model)
        save_artifact(
            *(str(target), model),
            classes=tuple(CLASSES),
            image_size=image_size,
            mean=mean,
            std=std,
            metrics={},
            provenance={},
        )
    return target
