"""The job that trains a head on kept embeddings and publishes it with its backbone, as one net.

Nothing is decoded or inferred twice: the embeddings of the unlabeled faces are those of the table, and those of the
labelled pictures are kept beside the model. As with train_backbone, the same command on a finished ``out`` answers at
once, and another on the same ``out`` is refused.

    out/                 the artifact
    out/labelled/        a table of the labelled pictures' embeddings
    out/embedder/        with ``pretrained``: the net that embeds
    out/predictions/     with ``source`` and without ``table``: the table of the unlabeled faces
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_fer import storage
from ray_fer.data.sampling import CLASS_POWERS
from ray_fer.documents import read_document
from ray_fer.evaluation.halves import evaluate_halves
from ray_fer.heads.recipe import Learnt, RecipeSettings, learn
from ray_fer.heads.train import predict
from ray_fer.jobs.config import TrainHeadConfig
from ray_fer.jobs.head_arrays import Gathered, gather
from ray_fer.jobs.head_inputs import HeadInputs, embedder, label_sources, open_head_inputs
from ray_fer.jobs.held_out import warn_of_copies
from ray_fer.jobs.labelled_sets import manifest_digest
from ray_fer.jobs.scores import scores_of_model
from ray_fer.models.artifact import PROVENANCE, Artifact, load_model, open_artifact, save_artifact
from ray_fer.models.depth_net import DepthNet
from ray_fer.models.pretrained import canonical, is_on_hub, local_pretrained, start_licence
from ray_fer.models.records import BackboneMetrics, Identity, Trained
from ray_fer.resources import check_device
from ray_fer.training.run_folder import absolute, complete, digest, environment, identity_of, must_run

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What a run publishes."""

    teachers: Sequence[Artifact]
    gathered: Gathered
    learnt: Learnt
    predicted: list[int]
    seconds: dict[str, float]


def train_head(config: TrainHeadConfig) -> dict[str, Any]:
    """Trains and publishes, or answers from what is there.

    Args:
        config: See ``conf/train_head.yaml``.

    Returns:
        ``model`` (URI), ``id``, ``classes``, ``val_macro_f1``, ``val_accuracy``, ``choice_macro_f1`` and
        ``feedback_macro_f1`` (of the halves), ``temperature``, ``best_round`` and ``rounds`` (how many were run),
        ``labeled``, ``val``, ``feedback_val`` and ``table`` (counts), ``stages`` (seconds of each).

    Raises:
        UserError: For anything wrong with the arguments or with what they point at.
    """
    check_device(config.device)
    config = _absolute(config)
    inputs = open_head_inputs(config)
    identity, out = _identity(config, inputs), storage.normalise(config.out)
    if must_run(out, identity):
        complete(
            *(out, identity),
            run=lambda _, lease: _run(inputs),
            publish=lambda _, outcome: _publish(out, inputs, outcome, identity),
        )
    return _summary(out)


def _absolute(config: TrainHeadConfig) -> TrainHeadConfig:
    config = absolute(config, "labeled", "val", "feedback_val", "out", "table")
    places = {"also": [storage.normalise(uri) for uri in config.also]}
    teachers = config.teacher and [storage.normalise(uri) for uri in config.teacher]
    pretrained = config.pretrained and canonical(config.pretrained)
    return config.model_copy(update={**places, "teacher": teachers, "pretrained": pretrained})


def _identity(config: TrainHeadConfig, inputs: HeadInputs) -> Identity:
    contents = {"labeled": manifest_digest(inputs.labeled), "val": manifest_digest(inputs.val)}
    contents["feedback_rows"] = digest(inputs.feedback_rows.tolist())
    for key, models in (("teacher", inputs.teachers), ("also", inputs.also)):
        if models:
            contents[key] = digest([each.id for each in models])
    if config.pretrained and is_on_hub(config.pretrained):
        contents["pretrained"] = Path(local_pretrained(config.pretrained)).name
    return identity_of(config, contents)


def _run(inputs: HeadInputs) -> _Outcome:
    config, seconds, began = inputs.config, {}, time.monotonic()

    def stage(name: str) -> None:
        nonlocal began
        seconds[name], began = round(time.monotonic() - began, 1), time.monotonic()

    warn_of_copies(inputs)
    teachers = inputs.teachers or [embedder(inputs)]
    stage("open")
    if config.source:
        label_sources(inputs, teachers)
        stage("label")
    settings = RecipeSettings(
        rounds=config.rounds,
        folds=config.folds,
        steps=config.steps,
        pseudo_power=CLASS_POWERS[config.pseudo_sampling],
        seed=config.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        gathered = gather(inputs, teachers, Path(folder))
        stage("gather")
        _warn_of_missing("labeled: no face of", gathered.labeled.counts(), gathered.labeled.classes)
        learnt = learn(gathered.data, settings)
        stage("learn")
        named = predict(learnt.best.model, gathered.data.unlabeled).argmax(axis=1)
        stage("predict")
    predicted = np.bincount(named, minlength=gathered.data.n_classes)
    _warn_of_missing("table: no unlabeled face is predicted to be", predicted, gathered.labeled.classes)
    return _Outcome(teachers, gathered, learnt, predicted.tolist(), seconds)


def _warn_of_missing(what: str, counts: Any, classes: Sequence[str]) -> None:
    if missing := [name for name, count in zip(classes, counts, strict=True) if not count]:
        log.warning("%s %s", what, ", ".join(missing))


def _publish(out: str, inputs: HeadInputs, outcome: _Outcome, identity: Identity) -> None:
    # timm must know the net.
    from ray_fer.heads.published import head_net_of

    gathered, learnt, teachers = outcome.gathered, outcome.learnt, outcome.teachers
    data, classes = gathered.data, gathered.labeled.classes
    halves = [
        evaluate_halves(each.probs, data.val_labels, data.feedback_rows, classes) | {"epoch": number}
        for number, each in enumerate(learnt.candidates)
    ]
    best = halves[learnt.round]
    licences = {start_licence(each.uri) for each in teachers}
    provenance = {
        "identity": identity,
        "config": inputs.config.model_dump(),
        "counts": {
            "labeled": len(gathered.labeled),
            "val": len(gathered.val),
            "feedback_val": int(data.feedback_rows.sum()),
            "table": gathered.n_unlabeled,
        },
        "parents": {
            "teacher": [{"uri": each.uri, "id": each.id} for each in teachers],
            "also": [{"uri": each.uri, "id": each.id} for each in inputs.also],
            "table": {"uri": inputs.place, "version": gathered.version, "models": gathered.models},
            "left_out": gathered.left_out,
            "licence": licences.pop() if len(licences) == 1 else None,
        },
        "stages": outcome.seconds,
        **environment(),
    }
    history = [{key: each[key] for key in ("epoch", "macro_f1", "accuracy")} for each in halves]
    save_artifact(
        *(out, head_net_of([_load(each) for each in teachers], learnt.best.model)),
        classes=classes,
        image_size=teachers[0].image_size,
        mean=teachers[0].mean,
        std=teachers[0].std,
        metrics={
            "val": best,
            "history": history,
            "resumed": [],
            "labelled_counts": gathered.labeled.counts().tolist(),
            "predicted": dict(zip(classes, outcome.predicted, strict=True)),
        },
        provenance=provenance,
        temperature=best["temperature"],
    )


def _load(teacher: Artifact) -> Any:
    """The net with the normalisation that its artifact says, which may not be timm's of the architecture."""
    model: Any = load_model(teacher)
    body = model.body if isinstance(model, DepthNet) else model
    body.pretrained_cfg = {**body.pretrained_cfg, "mean": teacher.mean, "std": teacher.std}
    return model


def _summary(out: str) -> dict[str, Any]:
    provenance = read_document(storage.join(out, PROVENANCE), Trained)
    artifact = open_artifact(out)
    metrics = artifact.trained_metrics(BackboneMetrics)
    best = metrics["val"]
    return {
        **scores_of_model(artifact),
        "best_round": best["epoch"],
        "rounds": len(metrics["history"]) - 1,
        **provenance["counts"],
        "stages": provenance["stages"],
    }
