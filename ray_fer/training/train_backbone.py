"""The job that trains a backbone, teacher or student: checks, run, publication.

Everything that can be wrong is looked for before a cluster is touched. The result is a function of the arguments and of
what they point at; both are kept with the model (``provenance.json``). So the same command on a finished ``out``
answers at once, on an unfinished one goes on, and another command on the same ``out`` is refused rather than mixed in.
"""

from __future__ import annotations

import functools
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ray_fer import storage
from ray_fer.config import FeedbackPart, TrainBackboneConfig
from ray_fer.data.loading import MAX_BAD_SHARE, MAX_PICTURE_BYTES
from ray_fer.data.manifests import Manifest, check_disjoint, read_manifest
from ray_fer.data.read import Item, read_objects
from ray_fer.data.sources import list_sources
from ray_fer.data.sources.uris import split_face
from ray_fer.data.splits import feedback_half, join_validation, missing_in_a_half
from ray_fer.errors import UserError
from ray_fer.feedback.formulas import FeedbackConfig
from ray_fer.models.artifact import PROVENANCE, Artifact, open_artifact, save_artifact
from ray_fer.training.claim import RUN, absolute, claim, digest, environment, identity_of, is_finished

if TYPE_CHECKING:  # torch, timm and Ray take seconds to import, a mistyped path should not
    from ray_fer.training.loop import World
    from ray_fer.training.recipe import BackboneRecipe
    from ray_fer.training.runner import Outcome
    from ray_fer.training.selection_file import Selection

log = logging.getLogger(__name__)

NO_FEEDBACK = "none"
_UNLABELED = "unlabeled.parquet"
_SMALLEST, _LARGEST, _MULTIPLE, _SAMPLE = 48, 112, 16, 200


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the arguments point at, opened and found to fit.

    Attributes:
        config: with ``backbone``, ``image_size`` and ``classes`` resolved.
        labeled: readable labelled rows.
        val: likewise; with the rows of ``feedback_val`` where that is given.
        feedback_rows: which rows of ``val`` drive feedback and temperature, bool; the others choose the epoch.
        init: artifact to start from.
        selection: pseudo-labels.
        feedback: URI of the feedback state, None when feedback is off.
    """

    config: TrainBackboneConfig
    labeled: Manifest
    val: Manifest
    feedback_rows: NDArray[np.bool_]
    init: Artifact | None
    selection: Selection | None
    feedback: str | None


@dataclass(frozen=True)
class Start:
    """What a run keeps from its first start on, however often it is interrupted.

    Attributes:
        run_name: tells the feedback who reports.
        feedback_version: whose factors the first epoch uses.
        unlabeled: how many unlabeled faces there were; their URIs are in the run's folder.
    """

    run_name: str
    feedback_version: int | None
    unlabeled: int = 0


def train_backbone(config: TrainBackboneConfig) -> dict[str, Any]:
    """Trains and publishes, or answers from what is there.

    Returns:
        ``model`` (URI), ``id``, ``classes``, ``val_macro_f1``, ``val_accuracy``, ``choice_macro_f1`` and
        ``feedback_macro_f1`` (of the halves), ``temperature``, ``best_epoch``, ``epochs``, ``labeled``, ``val``,
        ``feedback_val``, ``pseudo`` and ``unlabeled`` (counts), ``feedback_version``, ``resumed_from_epoch``.

    Raises:
        UserError: for anything wrong with the arguments or with what they point at.
    """
    places = ["labeled", "val", "feedback_val", "pretrained", "init", "pseudo"]
    config = absolute(config, *places, *([] if config.feedback == NO_FEEDBACK else ["feedback"]))
    inputs = open_inputs(config)
    identity = _identity(config, inputs)
    out = storage.normalise(config.out)
    run_folder = storage.join(out, RUN)
    if not is_finished(out, identity):
        start = Start(**claim(out, identity, functools.partial(_start, out, identity, inputs)))
        outcome = _run(inputs, run_folder, start)
        _publish(out, inputs, outcome, identity, start)
    storage.delete(run_folder)
    return _summary(out)


def open_inputs(config: TrainBackboneConfig, quiet: bool = False) -> Inputs:
    """Opens what ``config`` points at and resolves what it leaves open.

    Args:
        config: of the job.
        quiet: say nothing of pictures that are left out.

    Raises:
        UserError: for anything wrong with the arguments or with what they point at.
    """
    labeled, val, feedback_rows = _read_manifests(config, quiet)
    from ray_fer.models.backbone import DEFAULT_BACKBONE, check_backbone
    from ray_fer.training.selection_file import read_selection

    init = open_artifact(config.init) if config.init else None
    selection = read_selection(config.pseudo, labeled.classes) if config.pseudo else None
    backbone = config.backbone or (init.architecture if init else _pretrained_name(config)) or DEFAULT_BACKBONE
    check_backbone(backbone)
    default = storage.join(storage.normalise(config.out), "feedback")
    feedback = config.feedback or (default if selection or config.recipe == "online" else None)
    resolved = config.model_copy(
        update={
            "backbone": backbone,
            "image_size": config.image_size or (init.image_size if init else picture_size(labeled.uris)),
            "classes": list(labeled.classes),
        }
    )
    return Inputs(resolved, labeled, val, feedback_rows, init, selection, None if feedback == NO_FEEDBACK else feedback)


def picture_size(uris: list[str]) -> int:
    """The median side in pixels of a sample of the pictures, as a multiple of 16 within [48, 112]."""
    sample = [Item(uri, "", 0) for uri in uris[:: max(1, len(uris) // _SAMPLE)]]
    sides = []
    for read in read_objects(sample, MAX_PICTURE_BYTES):
        try:
            with Image.open(io.BytesIO(read.data or b"")) as image:
                sides.append(sum(image.size) / 2)
        except (UnidentifiedImageError, OSError):
            continue
    median = float(np.median(sides)) if sides else _SMALLEST
    return int(np.clip(round(median / _MULTIPLE) * _MULTIPLE, _SMALLEST, _LARGEST))


# --- on a rank ---


def make_recipe(config: TrainBackboneConfig, start: Start, folder: str, world: World) -> BackboneRecipe:
    """The recipe of one rank, from the URIs in ``config``: data and weights never travel as arguments."""
    from ray_fer.feedback.actor import load_snapshot
    from ray_fer.training.build_recipe import build_recipe

    inputs = open_inputs(config, quiet=world.rank > 0)
    told: dict[str, Any] = {}
    if inputs.feedback is not None:
        classes = inputs.labeled.classes
        told = {
            "feedback": _Feedback(inputs.feedback, classes, config.feedback_parts, start.run_name),
            "factors": load_snapshot(inputs.feedback, classes, start.feedback_version).to_json(),
        }
    unlabeled = _read_unlabeled(folder) if start.unlabeled else []
    return build_recipe(inputs, unlabeled, world, told)


@dataclass(frozen=True)
class _Feedback:
    """Tells the actor of a run's validations."""

    uri: str
    classes: tuple[str, ...]
    parts: Sequence[FeedbackPart]
    run_name: str

    def __call__(self, confusion: NDArray[np.int64], epoch: int, **evidence: Any) -> dict[str, Any]:
        import ray

        from ray_fer.feedback.actor import get_feedback_actor

        actor = get_feedback_actor(self.uri, self.classes, self.parts)
        source = f"{self.run_name}/epoch-{epoch + 1}"
        answer: dict[str, Any] = ray.get(actor.update.remote(confusion.tolist(), source, **evidence))
        return answer


# --- checks ---


def _read_manifests(config: TrainBackboneConfig, quiet: bool) -> tuple[Manifest, Manifest, NDArray[np.bool_]]:
    if config.init and config.pretrained:
        raise UserError("init and pretrained: give one of them")
    if (config.recipe == "supervised") != (config.unlabeled is None):
        wanted = "needs unlabeled=" if config.unlabeled is None else "takes no unlabeled=, recipe=online does"
        raise UserError(f"recipe={config.recipe}: {wanted}")
    if config.recipe == "meta_feedback" and (config.pseudo or config.feedback not in (None, NO_FEEDBACK)):
        raise UserError("recipe=meta_feedback: takes neither pseudo= nor feedback=, its teacher is what it corrects")
    labeled = _readable("labeled", read_manifest(config.labeled, config.classes), quiet)
    val = _readable("val", read_manifest(config.val, labeled.classes), quiet)
    check_disjoint(labeled, val)
    if config.feedback_val is None:
        return labeled, val, feedback_half(val)
    feedback_val = _readable("feedback_val", read_manifest(config.feedback_val, labeled.classes), quiet)
    check_disjoint(labeled, feedback_val, "labeled and feedback_val")
    check_disjoint(val, feedback_val, "val and feedback_val")
    return labeled, *join_validation(val, feedback_val)


def _readable(name: str, manifest: Manifest, quiet: bool) -> Manifest:
    """The labelled rows whose file is there; what is on S3 is only found missing when it is read."""
    manifest = manifest.labeled()
    if not len(manifest):
        raise UserError(f"{name}: no labelled row")
    there = np.array([storage.is_remote(uri) or os.path.exists(split_face(uri)[0]) for uri in manifest.uris])
    missing = int((~there).sum())
    if missing == 0:
        return manifest
    first = manifest.uris[int(np.argmin(there))]
    if missing > MAX_BAD_SHARE * len(there):
        raise UserError(f"{name}: {missing} of {len(there)} pictures are not there, the first: {first}")
    if not quiet:
        log.warning("%s: %d of %d pictures are not there and left out, the first: %s", name, missing, len(there), first)
    return manifest.take(there)


def warn_of_thin_halves(inputs: Inputs) -> None:
    """Says what the feedback or the choice cannot see, for want of validation faces."""
    if lonely := missing_in_a_half(inputs.val, inputs.feedback_rows):
        log.warning("val: only one half of it has any of %s: feedback or choice is blind there", ", ".join(lonely))
    there, wanted = int(inputs.feedback_rows.sum()), FeedbackConfig().min_examples
    if inputs.feedback is not None and there < wanted:
        log.warning("val: %d faces in its feedback half; the feedback acts on no less than %d", there, wanted)


def _pretrained_name(config: TrainBackboneConfig) -> str | None:
    if not config.pretrained or not storage.is_dir(config.pretrained):
        return None
    try:
        return str(storage.read_json(storage.join(config.pretrained, "config.json"))["architecture"])
    except (FileNotFoundError, ValueError, KeyError):
        raise UserError(f"pretrained={config.pretrained}: no config.json that names an architecture") from None


def _identity(config: TrainBackboneConfig, inputs: Inputs) -> dict[str, Any]:
    contents = {"labeled": _digest(inputs.labeled)}
    if config.feedback_val is None:
        contents["val"] = _digest(inputs.val)
    else:
        halves = {"val": ~inputs.feedback_rows, "feedback_val": inputs.feedback_rows}
        contents |= {name: _digest(inputs.val.take(rows)) for name, rows in halves.items()}
    if inputs.init is not None:
        contents["init"] = inputs.init.id
    if inputs.selection is not None:
        contents["pseudo"] = digest(inputs.selection.info)
    return identity_of(config, contents)


def _digest(manifest: Manifest) -> str:
    return digest([manifest.uris, manifest.labels.tolist(), manifest.classes])


def _start(out: str, identity: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    from ray_fer.feedback.actor import FeedbackStore

    feedback_version = None
    if inputs.feedback:
        store = FeedbackStore(inputs.feedback, inputs.labeled.classes, inputs.config.feedback_parts)
        feedback_version = store.snapshot()["version"]
    unlabeled = _list_unlabeled(inputs, storage.join(out, RUN)) if inputs.config.unlabeled else 0
    return asdict(Start(f"{out.rsplit('/', 1)[-1]}-{digest([out, identity])[:8]}", feedback_version, unlabeled))


def _list_unlabeled(inputs: Inputs, folder: str) -> int:
    """Writes down what the sources hold now, for the run shall see the same faces however often it is interrupted."""
    counts: Counter[str] = Counter()
    assert inputs.config.unlabeled is not None
    known = {*inputs.labeled.uris, *inputs.val.uris}
    uris = [uri for page in list_sources(inputs.config.unlabeled, counts) for uri in page["uri"].to_pylist()]
    kept = [uri for uri in uris if uri not in known]
    if len({storage.is_remote(uri) for uri in kept}) != 1:
        raise UserError(
            "unlabeled: has to be all local or all on S3" if kept else "unlabeled: no face beside those with a label"
        )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": kept}), sink, compression="zstd")
    storage.write_bytes(storage.join(folder, _UNLABELED), sink.getvalue().to_pybytes())
    return len(kept)


def _read_unlabeled(folder: str) -> list[str]:
    table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, _UNLABELED))))
    uris: list[str] = table["uri"].to_pylist()
    return uris


# --- run and publication ---


def _run(inputs: Inputs, folder: str, start: Start) -> Outcome:
    from ray_fer import cluster
    from ray_fer.feedback.actor import get_feedback_actor
    from ray_fer.models.backbone import checkpoint_activations
    from ray_fer.training.build_recipe import build_model
    from ray_fer.training.runner import Run, fit

    config = inputs.config
    model, *_ = build_model(inputs)  # weights that do not fit are found here
    if config.checkpoint_activations:
        checkpoint_activations(model, str(config.backbone))
    cluster.connect()
    # Held here, or the actor would end with the rank that asked first.
    classes = inputs.labeled.classes
    actor = get_feedback_actor(inputs.feedback, classes, config.feedback_parts) if inputs.feedback else None
    log.info(
        "training %s at %d px on %d labelled, %d pseudo-labelled and %d unlabeled faces, %d classes",
        *(
            config.backbone,
            config.image_size,
            len(inputs.labeled),
            _pseudo_count(inputs),
            start.unlabeled,
            len(classes),
        ),
    )
    warn_of_thin_halves(inputs)
    run = Run(
        folder=folder,
        make=functools.partial(make_recipe, config, start, folder),
        workers=config.workers,
        zero_stage=config.zero_stage,
        precision=config.precision,
        max_failures=config.max_failures,
        on_bad_loss=config.on_bad_loss,
    )
    outcome = fit(run)
    del actor
    return outcome


def _publish(out: str, inputs: Inputs, outcome: Outcome, identity: dict[str, Any], start: Start) -> None:
    from ray_fer.training.build_recipe import build_model, plain_weights

    model, mean, std = build_model(inputs)
    model.load_state_dict(plain_weights(inputs, outcome.weights, model))
    assert inputs.config.image_size is not None
    selection = inputs.selection.info if inputs.selection else None
    provenance = {
        "identity": identity,
        "config": inputs.config.model_dump(),
        "counts": {
            "labeled": len(inputs.labeled),
            "val": len(inputs.val),
            "feedback_val": int(inputs.feedback_rows.sum()),
            "pseudo": _pseudo_count(inputs),
            "unlabeled": start.unlabeled,
        },
        "parents": {"init": inputs.init.id if inputs.init else None, "selection": selection},
        "feedback": {
            "uri": inputs.feedback,
            "version_at_start": start.feedback_version,
            "version_of_best": outcome.best.get("trained_under_feedback"),
        },
        **environment(),
    }
    save_artifact(
        *(out, model),
        classes=inputs.labeled.classes,
        image_size=inputs.config.image_size,
        mean=mean,
        std=std,
        metrics={
            "val": outcome.best,
            "history": outcome.history,
            "resumed": outcome.resumed,
            "labelled_counts": np.bincount(inputs.labeled.labels, minlength=len(inputs.labeled.classes)).tolist(),
        },
        provenance=provenance,
        temperature=outcome.best.get("temperature", 1.0),  # a run that an older version began has none
    )


def _summary(out: str) -> dict[str, Any]:
    artifact = open_artifact(out)
    provenance = storage.read_json(storage.join(out, PROVENANCE))
    best, resumed = artifact.metrics["val"], artifact.metrics["resumed"]
    return {
        "model": out,
        "id": artifact.id,
        "classes": list(artifact.classes),
        "val_macro_f1": best["macro_f1"],
        "val_accuracy": best["accuracy"],
        "choice_macro_f1": best["choice"]["macro_f1"],
        "feedback_macro_f1": best["feedback"]["macro_f1"],
        "temperature": artifact.temperature,
        "best_epoch": best["epoch"],
        "epochs": len(artifact.metrics["history"]),
        **provenance["counts"],
        "feedback_version": best.get("feedback_version"),
        "resumed_from_epoch": resumed[-1] if resumed else None,
    }


def _pseudo_count(inputs: Inputs) -> int:
    return len(inputs.selection.uris) if inputs.selection else 0
