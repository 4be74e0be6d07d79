"""Backbone features of every frame of labelled videos, computed once and kept.

The temporal encoder trains in minutes on vectors; the backbone that makes them takes hours. So they are made in a job
of their own, over Ray Data: a unit is a few clips, an actor decodes and encodes it and writes it as one Parquet file,
and only counts travel to the driver. A file's name is the hash of what it is about (places, frames, labels, model), so
the same command after a crash goes on where it was, and a changed manifest redoes only the units that changed. What is
not noticed is another content under the same name: extract into a new folder then.

OUT/features.parquet/ holds one row per frame: video, frame, label (class name or null), feature, probs, error (null, or
why the frame has neither feature nor probs). OUT/features.json is written last; it lists the files that count.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ray_fer import cluster, storage
from ray_fer.data.manifests import Manifest
from ray_fer.documents import read_document
from ray_fer.errors import UserError
from ray_fer.jobs.evaluate import labelled_for
from ray_fer.models.artifact import open_artifact
from ray_fer.resources import check_device, extractors, find_device
from ray_fer.room import Demand
from ray_fer.training import lease
from ray_fer.video.config import ExtractFeaturesConfig
from ray_fer.video.frame_features import ClipFeatures, FrameEncoder
from ray_fer.video.frames import Clip, clips_of, read_clip

FEATURES = "features.parquet"
INFO = "features.json"

_UNIT_FRAMES = 2000
_LISTED = 100

log = logging.getLogger(__name__)


class Extracted(TypedDict):
    """``features.json``."""

    classes: list[str]
    backbone: str
    backbone_uri: str
    files: list[str]
    failures: list[dict[str, Any]]
    videos: int
    frames: int
    labelled: int
    failed: int
    dim: int


@dataclass(frozen=True, eq=False)
class LabelledClip:
    """The M frames of a clip that have features.

    Attributes:
        name: of the video.
        frames: frame numbers, int64 (M,), strictly increasing.
        features: float32 (M, D).
        probs: of the frame classifier, float32 (M, K).
        labels: index into the backbone's classes, int64 (M,); -1 for none.
    """

    name: str
    frames: NDArray[np.int64]
    features: NDArray[np.float32]
    probs: NDArray[np.float32]
    labels: NDArray[np.int64]


def extract_features(config: ExtractFeaturesConfig) -> dict[str, Any]:
    """Extracts features of a manifest of video frames; what is already there is not done again.

    Raises:
        UserError: when the model or the manifest cannot be used, or when not one frame could be read.
    """
    check_device(config.device)
    artifact = open_artifact(config.model)
    manifest = labelled_for(artifact.classes, config.data, None)
    units = _units(clips_of(manifest), manifest, artifact.id)
    done = _finished(config.out)
    names = [unit["file"] for unit in units]
    if done is None or done["files"] != names:
        with lease.held(storage.normalise(config.out)) as held:
            done = _extract(config, units, {"classes": list(artifact.classes), "backbone": artifact.id}, held)
    else:
        log.info("%s: everything is there already", config.out)
    if not done["frames"]:
        raise UserError(f"data={config.data}: not one frame could be read ({done['failures'][0]['error']})")
    keys = ("videos", "frames", "labelled", "failed", "dim")
    return {**{key: done[key] for key in keys}, "features": storage.join(config.out, FEATURES)}


def read_info(uri: str, key: str) -> dict[str, Any]:
    """``features.json`` of the folder ``uri``.

    Raises:
        UserError: naming the config's ``key``, when no finished extraction is there.
    """
    info = _finished(uri)
    if info is None:
        raise UserError(f"{key}={uri}: no {INFO} there; extract_features makes one")
    return info


def read_clips(uri: str) -> Iterator[LabelledClip]:
    """The clips of the folder ``uri`` that have at least one readable frame, by unit."""
    info = read_info(uri, "features")
    codes = {name: index for index, name in enumerate(info["classes"])}
    for name in info["files"]:
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(uri, FEATURES, name))))
        table = table.filter(table["error"].is_null()).combine_chunks()
        labels = np.array([codes.get(label, -1) for label in table["label"].to_pylist()], np.int64)
        features, probs = (_matrix(table[column]) for column in ("feature", "probs"))
        frames = table["frame"].to_numpy()
        for video, rows in _videos(table):
            yield LabelledClip(video, frames[rows], features[rows], probs[rows], labels[rows])


def survey_clips(uri: str) -> Iterator[tuple[str, NDArray[np.int64], int]]:
    """Of each clip that `read_clips` reads: its name, its frame numbers (M,), and how many of them have a label."""
    for name in read_info(uri, "features")["files"]:
        data = io.BytesIO(storage.read_bytes(storage.join(uri, FEATURES, name)))
        table = pq.read_table(data, columns=["video", "frame", "label", "error"])
        table = table.filter(table["error"].is_null()).combine_chunks()
        frames, labelled = table["frame"].to_numpy(), table["label"].is_valid().to_numpy()
        for video, rows in _videos(table):
            yield video, frames[rows], int(labelled[rows].sum())


def _videos(table: pa.Table) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Name and rows of every clip: a unit is written clip by clip, each in the order of time."""
    videos = np.array(table["video"].to_pylist())
    for rows in np.split(np.arange(len(videos)), np.flatnonzero(videos[1:] != videos[:-1]) + 1):
        if len(rows):
            yield str(videos[rows[0]]), rows


def _finished(uri: str) -> dict[str, Any] | None:
    place = storage.join(uri, INFO)
    return dict(read_document(place, Extracted)) if storage.exists(place) else None


def _units(clips: list[Clip], manifest: Manifest, model_id: str) -> list[dict[str, str]]:
    """Neighbouring clips of a few thousand rows together: the file that they make, and all that an actor must know."""
    units: list[list[dict[str, Any]]] = []
    rows = _UNIT_FRAMES
    for clip in clips:
        if rows >= _UNIT_FRAMES:
            units.append([])
            rows = 0
        rows += len(clip.rows)
        labels = [manifest.classes[label] if label >= 0 else None for label in manifest.labels[clip.rows]]
        units[-1].append({"name": clip.name, "uris": clip.uris, "frames": clip.frames.tolist(), "labels": labels})
    described = []
    for unit in units:
        text = json.dumps(unit)
        digest = hashlib.sha256(f"{model_id} {text}".encode()).hexdigest()[:32]
        described.append({"file": f"{digest}.parquet", "clips": text})
    return described


def _extract(
    config: ExtractFeaturesConfig, units: list[dict[str, str]], info: dict[str, Any], held: lease.Lease
) -> dict[str, Any]:
    folder = storage.join(storage.normalise(config.out), FEATURES)
    cluster.connect()
    cluster.prepare_data()
    device = find_device(config.device)
    workers, share = extractors(device, config.workers, cluster.accelerators(), cluster.cpus())
    takes = {"CPU": share["num_cpus"], "GPU": share.get("num_gpus", 0)}
    cluster.wait_for_room(Demand("workers", 1, takes), config.wait_minutes)
    results = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        _Extractor,
        fn_constructor_kwargs={
            "model": storage.normalise(config.model),
            "folder": folder,
            "batch_size": config.batch_size,
            "device": device,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(workers, len(units)))),
        **share,
    )
    rows = []
    for row in results.iter_rows():
        rows.append(row)
        log.info("%d of %d units, %d frames", len(rows), len(units), sum(int(done["frames"]) for done in rows))
    failures = sorted((failure for row in rows for failure in json.loads(row["failures"])), key=lambda f: f["video"])
    done = {
        **info,
        "backbone_uri": storage.normalise(config.model),
        "dim": max(int(row["dim"]) for row in rows),
        **{key: sum(int(row[key]) for row in rows) for key in ("videos", "frames", "labelled", "failed")},
        "failures": failures[:_LISTED],
        "files": [unit["file"] for unit in units],
    }
    held.check()
    storage.write_json(storage.join(config.out, INFO), done)
    for name in set(storage.list_dir(folder)) - set(done["files"]):
        storage.delete(storage.join(folder, name))
    return done


class _Extractor:
    """Encodes units on one core or on a share of a GPU, and writes their files."""

    def __init__(self, model: str, folder: str, batch_size: int, device: str) -> None:
        torch.set_num_threads(1)
        artifact = open_artifact(model)
        self.encoder = FrameEncoder(artifact, device=device if torch.cuda.is_available() else "cpu")
        self.folder = folder
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One unit: its ``file`` and ``clips``; to one row of counts."""
        uri = storage.join(self.folder, str(batch["file"][0]))
        if storage.exists(uri):
            table = pq.read_table(io.BytesIO(storage.read_bytes(uri)), columns=["video", "frame", "label", "error"])
        else:
            table = pa.concat_tables([self._clip(clip) for clip in json.loads(str(batch["clips"][0]))])
            buffer = io.BytesIO()
            pq.write_table(table, buffer)
            storage.write_bytes(uri, buffer.getvalue())
        return _counts(table, self.encoder.dim)

    def _clip(self, clip: dict[str, Any]) -> pa.Table:
        frames = np.array(clip["frames"], np.int64)
        labels = dict(zip(clip["frames"], clip["labels"], strict=True))
        opened = Clip(clip["name"], tuple(clip["uris"]), frames, np.arange(len(frames)))
        size = self.encoder.artifact.image_size
        try:
            found = self.encoder.encode_clip(read_clip(opened, size), self.batch_size)
        except UserError as error:
            none = self.encoder.encode_clip([], self.batch_size)
            found = ClipFeatures(none.frames, none.features, none.probs, dict.fromkeys(clip["frames"], str(error)))
        return _table(clip["name"], labels, found)


def _table(name: str, labels: dict[int, str | None], found: ClipFeatures) -> pa.Table:
    """The rows of one clip: readable frames in the order of time, then the others."""
    numbers = [*found.frames.tolist(), *found.problems]
    bad = len(found.problems)
    return pa.table(
        {
            "video": pa.array([name] * len(numbers), pa.string()),
            "frame": pa.array(numbers, pa.int64()),
            "label": pa.array([labels.get(number) for number in numbers], pa.string()),
            "feature": _lists(found.features, bad),
            "probs": _lists(found.probs, bad),
            "error": pa.array([None] * len(found.frames) + list(found.problems.values()), pa.string()),
        }
    )


def _lists(values: NDArray[np.float32], nulls: int) -> pa.Array:
    """(M, D) as a list column of M vectors and then ``nulls`` nulls."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    lists = pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
    return pa.concat_arrays([lists, pa.nulls(nulls, lists.type)])


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A list column of M vectors of one length as (M, D)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(column), -1 if len(column) else 0), np.float32)


def _counts(table: pa.Table, dim: int) -> dict[str, Any]:
    good = table.filter(table["error"].is_null())
    bad = table.filter(table["error"].is_valid()).slice(0, _LISTED)
    failures = bad.select(["video", "frame", "error"]).to_pylist()
    return {
        "dim": [dim],
        "videos": [len(table["video"].unique())],
        "frames": [good.num_rows],
        "labelled": [good.num_rows - good["label"].null_count],
        "failed": [table.num_rows - good.num_rows],
        "failures": [json.dumps(failures)],
    }
