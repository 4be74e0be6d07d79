"""The job that trains the temporal encoder: checks, run, choice of the smoothing, publication.

It works on features that `extract_features` made, so no video is opened and the backbone is only copied. Its result is
four values of macro-F1 over the same validation frames: of the frame classifier and of the encoder, each as it is and
smoothed by its own best box filter. The one to beat is the *smoothed* frame classifier; where the encoder does not, the
log says so. Epoch and widths are chosen on the same videos, so all but the first value are a little optimistic: report
on test videos (`evaluate`).

A run is a function of its arguments and of what they point at, as in `train_backbone`. The same command on a finished
``out`` returns at once, on an unfinished one it continues, and another command on the same ``out`` is refused.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ray_fer import cluster, storage
from ray_fer.documents import read_document
from ray_fer.errors import UserError
from ray_fer.methods.temporal import TemporalMethod, WindowModel, build_encoder, inference_stride
from ray_fer.models.artifact import METRICS, PROVENANCE, Artifact, open_artifact
from ray_fer.models.records import EncoderMetrics, Identity, Trained
from ray_fer.models.softmax import softmax
from ray_fer.resources import check_device
from ray_fer.training.lease import Lease
from ray_fer.training.run_folder import RUN, absolute, complete, digest, environment, identity_of, must_run
from ray_fer.video.artifact import open_temporal, save_temporal
from ray_fer.video.config import TrainTemporalConfig
from ray_fer.video.encoder import clip_logits
from ray_fer.video.features import read_clips, read_info, survey_clips
from ray_fer.video.smoothing import Scored, choose_smoothing
from ray_fer.video.windows import common_step

if TYPE_CHECKING:  # Ray Train takes seconds to import, a finished run should answer at once
    from ray_fer.training.runner import Outcome
    from ray_fer.training.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the arguments point at, opened and checked.

    Attributes:
        backbone: The backbone that made the features of both sets.
        dim: D, features per frame.
        frame_step: Frames of a video per step of most training frames.
        counts: ``clips``, ``frames`` and ``labelled`` of both sets, for provenance and summary.
        contents: Digests of both sets.
    """

    backbone: Artifact
    dim: int
    frame_step: int
    counts: dict[str, dict[str, int]]
    contents: dict[str, str]


def train_temporal(config: TrainTemporalConfig) -> dict[str, Any]:
    """Train and publish, or return the summary of what is there.

    Returns:
        ``model`` (URI), ``id``, ``classes``, ``val_macro_f1`` (of the smoothed encoder: what `predict_video` does),
        ``macro_f1`` (all four, by name), ``smoothing`` and ``frame_smoothing`` (half-widths), ``best_epoch``,
        ``epochs``, ``features`` and ``val`` (counts), ``resumed_from_epoch``.

    Raises:
        UserError: When anything is wrong with the arguments or with what they point at.
    """
    _check(config)
    check_device(config.device)
    config = absolute(config, "features", "val")
    inputs = open_inputs(config)
    identity = identity_of(config, inputs.contents)
    out = storage.normalise(config.out)
    if must_run(out, identity):
        complete(
            *(out, identity),
            run=lambda _start, lease: _run(config, inputs, storage.join(out, RUN), lease),
            publish=lambda _start, outcome: _publish(out, config, inputs, outcome, identity),
        )
    return _summary(out)


def open_inputs(config: TrainTemporalConfig) -> Inputs:
    """Open what ``config`` points at, without reading the features themselves.

    Raises:
        UserError: Naming the key, when features are missing, of another or a lost backbone, without labels, or when a
            video is in both sets.
    """
    features, val = read_info(config.features, "features"), read_info(config.val, "val")
    if features["backbone"] != val["backbone"]:
        theirs, ours = val["backbone"], features["backbone"]
        raise UserError(f"val={config.val}: made by backbone {theirs}, but features by {ours}")
    if features["classes"] != val["classes"]:
        theirs, ours = ", ".join(val["classes"]), ", ".join(features["classes"])
        raise UserError(f"val={config.val}: its classes {theirs} are not those of features, {ours}")
    backbone = open_artifact(features["backbone_uri"])
    if backbone.id != features["backbone"]:
        raise UserError(
            f"features={config.features}: made by backbone {features['backbone']}, but at {backbone.uri} there is "
            f"{backbone.id} now"
        )
    sets: dict[str, dict[str, tuple[NDArray[np.int64], int]]] = {}
    for key, uri in (("features", config.features), ("val", config.val)):
        sets[key] = {name: (frames, labelled) for name, frames, labelled in survey_clips(uri)}
        if not any(labelled for _, labelled in sets[key].values()):
            raise UserError(f"{key}={uri}: not one readable frame has a label")
    if shared := sorted(set(sets["features"]) & set(sets["val"])):
        more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise UserError(f"val={config.val}: video {shared[0]}{more} is in features too: the score would be a leak")
    counts = {
        key: {
            "clips": len(clips),
            "frames": sum(len(frames) for frames, _ in clips.values()),
            "labelled": sum(labelled for _, labelled in clips.values()),
        }
        for key, clips in sets.items()
    }
    contents = {key: digest([info["backbone"], info["files"]]) for key, info in (("features", features), ("val", val))}
    step = common_step([frames for frames, _ in sets["features"].values()])
    return Inputs(backbone, int(features["dim"]), step, counts, contents)


def make_method(config: TrainTemporalConfig, world: World) -> TemporalMethod:
    """The method of one rank, from the URIs in ``config``: features never travel as arguments."""
    classes = tuple(read_info(config.features, "features")["classes"])
    val = [clip for number, clip in enumerate(read_clips(config.val)) if number % world.size == world.rank]
    return TemporalMethod(config, classes, list(read_clips(config.features)), val, world)


def _check(config: TrainTemporalConfig) -> None:
    if config.width % config.heads:
        raise UserError(f"heads={config.heads}: does not divide width={config.width}")
    if config.stride > config.window:
        raise UserError(f"stride={config.stride}: larger than window={config.window}, so some frames are in no window")
    if not config.smoothing:
        raise UserError("smoothing=[]: give at least one half-width, 0 for none")
    if config.dropout == 1:
        raise UserError("dropout=1.0: nothing would be left to train on")


# --- run, choice and publication ---


def _run(config: TrainTemporalConfig, inputs: Inputs, folder: str, lease: Lease) -> Outcome:
    from ray_fer.training.rank import TrainSpec
    from ray_fer.training.runner import fit

    cluster.connect()
    log.info(
        "training a temporal encoder on %d labelled frames of %d clips, validating on %d of %d",
        *(inputs.counts[key][what] for key in ("features", "val") for what in ("labelled", "clips")),
    )
    run = TrainSpec(
        folder=folder,
        make=functools.partial(make_method, config),
        device=config.device,
        workers=config.workers,
        zero_stage=config.zero_stage,
        precision="float32",  # the features are, and the encoder is small
        max_failures=config.max_failures,
        wait_minutes=config.wait_minutes,
        lease=lease,
    )
    return fit(run)


def _publish(out: str, config: TrainTemporalConfig, inputs: Inputs, outcome: Outcome, identity: Identity) -> None:
    model = WindowModel(build_encoder(config, inputs.dim, len(inputs.backbone.classes)))
    model.load_state_dict(outcome.weights)
    encoder, stride = model.encoder.eval(), inference_stride(config.window)
    framewise: list[Scored] = []
    encoded: list[Scored] = []
    for clip in read_clips(config.val):
        framewise.append((clip.frames, clip.probs, clip.labels))
        logits = clip_logits(encoder, clip.frames, clip.features, clip.probs, stride)
        encoded.append((clip.frames, softmax(logits), clip.labels))
    chosen = choose_smoothing(framewise, encoded, config.smoothing)
    save_temporal(
        *(out, encoder, inputs.backbone),
        stride=stride,
        frame_step=inputs.frame_step,
        smoothing=chosen["smoothing"],
        frame_smoothing=chosen["frame_smoothing"],
        metrics={"val": {**outcome.best, **chosen}, "history": outcome.history, "resumed": outcome.resumed},
        provenance={
            "identity": identity,
            "config": config.model_dump(),
            "counts": inputs.counts,
            "parents": {"backbone": inputs.backbone.id, "backbone_uri": inputs.backbone.uri},
            **environment(),
        },
    )


def _summary(out: str) -> dict[str, Any]:
    artifact = open_temporal(out)
    metrics = read_document(storage.join(out, METRICS), EncoderMetrics)
    provenance = read_document(storage.join(out, PROVENANCE), Trained)
    best, resumed = metrics["val"], metrics["resumed"]
    return {
        "model": out,
        "id": artifact.id,
        "classes": list(artifact.classes),
        "val_macro_f1": best["scores"]["encoder_smoothed"],
        "macro_f1": best["scores"],
        "smoothing": artifact.smoothing,
        "frame_smoothing": artifact.frame_smoothing,
        "best_epoch": best["epoch"],
        "epochs": len(metrics["history"]),
        **provenance["counts"],
        "resumed_from_epoch": resumed[-1] if resumed else None,
    }
