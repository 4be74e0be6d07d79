"""What training a backbone is given, opened and found to fit: before a cluster is touched, and again on every rank."""

from __future__ import annotations

import functools
import io
import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ray_fer import storage
from ray_fer.data.decode import DecodeError, one_error
from ray_fer.data.digests import Contents, contents_of, told
from ray_fer.data.loading import MAX_BAD_SHARE, MAX_PICTURE_BYTES
from ray_fer.data.manifests import Manifest, check_disjoint, read_manifest
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.data.sources import list_sources
from ray_fer.data.sources.stats import stat_objects
from ray_fer.data.sources.uris import parse, split_face
from ray_fer.data.splits import feedback_half, join_validation, missing_in_a_half
from ray_fer.errors import UserError
from ray_fer.feedback.controller import MIN_EXAMPLES
from ray_fer.labeling.table import open_table, scan_rows
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.models.artifact import Artifact, open_artifact
from ray_fer.models.folder_facts import architecture_of
from ray_fer.selection.file import Selection, read_selection
from ray_fer.training.run_folder import digest

log = logging.getLogger(__name__)

NO_FEEDBACK = "none"
UNLABELED = "unlabeled.parquet"
"""The listing of the unlabeled faces, in the run's folder and then beside the model: ``uri`` and ``identity``."""

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

    @functools.cached_property
    def val_contents(self) -> Contents:
        """What the pictures of ``val`` hold, read once."""
        return contents_of(self.val.uris)

    @functools.cached_property
    def labeled_contents(self) -> Contents:
        """Likewise of ``labeled``."""
        return contents_of(self.labeled.uris)

    def held_out(self) -> Contents:
        """`val_contents`, once it is known to be all that the model is validated on.

        A picture that is not there any more is in no validation either.

        Raises:
            UserError: for a picture that is there, or may be, and could not be read.
        """
        doubtful = [read for read in self.val_contents.unread if not _surely_gone(read)]
        if doubtful:
            raise UserError(
                f"val: {told(doubtful, len(self.val))}, and a copy could be trained on; take it out of its manifest"
            )
        return self.val_contents


def open_inputs(config: TrainBackboneConfig, quiet: bool = False) -> Inputs:
    """Opens what ``config`` points at and resolves what it leaves open.

    Args:
        config: of the job.
        quiet: say nothing of pictures that are left out.

    Raises:
        UserError: for anything wrong with the arguments or with what they point at.
    """
    labeled, val, feedback_rows = _read_manifests(config, quiet)
    # It imports torch, for which a mistyped path should not wait.
    from ray_fer.methods.find_recipe import check_arguments, find_recipe

    kind = find_recipe(config.recipe)
    check_arguments(config, kind)
    init, backbone = open_start(config)
    selection = read_selection(config.pseudo, labeled.classes) if config.pseudo else None
    default = storage.join(storage.normalise(config.out), "feedback")
    feedback = config.feedback or (default if kind.feedback and (selection or kind.unlabeled) else None)
    resolved = config.model_copy(
        update={
            "backbone": backbone,
            "image_size": config.image_size or (init.image_size if init else picture_size(labeled.uris)),
            "classes": list(labeled.classes),
        }
    )
    return Inputs(resolved, labeled, val, feedback_rows, init, selection, None if feedback == NO_FEEDBACK else feedback)


def open_start(config: TrainBackboneConfig) -> tuple[Artifact | None, str]:
    """The artifact that training starts from, None without ``init``, and the name of its backbone.

    Raises:
        UserError: for an artifact that cannot be opened, and a backbone that timm does not have.
    """
    from ray_fer.models.backbone import DEFAULT_BACKBONE, check_backbone

    init = open_artifact(config.init) if config.init else None
    backbone = config.backbone or (init.architecture if init else _pretrained_name(config)) or DEFAULT_BACKBONE
    check_backbone(backbone)
    return init, backbone


def picture_size(uris: list[str]) -> int:
    """The median side in pixels of a sample of the pictures, as a multiple of 16 within [48, 112]."""
    sample = [Item(uri, "", 0) for uri in uris[:: max(1, len(uris) // _SAMPLE)]]
    sides = []
    for read in read_objects(sample, MAX_PICTURE_BYTES):
        try:
            with one_error(), Image.open(io.BytesIO(read.data or b"")) as image:
                sides.append(sum(image.size) / 2)
        except DecodeError:
            continue
    median = float(np.median(sides)) if sides else _SMALLEST
    return int(np.clip(round(median / _MULTIPLE) * _MULTIPLE, _SMALLEST, _LARGEST))


def _read_manifests(config: TrainBackboneConfig, quiet: bool) -> tuple[Manifest, Manifest, NDArray[np.bool_]]:
    if config.init and config.pretrained:
        raise UserError("init and pretrained: give one of them")
    labeled = _readable("labeled", read_manifest(config.labeled, config.classes), quiet)
    if len(labeled.classes) < 2:
        # It would train to the end, with a loss of 0 and a macro-F1 of 1.
        raise UserError(f"labeled={config.labeled}: one class, {labeled.classes[0]}; there is nothing to tell it from")
    val = _readable("val", read_manifest(config.val, labeled.classes), quiet)
    check_disjoint(labeled, val)
    if config.feedback_val is None:
        return labeled, val, feedback_half(val)
    feedback_val = _readable("feedback_val", read_manifest(config.feedback_val, labeled.classes), quiet)
    check_disjoint(labeled, feedback_val, "labeled and feedback_val")
    check_disjoint(val, feedback_val, "val and feedback_val")
    return labeled, *join_validation(val, feedback_val)


def _readable(name: str, manifest: Manifest, quiet: bool) -> Manifest:
    """The labelled rows whose picture is there; what is on S3 is only found missing when it is read."""
    manifest = manifest.labeled()
    if not len(manifest):
        raise UserError(f"{name}: no labelled row")
    local = [uri for uri in manifest.uris if not storage.is_remote(uri)]
    gone = {uri for uri, (identity, _) in zip(local, stat_objects(local), strict=True) if not identity}
    there = np.array([uri not in gone for uri in manifest.uris])
    missing = int((~there).sum())
    if missing == 0:
        return manifest
    first = manifest.uris[int(np.argmin(there))]
    if missing > MAX_BAD_SHARE * len(there):
        raise UserError(f"{name}: {missing} of {len(there)} pictures are not there, the first: {first}")
    if not quiet:
        log.warning("%s: %d of %d pictures are not there and left out, the first: %s", name, missing, len(there), first)
    return manifest.take(there)


def warn_of_doubts(inputs: Inputs) -> None:
    """Says what the feedback or the choice cannot see, for want of validation faces, and what starts too early."""
    from ray_fer.methods.find_recipe import find_recipe

    config, advice = inputs.config, find_recipe(inputs.config.recipe).from_scratch
    if advice and not (config.init or config.pretrained):
        log.warning("recipe=%s from scratch: %s", config.recipe, advice)
    if lonely := missing_in_a_half(inputs.val, inputs.feedback_rows):
        log.warning("val: only one half of it has any of %s: feedback or choice is blind there", ", ".join(lonely))
    there, wanted = int(inputs.feedback_rows.sum()), MIN_EXAMPLES
    if inputs.feedback is not None and there < wanted:
        log.warning("val: %d faces in its feedback half; the feedback acts on no less than %d", there, wanted)


def _pretrained_name(config: TrainBackboneConfig) -> str | None:
    if not config.pretrained or not storage.is_dir(config.pretrained):
        return None
    return architecture_of(config.pretrained)


def check_selection(inputs: Inputs) -> None:
    """Makes sure that no pseudo-label is of a picture of the validation set, by URI or by content.

    Raises:
        UserError: when there is one, for the score would be a leak; or when one cannot be read that may be.
    """
    if inputs.selection is None:
        return
    config, selection, held_out = inputs.config, inputs.selection, pictures_of(inputs.val)
    contents = inputs.held_out()
    copies = {item.uri for item in contents.copies(Item(uri, "", 0) for uri in _suspects(selection, contents))}
    found = [uri for uri in selection.uris if uri in copies or split_face(uri)[0] in held_out]
    if found:
        manifests = ",".join(uri for uri in (config.val, config.feedback_val) if uri)
        raise UserError(
            f"pseudo={config.pseudo}: {len(found)} of {len(selection.uris)} pseudo-labels are of pictures of the "
            f"validation set, the first: {found[0]}; select anew with selection.exclude=[{manifests}]"
        )


def _suspects(selection: Selection, contents: Contents) -> list[str]:
    """Which of the selected may be copies of ``contents``: those that were when they were labelled.

    All of them where the table that would say so is gone.
    """
    models = [model for model in selection.info.get("models") or [selection.info.get("model")] if model]
    try:
        table = open_table(selection.info["table"])
    except UserError:
        table = None
    if table is None or not models:
        return list(selection.uris)
    same = pl.col("digest").is_in(list(contents.digests))
    rows = pl.concat([scan_rows(table, model).filter(same).select("uri") for model in models])
    return sorted({*rows.collect(engine="streaming")["uri"]} & {*selection.uris})


def warn_of_copies(inputs: Inputs) -> None:
    """Says whether labelled faces are of pictures of the validation set; public sets hold such, so it is no error."""
    for name, manifest, contents in (
        ("labeled", inputs.labeled, inputs.labeled_contents),
        ("val", inputs.val, inputs.val_contents),
    ):
        if contents.unread:
            log.warning("%s: %s; copies of them are not found", name, told(contents.unread, len(manifest)))
    ours, theirs = inputs.labeled_contents.digests, inputs.val_contents.digests
    found = sorted((ours[each], theirs[each]) for each in ours.keys() & theirs.keys())
    if found:
        log.warning(
            "val: %d of %d pictures of labeled have the bytes of one of val, the first: %s and %s; "
            "the score is too good by that",
            *(len(found), len(ours), *found[0]),
        )


def list_unlabeled(inputs: Inputs, folder: str) -> tuple[int, str]:
    """Writes down what the sources hold now, for a run shall see the same faces however often it is interrupted.

    Args:
        inputs: of the job.
        folder: of the run.

    Returns:
        How many faces there are, those of ``labeled`` and ``val`` left out, and whatever has the bytes of one of them;
        and the SHA-256 of their URIs and identities, in whatever order they were listed.

    Raises:
        UserError: for a source that is not there or holds no face, and when some are local and some are not.
    """
    counts: Counter[str] = Counter()
    assert inputs.config.unlabeled is not None
    held_out, known = inputs.held_out(), pictures_of(inputs.labeled) | pictures_of(inputs.val)
    pages = list_sources(inputs.config.unlabeled, counts)
    columns = (page.select(["uri", "identity", "size"]).to_pydict().values() for page in pages)
    # Sources may overlap, and lists repeat themselves.
    keys = (key for page in columns for key in zip(*page, strict=True) if split_face(key[0])[0] not in known)
    items = list({key[0]: Item(*key) for key in keys}.values())
    log.info("unlabeled: %d faces are listed; those of the size of one of labeled or val are compared", len(items))
    copies = {item.uri for item in (inputs.labeled_contents | held_out).copies(items)}
    if copies:
        log.info("unlabeled: %d faces that are copies of faces of labeled or val are left out", len(copies))
    kept = [item for item in items if item.uri not in copies]
    if len({storage.is_remote(item.uri) for item in kept}) != 1:
        raise UserError(
            "unlabeled: has to be all local or all on S3" if kept else "unlabeled: no face beside those with a label"
        )
    sink = pa.BufferOutputStream()
    table = pa.table({"uri": [item.uri for item in kept], "identity": [item.identity for item in kept]})
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(storage.join(folder, UNLABELED), sink.getvalue().to_pybytes())
    return len(kept), digest(sorted((item.uri, item.identity) for item in kept))


def pictures_of(manifest: Manifest) -> set[str]:
    """URIs of the pictures that the rows are, or are faces in."""
    return {split_face(uri)[0] for uri in manifest.uris}


def _surely_gone(read: Read) -> bool:
    # Of what lies inside a file, the file may have been what could not be read.
    return read.status == "missing" and parse(split_face(read.item.uri)[0]) is None


def read_unlabeled(folder: str) -> list[str]:
    """The URIs that `list_unlabeled` wrote down."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, UNLABELED))))
    uris: list[str] = table["uri"].to_pylist()
    return uris
