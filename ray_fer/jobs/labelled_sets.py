"""The labelled sets of a training: what is there of them, and the half of the validation set that is fed back."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.data.loading import MAX_BAD_SHARE
from ray_fer.data.manifests import Manifest, check_disjoint, read_manifest
from ray_fer.data.read import stat_objects
from ray_fer.data.splits import feedback_half, join_validation
from ray_fer.errors import UserError
from ray_fer.training.run_folder import digest

log = logging.getLogger(__name__)


def read_labeled(uri: str, classes: Sequence[str] | None, quiet: bool = False) -> Manifest:
    """The readable labelled rows to train on.

    Raises:
        UserError: If there is none, or only one class.
    """
    return several_classes(read_rows("labeled", uri, classes, quiet), uri)


def manifest_digest(manifest: Manifest) -> str:
    """What tells one labelled set from another in the identity of a run: rows, labels and classes."""
    return digest([manifest.uris, manifest.labels.tolist(), manifest.classes])


def several_classes(labeled: Manifest, uri: str | None) -> Manifest:
    """``labeled``, once it is known to have several classes.

    Raises:
        UserError: If it has one.
    """
    if len(labeled.classes) < 2:
        # It would train to the end, with a loss of 0 and a macro-F1 of 1.
        raise UserError(f"labeled={uri}: one class, {labeled.classes[0]}; there is nothing to tell it from")
    return labeled


def read_rows(name: str, uri: str, classes: Sequence[str] | None, quiet: bool = False) -> Manifest:
    """The labelled rows whose picture is there; what is on S3 is only found missing when it is read.

    Raises:
        UserError: If the manifest cannot be read, or no labelled picture of it or too few are there.
    """
    try:
        manifest = read_manifest(uri, classes).labeled()
    except UserError as error:
        raise UserError(f"{name}={error}" if str(error).startswith(uri) else f"{name}={uri}: {error}") from None
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


def read_validation(
    labeled: Manifest, val: str, feedback_val: str | None, quiet: bool = False
) -> tuple[Manifest, NDArray[np.bool_]]:
    """The readable validation rows, and which of them drive the feedback, bool (V,).

    Raises:
        UserError: If a set cannot be read, or shares a picture, subject, group or video with another.
    """
    chosen = read_rows("val", val, labeled.classes, quiet)
    check_disjoint(labeled, chosen)
    if feedback_val is None:
        return chosen, feedback_half(chosen)
    fed_back = read_rows("feedback_val", feedback_val, labeled.classes, quiet)
    check_disjoint(labeled, fed_back, "labeled and feedback_val")
    check_disjoint(chosen, fed_back, "val and feedback_val")
    return join_validation(chosen, fed_back)
