"""What training a backbone is given, opened and found to fit: before a cluster is touched, and again on every rank."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_fer import storage
from ray_fer.data.decode import DecodeError, one_error
from ray_fer.data.digests import Contents, contents_of, describe_unread
from ray_fer.data.loading import MAX_PICTURE_BYTES
from ray_fer.data.manifests import Manifest
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.data.sources import list_sources
from ray_fer.data.splits import missing_in_a_half
from ray_fer.data.uris import place_of
from ray_fer.errors import UserError
from ray_fer.feedback.controller import MIN_EXAMPLES
from ray_fer.jobs.labelled_sets import read_labeled, read_validation, several_classes
from ray_fer.methods.config import NO_FEEDBACK, TrainBackboneConfig
from ray_fer.models.artifact import Artifact, open_artifact
from ray_fer.models.pretrained import pretrained_architecture
from ray_fer.selection.file import Selection, read_selection

log = logging.getLogger(__name__)


_SMALLEST, _LARGEST, _MULTIPLE, _SAMPLE = 48, 112, 16, 200


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the arguments point at, opened and found to fit.

    Attributes:
        config: With ``backbone``, ``image_size``, ``classes`` and the numbers of the method resolved.
        labeled: Readable labelled rows; none for a method without labels.
        val: Readable labelled rows; with the rows of ``feedback_val`` where that is given.
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
        """What the pictures of ``labeled`` hold, read once."""
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
                f"val: {describe_unread(doubtful, len(self.val))}, and a copy could be trained on; "
                "take it out of its manifest"
            )
        return self.val_contents


@dataclass(frozen=True)
class Start:
    """What a run keeps from its first start on, however often it is interrupted.

    Attributes:
        run_name: tells the feedback who reports.
        feedback_version: whose factors the first epoch uses.
        unlabeled: how many unlabeled faces there were; their URIs are in the run's folder.
        unlabeled_digest: of their listing, None without; also of runs that an older version began.
    """

    run_name: str
    feedback_version: int | None
    unlabeled: int = 0
    unlabeled_digest: str | None = None


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
    from ray_fer.methods.registry import check_arguments, resolved

    method = check_arguments(config)
    init, backbone = open_start(config)
    selection = read_selection(config.pseudo, labeled.classes) if config.pseudo else None
    default = storage.join(storage.normalise(config.out), "feedback")
    feedback = config.feedback or (default if "feedback" in method.takes and (selection or config.unlabeled) else None)
    side = config.image_size or (init.image_size if init else None)
    config = with_defaults(resolved(config), init).model_copy(
        update={
            "backbone": backbone,
            "image_size": side or picture_size(_sample(labeled, config), backbone if config.pretrained else None),
            "classes": list(labeled.classes),
        }
    )
    return Inputs(config, labeled, val, feedback_rows, init, selection, None if feedback == NO_FEEDBACK else feedback)


def open_start(config: TrainBackboneConfig) -> tuple[Artifact | None, str]:
    """The artifact that training starts from, None without ``init``, and the name of its backbone.

    Raises:
        UserError: for an artifact that cannot be opened, and a backbone that timm does not have.
    """
    from ray_fer.models.backbone import DEFAULT_BACKBONE, check_backbone

    init = open_artifact(config.init) if config.init else None
    named = init.architecture if init else pretrained_architecture(config.pretrained) if config.pretrained else None
    backbone = config.backbone or named or DEFAULT_BACKBONE
    check_backbone(backbone)
    return init, backbone


def with_defaults(config: TrainBackboneConfig, init: Artifact | None) -> TrainBackboneConfig:
    """``config`` with the defaults of what it starts from: a pretrained net, or a model that came from one."""
    return config.with_defaults(bool(config.pretrained) or (init is not None and init.takes_depths))


def _sample(labeled: Manifest, config: TrainBackboneConfig) -> list[str]:
    """The labelled pictures, or some unlabeled ones where there are none."""
    if len(labeled) or not config.unlabeled:
        return labeled.uris
    pages = (page["uri"].to_pylist() for page in list_sources(config.unlabeled, Counter()))
    return list(itertools.islice(itertools.chain.from_iterable(pages), _SAMPLE))


def picture_size(uris: list[str], pretrained: str | None = None, enlarged: int = 2) -> int:
    """The side in pixels of the crops for a model, from the median side of a sample of the pictures.

    Args:
        uris: Of the pictures.
        pretrained: Name of a backbone that has seen larger pictures; it gets ``enlarged`` times the median, as a
            multiple of 32 of at most its own size.
        enlarged: By what the median is multiplied then.

    Returns:
        Without ``pretrained`` the median, as a multiple of 16 within [48, 112].
    """
    sample = [Item(uri, "", 0) for uri in uris[:: max(1, len(uris) // _SAMPLE)]]
    sides = []
    for read in read_objects(sample, MAX_PICTURE_BYTES):
        try:
            with one_error(), Image.open(io.BytesIO(read.data or b"")) as image:
                sides.append(sum(image.size) / 2)
        except DecodeError:
            continue
    median = float(np.median(sides)) if sides else _SMALLEST
    if pretrained is not None:
        from ray_fer.models.backbone import own_size

        return min(math.ceil(enlarged * median / 32) * 32, own_size(pretrained))
    return int(np.clip(round(median / _MULTIPLE) * _MULTIPLE, _SMALLEST, _LARGEST))


def _read_manifests(config: TrainBackboneConfig, quiet: bool) -> tuple[Manifest, Manifest, NDArray[np.bool_]]:
    if config.init and config.pretrained:
        raise UserError("init and pretrained: give one of them")
    if config.labeled is None and config.val is None:
        nothing = Manifest([], np.empty(0, np.int64), open_artifact(config.init).classes if config.init else ())
        return nothing, nothing, np.empty(0, bool)
    labeled = _read_labeled(config, quiet)
    if config.val is None:
        return labeled, labeled.take(np.zeros(len(labeled), bool)), np.empty(0, bool)
    return labeled, *read_validation(labeled, config.val, config.feedback_val, quiet)


def _read_labeled(config: TrainBackboneConfig, quiet: bool) -> Manifest:
    if config.labeled is not None:
        return read_labeled(config.labeled, config.classes, quiet)
    if config.init is None:
        from ray_fer.methods.registry import find_method

        name = config.method.name
        also = f", and a method without labels, which {name} needs" if "labeled" in find_method(name).needs else ""
        raise UserError(f"labeled=null: give init=, which has the classes and the size{also}")
    return several_classes(Manifest([], np.empty(0, np.int64), open_artifact(config.init).classes), None)


def warn_of_doubts(inputs: Inputs) -> None:
    """Says what the feedback or the choice cannot see, for want of validation faces, and what starts too early."""
    from ray_fer.methods.registry import find_method

    config, advice = inputs.config, find_method(inputs.config.method.name).from_scratch
    if advice and not (config.init or config.pretrained):
        log.warning("method=%s from scratch: %s", config.method.name, advice)
    if lonely := missing_in_a_half(inputs.val, inputs.feedback_rows):
        log.warning("val: only one half of it has any of %s: feedback or choice is blind there", ", ".join(lonely))
    there, wanted = int(inputs.feedback_rows.sum()), MIN_EXAMPLES
    if inputs.feedback is not None and there < wanted:
        log.warning("val: %d faces in its feedback half; the feedback acts on no less than %d", there, wanted)


def _surely_gone(read: Read) -> bool:
    # Of what lies inside a file, the file may have been what could not be read.
    return read.status == "missing" and place_of(read.item.uri).format == "auto"
