"""The fast form of the loop: a head on kept embeddings, and one network that learns from what it says.

    out/head/          `train_head` from the pretrained net, with its tables and the embedder
    out/selection/     with ``distil``: the head's probabilities of all unlabeled faces
    out/student/       with ``distil``: the network that learns from them and from the labels

As in the other loop every step answers at once when it is asked again.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.config import layered, section_config
from ray_fer.documents import read_document
from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import apply_temperature
from ray_fer.heads.train import predict
from ray_fer.jobs.config import SelfTrainConfig, TrainHeadConfig
from ray_fer.jobs.loop_configs import LoopConfigs
from ray_fer.jobs.scores import scores_of_halves
from ray_fer.jobs.train_backbone import train_backbone
from ray_fer.jobs.train_head import train_head
from ray_fer.labeling.embeddings import Embeddings
from ray_fer.labeling.exclusions import read_exclusions
from ray_fer.labeling.table import open_table
from ray_fer.methods.config import NO_FEEDBACK, TrainBackboneConfig
from ray_fer.models.artifact import PROVENANCE, Artifact, load_model, open_artifact
from ray_fer.models.pretrained import pretrained_architecture
from ray_fer.models.records import Trained
from ray_fer.selection import file as selection_file
from ray_fer.selection.rule import Accepted

log = logging.getLogger(__name__)

Summary = dict[str, Any]
_SET_BY_LOOP = ("labeled", "val", "feedback_val", "source", "out", "pretrained", "teacher", "table", "also", "seed")


class HeadLoop(LoopConfigs):
    """The configs of the steps.

    Args:
        config: Of the loop.

    Raises:
        UserError: For a key that this form of the loop has no use for, or sets itself.
    """

    def __init__(self, config: SelfTrainConfig) -> None:
        super().__init__(config)
        if not config.pretrained:
            raise UserError("self_train: loop=head: pretrained: required, the net whose features the head takes")
        if config.selection:
            raise UserError(f"self_train: loop=head: selection.{min(config.selection)}: it learns from all faces")
        for number, each in enumerate(config.teachers):
            if not isinstance(each, str):
                raise UserError(f"self_train: loop=head: teachers[{number}]: it takes only models that are there")
        if taken := sorted({*config.head} & {*_SET_BY_LOOP, "rounds", "device", "workers", "label"}):
            raise UserError(f"self_train: head.{taken[0]}: set by the loop")

    def head_config(self) -> TrainHeadConfig:
        """The training of the head."""
        shared = ("labeled", "val", "feedback_val", "pretrained", "rounds", "seed", "device", "workers", "label")
        own = {key: getattr(self.config, key) for key in shared}
        fixed = {"source": self.config.model_dump()["source"], "out": self.place("head"), "also": self.config.teachers}
        config: TrainHeadConfig = section_config("self_train: head", "train_head", {**self.config.head, **own, **fixed})
        return config

    def distilled_config(self) -> TrainBackboneConfig:
        """The training of the network that learns from the head."""
        config = self.config
        values = {**layered(TrainBackboneConfig, config.train, config.student), "backbone": config.distil}
        assert config.pretrained is not None
        if pretrained_architecture(config.pretrained) != config.distil:
            values.setdefault("pretrained", None)
        # The head's labels are soft, and no feedback has changed them.
        fixed = {"pseudo": self.place("selection"), "feedback": NO_FEEDBACK}
        return self._train_config("student", "student", values, fixed)


def head_loop(config: SelfTrainConfig) -> Summary:
    """Runs what is not done yet.

    Returns:
        ``model`` (URI), its ``macro_f1`` and the ``head_macro_f1`` (each of ``val``, ``choice`` and ``feedback`` half),
        ``head`` (the summary of `train_head`), and with ``distil`` ``accepted``, how many faces it has learnt from.
    """
    loop = HeadLoop(config)
    distilled = loop.distilled_config() if config.distil else None
    told = train_head(loop.head_config())
    head = open_artifact(told["model"])
    scores = scores_of_halves(head)
    if distilled is None:
        return {"model": head.uri, "macro_f1": scores, "head_macro_f1": scores, "head": told}
    accepted = write_soft_labels(head, loop.place("selection"))
    student = open_artifact(train_backbone(distilled)["model"])
    both = {"macro_f1": scores_of_halves(student), "head_macro_f1": scores}
    return {"model": student.uri, **both, "head": told, "accepted": accepted}


def write_soft_labels(head: Artifact, out: str) -> int:
    """Writes what a head says of the unlabeled faces that it has learnt from as a selection, without inference.

    Args:
        head: A model of `train_head`.
        out: The folder of the selection; nothing is done where it holds one.

    Returns:
        The number of faces.

    Raises:
        UserError: If the table of the embeddings is not there any more.
    """
    info = storage.join(out, selection_file.INFO)
    if storage.exists(info):
        return int(read_document(info, selection_file.Outcome)["accepted"])
    provenance = read_document(storage.join(head.uri, PROVENANCE), Trained)
    known = provenance["parents"]["table"]
    uris, probs, left_out = _soft_labels(head, provenance)
    labels, even = probs.argmax(axis=1), np.ones(len(head.classes), np.float32)
    accepted = Accepted(np.ones(len(probs), np.float32), labels, probs)
    with storage.open_output(storage.join(out, selection_file.ROWS)) as file:
        rows = selection_file.to_table(uris.to_arrow(), accepted, even, head.classes, "soft")
        pq.write_table(rows, file, compression="zstd")
    counts = dict(zip(head.classes, np.bincount(labels, minlength=len(head.classes)).tolist(), strict=True))
    summary = {
        "classes": list(head.classes),
        "teachers": [head.id],
        "teacher_uris": [head.uri],
        "models": known["models"],
        "table": known["uri"],
        "version": known["version"],
        "feedback": None,
        "feedback_version": 0,
        "rule": None,
        "thresholds": {},
        "considered": len(probs),
        "left_out": left_out,
        "accepted": len(probs),
        "counts": counts,
        "predicted": counts,
    }
    storage.write_json(info, summary)
    return len(probs)


def _soft_labels(head: Artifact, provenance: Trained) -> tuple[pl.Series, NDArray[np.float32], dict[str, int]]:
    """URIs in alphabetical order, calibrated probabilities (N, K), and what was left out."""
    known, n_ours = provenance["parents"]["table"], len(provenance["parents"]["teacher"])
    table = open_table(known["uri"], head.classes)
    if table is None:
        raise UserError(f"table={known['uri']}: no predictions table there, from which {head.uri} was trained")
    table.load_as_version(known["version"])
    sets = [uri for key in ("labeled", "val", "feedback_val") if (uri := provenance["config"][key])]
    given = {"table": known["uri"], "teacher": head.uri, "out": head.uri, "selection": {"exclude": sets}}
    excluded = read_exclusions(section_config("self_train", "select_pseudo_labels", given).selection)
    found = Embeddings(table, known["models"][:n_ours], excluded, known["models"][n_ours:])
    net: Any = load_model(head)
    with tempfile.TemporaryDirectory() as folder:
        probs = predict(net.head, found.write(Path(folder, "unlabeled")))
    uris = found.uris()
    order = uris.arg_sort()  # however the table's files lie
    probs = apply_temperature(probs, head.temperature).astype(np.float32)[order.to_numpy()]
    return uris.gather(order), probs, found.left_out
