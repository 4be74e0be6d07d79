"""The arrays that a head learns from, read from the table of the unlabeled faces and that of the labelled ones."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from deltalake import DeltaTable
from numpy.typing import NDArray

from ray_fer.config import section_config
from ray_fer.data.loading import report_bad
from ray_fer.data.manifests import Manifest
from ray_fer.data.splits import clusters_of
from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import fit_temperature
from ray_fer.heads.recipe import Data
from ray_fer.heads.rounds import soft_labels
from ray_fer.jobs.head_inputs import HeadInputs, embed_labelled
from ray_fer.labeling.config import SelectPseudoLabelsConfig
from ray_fer.labeling.embeddings import NOTHING, Embeddings
from ray_fer.labeling.exclusions import read_exclusions
from ray_fer.labeling.predictions import newest_predictions
from ray_fer.labeling.select import model_in
from ray_fer.labeling.table import open_table, table_embedding
from ray_fer.models.artifact import Artifact
from ray_fer.models.model_id import made_with
from ray_fer.models.teacher import Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Gathered:
    """The arrays, and where the rows are from.

    Attributes:
        data: What the recipe takes.
        labeled: The labelled rows that have an embedding.
        val: Likewise.
        n_unlabeled: N.
        version: Of their table.
        models: Ids of the teachers and of the further models in it.
        left_out: How many rows or objects of it are left out for which reason.
    """

    data: Data
    labeled: Manifest
    val: Manifest
    n_unlabeled: int
    version: int
    models: list[str]
    left_out: dict[str, int]


def gather(inputs: HeadInputs, teachers: Sequence[Artifact], folder: Path) -> Gathered:
    """Embeds the labelled pictures and reads everything that is learnt from.

    Args:
        inputs: Of the job.
        teachers: Whose embeddings are put side by side.
        folder: Where the memory map of the unlabeled ones goes.

    Raises:
        UserError: If the table lacks embeddings or predictions, or too many labelled pictures have no embedding.
    """
    table = _open_table(inputs, teachers)
    selecting = _selecting(inputs, [*teachers, *inputs.also])
    models = [model_in(table, each, selecting) for each in [*teachers, *inputs.also]]
    ours, theirs = models[: len(teachers)], models[len(teachers) :]
    embeddings, places = _labelled_embeddings(inputs, teachers, ours, folder)
    kept = {name: _embedded(name, getattr(inputs, name), places) for name in ("labeled", "val")}
    labeled, val = inputs.labeled.take(kept["labeled"]), inputs.val.take(kept["val"])
    outside = [_temperature(inputs, each, model) for each, model in zip(inputs.also, theirs, strict=True)]
    unlabeled = Embeddings(table, ours, read_exclusions(selecting.selection), theirs)
    edges = np.cumsum([0, *unlabeled.dimensions]).tolist()
    data = Data(
        labeled=embeddings[[places[uri] for uri in labeled.uris]],
        labels=labeled.labels,
        groups=_groups(labeled),
        unlabeled=unlabeled.write(folder / "unlabeled"),
        val=embeddings[[places[uri] for uri in val.uris]],
        val_labels=val.labels,
        feedback_rows=inputs.feedback_rows[kept["val"]],
        columns=list(itertools.pairwise(edges)),
        n_classes=len(labeled.classes),
        outside=[soft_labels(unlabeled.probs(number), each) for number, each in enumerate(outside, len(ours))],
    )
    log.info("%d labelled and %d unlabeled faces, embeddings of %d numbers", len(labeled), len(unlabeled), edges[-1])
    return Gathered(data, labeled, val, len(unlabeled), table.version(), models, unlabeled.left_out)


def _open_table(inputs: HeadInputs, teachers: Sequence[Artifact]) -> DeltaTable:
    table = open_table(inputs.place, inputs.labeled.classes)
    if table is None:
        raise UserError(f"table={inputs.place}: no predictions table there")
    for each in teachers:
        if table_embedding(table, each.id) is None:
            what = f"no embeddings of teacher={each.uri} (model {each.id})"
            raise UserError(f"table={inputs.place}: {what}; pseudo_label embed=true makes them")
    return table


def _selecting(inputs: HeadInputs, teachers: Sequence[Teacher]) -> SelectPseudoLabelsConfig:
    config = inputs.config
    # A picture with a true label needs no pseudo-label, and one of the validation set must not have any.
    exclude = [uri for uri in (config.labeled, config.val, config.feedback_val) if uri]
    values: dict[str, Any] = {key: config.label[key] for key in ("precision", "flip", "faces") if key in config.label}
    values |= {"table": inputs.place, "teacher": [each.uri for each in teachers], "out": config.out}
    values["selection"] = {"exclude": exclude}
    selecting: SelectPseudoLabelsConfig = section_config("train_head", "select_pseudo_labels", values)
    return selecting


def _labelled_embeddings(
    inputs: HeadInputs, teachers: Sequence[Artifact], models: Sequence[str], folder: Path
) -> tuple[NDArray[np.float16], dict[str, int]]:
    """Embeddings (M, D) of labelled pictures side by side, and the row of each URI."""
    place = embed_labelled(inputs, teachers, models[0], embed=True)
    table = open_table(place)
    assert table is not None
    found = Embeddings(table, [_of_crops(*each) for each in zip(teachers, models, strict=True)], copies=True)
    return found.write(folder / "labelled"), {uri: row for row, uri in enumerate(found.uris())}


def _embedded(name: str, manifest: Manifest, places: dict[str, int]) -> NDArray[np.bool_]:
    """Which rows of a manifest have an embedding, bool (N,).

    Raises:
        UserError: If too many have none.
    """
    kept = np.array([uri in places for uri in manifest.uris])
    for number, row in enumerate(np.flatnonzero(~kept).tolist(), 1):
        report_bad(name, manifest.uris[row], "it has no embedding", number, len(kept))
    return kept


def _temperature(inputs: HeadInputs, teacher: Teacher, model: str) -> float:
    """By which the feedback half of ``val`` calibrates a further model; the labelled faces it may have learnt from."""
    table = open_table(embed_labelled(inputs, [teacher], model, embed=False))
    assert table is not None
    found, _ = newest_predictions(table, [_of_crops(teacher, model)], NOTHING, copies=True)
    uris = pl.concat([part for _, part in found.column("uri")] or [pl.Series(dtype=pl.String)])
    probs = dict(zip(uris, found.probs(0, len(inputs.labeled.classes)), strict=True))
    rows = [row for row in np.flatnonzero(inputs.feedback_rows).tolist() if inputs.val.uris[row] in probs]
    if not rows:
        return 1.0
    return fit_temperature([probs[inputs.val.uris[row]] for row in rows], inputs.val.labels[rows])


def _of_crops(teacher: Teacher, model: str) -> str:
    """The id of ``model`` for pictures in which no face is looked for."""
    made = made_with(model)
    return teacher.model_id(made["precision"], made["flip"])


def _groups(manifest: Manifest) -> list[str]:
    """The same name for rows that a shared picture, subject, group or video connects."""
    groups = [""] * len(manifest)
    for number, rows in enumerate(clusters_of(manifest)):
        for row in rows:
            groups[row] = str(number)
    return groups
