"""The backbone's features of every frame of labelled clips: how they are extracted, and the files that hold them.

``features.parquet/`` holds one row per frame: video, frame, label (class name or null), feature, probs, error (null, or
why the frame has neither feature nor probs). A file holds the clips of one unit, each in the order of time.
``features.json`` is written last and lists the files that count.

The name of a file is the hash of what it is made from (places, frames, labels, model). So the same command after a
crash continues where it was, and a changed manifest redoes only the units that changed. Other content under the same
name is not noticed: it needs a new folder.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ray_fer import storage
from ray_fer.data.manifests import Manifest
from ray_fer.documents import MissingDocumentError, read_document
from ray_fer.errors import UserError
from ray_fer.models.artifact import open_artifact
from ray_fer.video.frame_encoder import ClipFeatures, FrameEncoder
from ray_fer.video.frames import Clip, clips_of, read_clip

FEATURES = "features.parquet"
INFO = "features.json"
MAX_FAILURES = 100
_UNIT_FRAMES = 2000


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
        name: Name of the video.
        frames: Frame numbers, int64 (M,), strictly increasing.
        features: Features, float32 (M, D).
        probs: Probabilities of the frame classifier, float32 (M, K).
        labels: Indices into the backbone's classes, int64 (M,); -1 for none.
    """

    name: str
    frames: NDArray[np.int64]
    features: NDArray[np.float32]
    probs: NDArray[np.float32]
    labels: NDArray[np.int64]


def read_info(uri: str, key: str) -> Extracted:
    """Read ``features.json`` of the folder ``uri``.

    Raises:
        UserError: Naming the config's ``key``, when no finished extraction is there.
    """
    try:
        return read_document(storage.join(uri, INFO), Extracted)
    except MissingDocumentError:
        raise UserError(f"{key}={uri}: no {INFO} there; extract_features makes one") from None


def read_clips(uri: str) -> Iterator[LabelledClip]:
    """Yield the clips of the folder ``uri`` that have at least one readable frame.

    Raises:
        UserError: When no finished extraction is there.
    """
    info = read_info(uri, "features")
    codes = {name: index for index, name in enumerate(info["classes"])}
    for table in _readable(uri, info):
        labels = np.array([codes.get(label, -1) for label in table["label"].to_pylist()], np.int64)
        features, probs = (_matrix(table[column]) for column in ("feature", "probs"))
        frames = table["frame"].to_numpy()
        for video, rows in _videos(table):
            yield LabelledClip(video, frames[rows], features[rows], probs[rows], labels[rows])


def survey_clips(uri: str) -> Iterator[tuple[str, NDArray[np.int64], int]]:
    """Yield of each clip of `read_clips` its name, its frame numbers (M,), and how many of them have a label.

    Raises:
        UserError: When no finished extraction is there.
    """
    for table in _readable(uri, read_info(uri, "features"), ["video", "frame", "label", "error"]):
        frames, labelled = table["frame"].to_numpy(), table["label"].is_valid().to_numpy()
        for video, rows in _videos(table):
            yield video, frames[rows], int(labelled[rows].sum())


def make_units(manifest: Manifest, model_id: str) -> list[dict[str, str]]:
    """Group the clips of a manifest into units of a few thousand rows.

    Returns:
        For each unit its ``file``, and as JSON its ``clips``: name, URIs, frame numbers and class names of each.

    Raises:
        UserError: When the manifest is not one of video frames.
    """
    units: list[list[dict[str, Any]]] = []
    rows = _UNIT_FRAMES
    for clip in clips_of(manifest):
        if rows >= _UNIT_FRAMES:
            units.append([])
            rows = 0
        rows += len(clip.rows)
        labels = [manifest.classes[label] if label >= 0 else None for label in manifest.labels[clip.rows]]
        units[-1].append({"name": clip.name, "uris": clip.uris, "frames": clip.frames.tolist(), "labels": labels})
    texts = [json.dumps(unit) for unit in units]
    digests = [hashlib.sha256(f"{model_id} {text}".encode()).hexdigest()[:32] for text in texts]
    return [{"file": f"{digest}.parquet", "clips": text} for digest, text in zip(digests, texts, strict=True)]


class UnitExtractor:
    """An actor of Ray Data that encodes units and writes their files into a folder.

    Args:
        model: URI of the backbone.
        folder: URI of the folder.
        batch_size: Frames per call of the backbone.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, model: str, folder: str, batch_size: int, device: str) -> None:
        torch.set_num_threads(1)
        artifact = open_artifact(model)
        self.encoder = FrameEncoder(artifact, device=device if torch.cuda.is_available() else "cpu")
        self.folder = folder
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Turn one unit, a batch of one row of `make_units`, into one row of counts; an existing file is kept."""
        uri = storage.join(self.folder, str(batch["file"][0]))
        if storage.exists(uri):
            table = _read_table(uri, ["video", "frame", "label", "error"])
        else:
            table = pa.concat_tables([self._clip(**clip) for clip in json.loads(str(batch["clips"][0]))])
            buffer = io.BytesIO()
            pq.write_table(table, buffer)
            storage.write_bytes(uri, buffer.getvalue())
        good = table.filter(table["error"].is_null())
        bad = table.filter(table["error"].is_valid()).select(["video", "frame", "error"])
        return {
            "dim": [self.encoder.dim],
            "videos": [len(table["video"].unique())],
            "frames": [good.num_rows],
            "labelled": [good.num_rows - good["label"].null_count],
            "failed": [bad.num_rows],
            "failures": [json.dumps(bad.slice(0, MAX_FAILURES).to_pylist())],
        }

    def _clip(self, name: str, uris: list[str], frames: list[int], labels: list[str | None]) -> pa.Table:
        clip = Clip(name, tuple(uris), np.array(frames, np.int64), np.arange(len(frames)))
        size = self.encoder.artifact.image_size
        try:
            found = self.encoder.encode_clip(read_clip(clip, size), self.batch_size)
        except UserError as error:
            none = self.encoder.encode_clip([], self.batch_size)
            found = ClipFeatures(none.frames, none.features, none.probs, dict.fromkeys(frames, str(error)))
        return _clip_table(name, dict(zip(frames, labels, strict=True)), found)


def _clip_table(name: str, labels: Mapping[int, str | None], found: ClipFeatures) -> pa.Table:
    """Make the rows of one clip: readable frames in the order of time, then the others; labels by frame number."""
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


def _read_table(uri: str, columns: list[str] | None) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)), columns=columns)


def _readable(uri: str, info: Extracted, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows with features, file by file."""
    for name in info["files"]:
        table = _read_table(storage.join(uri, FEATURES, name), columns)
        yield table.filter(table["error"].is_null()).combine_chunks()


def _videos(table: pa.Table) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield name and rows of every clip."""
    videos = np.array(table["video"].to_pylist())
    for rows in np.split(np.arange(len(videos)), np.flatnonzero(videos[1:] != videos[:-1]) + 1):
        if len(rows):
            yield str(videos[rows[0]]), rows


def _lists(values: NDArray[np.float32], nulls: int) -> pa.Array:
    """Make a list column of M vectors (M, D) and ``nulls`` nulls after them."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    lists = pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
    return pa.concat_arrays([lists, pa.nulls(nulls, lists.type)])


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a list column of M vectors of one length as (M, D)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(column), -1 if len(column) else 0), np.float32)
