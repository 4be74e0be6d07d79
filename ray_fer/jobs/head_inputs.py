"""What training a head is given, opened and found to fit, and the labelling that it needs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.config import section_config
from ray_fer.data.digests import Contents, contents_of
from ray_fer.data.manifests import Manifest
from ray_fer.data.sources import check_sources
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError, prefixed
from ray_fer.jobs.backbone_inputs import picture_size
from ray_fer.jobs.config import TrainHeadConfig
from ray_fer.jobs.labelled_sets import read_labeled, read_validation
from ray_fer.jobs.pseudo_label import embed_pictures, pseudo_label
from ray_fer.models.artifact import CONFIG, Artifact, open_artifact, save_artifact
from ray_fer.models.model_id import made_with
from ray_fer.models.pretrained import local_pretrained, pretrained_architecture, start_licence
from ray_fer.models.teacher import Teacher, check_teacher, check_together, open_teacher
from ray_fer.training.run_folder import environment

log = logging.getLogger(__name__)

LABELLED, EMBEDDER, PREDICTIONS = "labelled", "embedder", "predictions"
_SET_BY_JOB = {"source", "teacher", "table", "select", "feedback", "selection", "watch", "dry_run", "embed"}


@dataclass(frozen=True, eq=False)
class HeadInputs:
    """What the arguments point at, opened and found to fit.

    Attributes:
        config: With ``table`` and ``classes`` resolved.
        labeled: Labelled rows.
        val: Labelled rows; with those of ``feedback_val`` where that is given.
        feedback_rows: Which rows of ``val`` fit temperatures, bool (V,).
        teachers: Whose features are taken; empty with ``pretrained``, until `embedder` has made one.
        also: Further models.
    """

    config: TrainHeadConfig
    labeled: Manifest
    val: Manifest
    feedback_rows: NDArray[np.bool_]
    teachers: list[Artifact]
    also: list[Teacher]

    @functools.cached_property
    def labeled_contents(self) -> Contents:
        """What the pictures of ``labeled`` hold, read once."""
        return contents_of(self.labeled.uris)

    @functools.cached_property
    def val_contents(self) -> Contents:
        """What the pictures of ``val`` hold, read once."""
        return contents_of(self.val.uris)

    @property
    def place(self) -> str:
        """The table of the unlabeled faces."""
        assert self.config.table is not None
        return self.config.table


def open_head_inputs(config: TrainHeadConfig) -> HeadInputs:
    """Opens what ``config`` points at.

    Raises:
        UserError: For anything wrong with the arguments or with what they point at.
    """
    if (config.teacher is None) == (config.pretrained is None):
        raise UserError("teacher and pretrained: give one of them")
    if config.table is None and config.source is None:
        raise UserError("table and source: give one of them, where the unlabeled faces are")
    if taken := sorted(set(config.label) & _SET_BY_JOB):
        raise UserError(f"train_head: label.{taken[0]}: set by the job")
    teachers = [_open_artifact(uri) for uri in config.teacher or ()]
    sides = [str(each.image_size) for each in teachers]
    if len(set(sides)) > 1:
        raise UserError(
            f"teacher=[{','.join(each.uri for each in teachers)}]: they see crops of {' and '.join(sides)} px; "
            "side by side they have to see the same"
        )
    also = []
    for uri in config.also:
        with prefixed("also="):
            also.append(open_teacher(uri))
    ours = {each.id for each in teachers}
    if everyone := [*teachers, *(each for each in also if each.id not in ours)]:
        check_together(everyone)
    for each in everyone:
        check_teacher(each, device="auto" if each in teachers else "cpu")
    if config.source:
        check_sources(config.source)
    classes = config.classes or (everyone[0].classes if everyone else None)
    labeled = read_labeled(config.labeled, classes)
    if np.count_nonzero(labeled.counts()) < 2:
        name = labeled.classes[labeled.labels[0]]
        raise UserError(
            f"labeled={config.labeled}: all faces are of one class, {name}; there is nothing to tell it from"
        )
    val, feedback_rows = read_validation(labeled, config.val, config.feedback_val)
    for name, manifest in (("labeled", labeled), ("val", val)):
        if faces := [uri for uri in manifest.uris if split_face(uri)[0] != uri]:
            raise UserError(f"{name}: {faces[0]} is a face in a picture; train_head takes crops")
    if everyone and labeled.classes != everyone[0].classes:
        theirs, ours_are = ", ".join(everyone[0].classes), ", ".join(labeled.classes)
        raise UserError(f"classes: {ours_are}; those of {everyone[0].uri} are {theirs}")
    out = storage.normalise(config.out)
    places = {"table": config.table or storage.join(out, PREDICTIONS), "classes": list(labeled.classes)}
    return HeadInputs(config.model_copy(update=places), labeled, val, feedback_rows, teachers, also)


def _open_artifact(uri: str) -> Artifact:
    with prefixed("teacher="):
        teacher = open_teacher(uri)
    if not isinstance(teacher, Artifact):
        raise UserError(
            f"teacher={uri}: no model of ray-fer, so no net can be published with it; "
            "pretrained= takes a timm folder, and also= any teacher"
        )
    return teacher


# --- labelling ---


def embedder(inputs: HeadInputs) -> Artifact:
    """The artifact of the pretrained net, whose classifier knows nothing, made where it is not there yet."""
    from ray_fer.models.backbone import build_backbone, check_backbone, normalisation

    config = inputs.config
    place = storage.join(storage.normalise(config.out), EMBEDDER)
    if storage.exists(storage.join(place, CONFIG)):
        return open_artifact(place)
    assert config.pretrained is not None
    local, name = local_pretrained(config.pretrained), pretrained_architecture(config.pretrained)
    if name is None:
        raise UserError(f"pretrained={config.pretrained}: a file does not say its backbone; give a folder")
    check_backbone(name)
    # A net at rest cannot learn what small faces look like, as one that is fine-tuned does.
    size = config.image_size or picture_size(inputs.labeled.uris, name, enlarged=4)
    model = build_backbone(name, len(inputs.labeled.classes), size, pretrained=local, depths=True)
    mean, std = normalisation(model)
    licence = start_licence(config.pretrained)
    saved = save_artifact(
        *(place, model),
        classes=inputs.labeled.classes,
        image_size=size,
        mean=mean,
        std=std,
        metrics={},
        provenance={"config": {"pretrained": config.pretrained}, "parents": {"licence": licence}, **environment()},
    )
    assert saved is not None
    return saved


def label_sources(inputs: HeadInputs, teachers: Sequence[Artifact]) -> None:
    """Labels what the sources hold beyond the table: by the teachers with embeddings, by the others without."""
    config = inputs.config
    ours = {each.id for each in teachers}
    others = [each.uri for each in inputs.also if each.id not in ours]
    source = config.model_dump()["source"]
    for uris, embed in (([each.uri for each in teachers], True), (others, False)):
        if uris:
            values = {"source": source, "teacher": uris, "table": inputs.place, "embed": embed}
            pseudo_label(section_config("train_head: label", "pseudo_label", _settings(config, embed) | values))


def embed_labelled(inputs: HeadInputs, teachers: Sequence[Teacher], model: str, embed: bool) -> str:
    """Labels what the table of the labelled pictures lacks, in the number format of ``model``; gives its URI."""
    config = inputs.config
    place = storage.join(storage.normalise(config.out), LABELLED)
    settings = _settings(config, embed) | made_with(model) | {"faces": "none", "max_failure_share": 1.0}
    pictures = [*inputs.labeled.uris, *inputs.val.uris]
    embed_pictures(pictures, [each.uri for each in teachers], place, **settings, embed=embed)
    return place


def _settings(config: TrainHeadConfig, embed: bool) -> dict[str, Any]:
    """Keys of the labelling; what the teachers run on does not have to suit the further models."""
    label = {key: value for key, value in config.label.items() if embed or key not in ("engine", "precision")}
    return {"device": config.device, "workers": config.workers} | label
