"""A temporal model on disk: a folder with the encoder, a copy of the backbone, and how to run both."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors.torch import load_file, save_file
from typing_extensions import TypedDict

from ray_fer import storage
from ray_fer.config import Count
from ray_fer.documents import parse_document
from ray_fer.errors import UserError, one_line
from ray_fer.models.artifact import METRICS, PROVENANCE, Artifact, open_artifact
from ray_fer.models.weights import check_safetensors
from ray_fer.video.encoder import TemporalEncoder

WEIGHTS = "temporal.safetensors"
CONFIG = "temporal.json"
BACKBONE = "backbone"

HalfWidth = Annotated[int, Field(ge=0)]


class Config(TypedDict):
    """``temporal.json``."""

    classes: list[str]
    encoder: dict[str, Any]
    stride: Count
    frame_step: Count
    smoothing: HalfWidth
    frame_smoothing: HalfWidth
    backbone: str


@dataclass(frozen=True)
class TemporalArtifact:
    """A temporal model on disk, opened but not loaded.

    Attributes:
        uri: Where it was opened.
        folder: A local copy.
        id: Content hash (16 hex digits) of the encoder, its settings and the backbone.
        backbone: The artifact whose features the encoder was trained on.
        classes: The K class names in the order of the logits.
        encoder: The arguments of its `TemporalEncoder`.
        stride: Steps between the starts of windows at inference.
        frame_step: Frames of a video per step of the encoder.
        smoothing: Half-width, in steps, of the box filter over the encoder's probabilities.
        frame_smoothing: Half-width, in steps, of the box filter over the frame classifier's probabilities.
    """

    uri: str
    folder: Path
    id: str
    backbone: Artifact
    classes: tuple[str, ...]
    encoder: dict[str, Any]
    stride: int
    frame_step: int
    smoothing: int
    frame_smoothing: int


def save_temporal(
    uri: str,
    encoder: TemporalEncoder,
    backbone: Artifact,
    *,
    stride: int,
    frame_step: int,
    smoothing: int,
    frame_smoothing: int,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> TemporalArtifact:
    """Write a temporal model with a copy of its backbone, so that predicting needs nothing else.

    Args:
        uri: The folder, local or ``s3://``.
        encoder: The trained encoder.
        backbone: The backbone that its features come from.
        stride: As in `TemporalArtifact`.
        frame_step: As in `TemporalArtifact`.
        smoothing: As in `TemporalArtifact`.
        frame_smoothing: As in `TemporalArtifact`.
        metrics: The content of ``metrics.json``.
        provenance: The content of ``provenance.json``.
    """
    config = {
        "classes": list(backbone.classes),
        "encoder": encoder.sizes,
        "stride": stride,
        "frame_step": frame_step,
        "smoothing": smoothing,
        "frame_smoothing": frame_smoothing,
        "backbone": backbone.id,
        "feature_normalisation": f"{WEIGHTS}: mean, scale",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / BACKBONE).mkdir()
        for path in backbone.folder.iterdir():
            if path.is_file():  # not the checkpoints of its training
                shutil.copyfile(path, folder / BACKBONE / path.name)
        save_file({key: value.cpu().contiguous() for key, value in encoder.state_dict().items()}, folder / WEIGHTS)
        for file, document in ((METRICS, metrics), (PROVENANCE, provenance), (CONFIG, config)):
            (folder / file).write_text(storage.to_json(document, indent=2))
        storage.upload_folder(folder, uri, last=CONFIG)
    return open_temporal(uri)


def is_temporal(uri: str) -> bool:
    """Return whether a temporal model is at ``uri``."""
    return storage.exists(storage.join(uri, CONFIG))


def open_temporal(uri: str) -> TemporalArtifact:
    """Open the temporal model at ``uri``, downloaded once per node if remote, without loading its weights.

    Raises:
        UserError: When there is none, or when its backbone is another than it was trained with.
    """
    uri = storage.normalise(uri)
    for name in (CONFIG, WEIGHTS):
        if not storage.exists(storage.join(uri, name)):
            raise UserError(f"{uri}: no temporal model there ({name} is missing)")
    folder = storage.local_copy(uri)
    config = parse_document((folder / CONFIG).read_bytes(), storage.join(uri, CONFIG), Config)
    check_safetensors(f"{uri}/{WEIGHTS}", folder / WEIGHTS)
    backbone = open_artifact(str(folder / BACKBONE))
    if backbone.id != config["backbone"]:
        raise UserError(f"{uri}: its backbone is {backbone.id}, but it was trained with {config['backbone']}")
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update((folder / WEIGHTS).read_bytes())
    return TemporalArtifact(
        uri,
        folder,
        id=digest.hexdigest()[:16],
        backbone=backbone,
        classes=tuple(config["classes"]),
        encoder=config["encoder"],
        stride=config["stride"],
        frame_step=config["frame_step"],
        smoothing=config["smoothing"],
        frame_smoothing=config["frame_smoothing"],
    )


def load_encoder(artifact: TemporalArtifact) -> TemporalEncoder:
    """Load the encoder with its weights, on the CPU, in evaluation mode.

    Raises:
        UserError: When the weights are not those of the encoder that ``temporal.json`` describes.
    """
    try:
        encoder = TemporalEncoder(**artifact.encoder)
        encoder.load_state_dict(load_file(artifact.folder / WEIGHTS))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        what = f"its weights do not fit the encoder of its {CONFIG}: {one_line(error)}"
        raise UserError(f"{artifact.uri}: {what}") from None
    return encoder.eval()
