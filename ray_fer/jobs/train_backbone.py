"""The job that trains a backbone, teacher or student: checks, run, publication.

Everything that can be wrong is looked for before a cluster is touched. The result is a function of the arguments and of
what they point at; both are kept with the model (``provenance.json``). So the same command on a finished ``out``
answers at once, on an unfinished one goes on, and another command on the same ``out`` is refused rather than mixed in.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_fer import storage
from ray_fer.documents import read_document
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_inputs import Inputs, Start, open_inputs, warn_of_doubts, with_defaults
from ray_fer.jobs.held_out import UNLABELED, check_selection, list_unlabeled, warn_of_copies
from ray_fer.jobs.labelled_sets import manifest_digest
from ray_fer.jobs.scores import scores_of_model
from ray_fer.methods.config import NO_FEEDBACK, TrainBackboneConfig, upgraded
from ray_fer.models.artifact import CONFIG, METRICS, PROVENANCE, open_artifact, save_artifact
from ray_fer.models.pretrained import canonical, is_on_hub, local_pretrained, shared_pretrained, start_licence
from ray_fer.models.records import BackboneMetrics, Identity, PreTrained, Trained
from ray_fer.resources import check_device
from ray_fer.training.lease import Lease
from ray_fer.training.run_folder import RUN, absolute, complete, digest, environment, identity_of, is_finished, must_run

if TYPE_CHECKING:  # torch, timm and Ray take seconds to import, a mistyped path should not
    from ray_fer.training.runner import Outcome

log = logging.getLogger(__name__)


def train_backbone(config: TrainBackboneConfig) -> dict[str, Any]:
    """Trains and publishes, or answers from what is there.

    Returns:
        ``model`` (URI), ``id``, ``classes``, ``val_macro_f1``, ``val_accuracy``, ``choice_macro_f1`` and
        ``feedback_macro_f1`` (of the halves), ``temperature``, ``best_epoch``, ``epochs``, ``labeled``, ``val``,
        ``feedback_val``, ``pseudo`` and ``unlabeled`` (counts), ``feedback_version``, ``resumed_from_epoch``.

        After pre-training without labels: ``model``, ``reconstruction`` (the error on faces held out), ``best_epoch``,
        ``epochs`` and ``unlabeled``.

    Raises:
        UserError: for anything wrong with the arguments or with what they point at.
    """
    check_device(config.device)
    config = _absolute(config)
    inputs = open_inputs(config)
    identity = _identity(with_defaults(config, inputs.init).model_copy(update={"method": inputs.config.method}), inputs)
    out = storage.normalise(config.out)
    if must_run(out, identity, upgraded):
        _check_step(inputs)
        complete(
            *(out, identity),
            run=lambda start, lease: _run(inputs, out, Start(**start), lease),
            publish=lambda start, outcome: _publish(out, inputs, outcome, identity, Start(**start)),
            start=lambda: _start(out, identity, inputs),
            upgrade=upgraded,
        )
    return _summary(out)


def check_trained(config: TrainBackboneConfig) -> None:
    """Looks at no more than the arguments of the model that ``config.out`` holds, if it does.

    Raises:
        UserError: when it was trained with others.
    """
    from ray_fer.methods.registry import resolved

    config = resolved(_absolute(config))
    there = config.init and storage.exists(storage.join(config.init, CONFIG))
    config = with_defaults(config, open_artifact(str(config.init)) if there else None)
    is_finished(config.out, identity_of(config, {}), upgraded)


def _absolute(config: TrainBackboneConfig) -> TrainBackboneConfig:
    places = ["labeled", "val", "feedback_val", "out", "init", "pseudo"]
    config = absolute(config, *places, *([] if config.feedback == NO_FEEDBACK else ["feedback"]))
    return config.model_copy(update={"pretrained": canonical(config.pretrained)}) if config.pretrained else config


# --- whose run it is ---


def _identity(config: TrainBackboneConfig, inputs: Inputs) -> Identity:
    contents = {"labeled": manifest_digest(inputs.labeled)}
    if config.feedback_val is None:
        contents["val"] = manifest_digest(inputs.val)
    else:
        halves = {"val": ~inputs.feedback_rows, "feedback_val": inputs.feedback_rows}
        contents |= {name: manifest_digest(inputs.val.take(rows)) for name, rows in halves.items()}
    if inputs.init is not None:
        contents["init"] = inputs.init.id
    if inputs.config.pretrained and is_on_hub(inputs.config.pretrained):
        contents["pretrained"] = Path(local_pretrained(inputs.config.pretrained)).name
    if inputs.selection is not None:
        contents["pseudo"] = digest(inputs.selection.info)
    return identity_of(config, contents)


def _start(out: str, identity: Identity, inputs: Inputs) -> dict[str, Any]:
    from ray_fer.feedback.store import FeedbackStore

    check_selection(inputs)
    warn_of_copies(inputs)
    feedback_version = None
    if inputs.feedback:
        store = FeedbackStore(inputs.feedback, inputs.labeled.classes, inputs.config.feedback_parts)
        feedback_version = store.snapshot().version
    unlabeled = list_unlabeled(inputs, storage.join(out, RUN)) if inputs.config.unlabeled else (0, None)
    return asdict(Start(f"{out.rsplit('/', 1)[-1]}-{digest([out, identity])[:8]}", feedback_version, *unlabeled))


# --- run and publication ---


def _check_step(inputs: Inputs) -> None:
    """Refuses steps of too few faces, as far as it is known already how many a worker has; BatchNorm wants two."""
    config = inputs.config
    workers, size = config.workers or 1, config.image_size
    if inputs.selection is not None or config.unlabeled or config.batch_size >= 2 * workers:
        return  # such faces would be in the same step
    if config.batch_size < workers:
        raise UserError(f"batch_size={config.batch_size}: fewer labelled faces in a step than workers={workers}")
    from ray_fer.jobs.backbone_context import build_model
    from ray_fer.models.backbone import check_step

    assert size is not None
    try:
        check_step(build_model(inputs)[0], size, 1)
    except UserError as error:
        what = f"backbone={config.backbone} cannot learn from one picture of {size} px a step and worker"
        raise UserError(f"batch_size={config.batch_size}: {what} ({error})") from None


def _run(inputs: Inputs, out: str, start: Start, lease: Lease) -> Outcome:
    from ray_fer import cluster
    from ray_fer.feedback.actor import get_feedback_actor
    from ray_fer.jobs.backbone_context import build_model, make_method
    from ray_fer.models.backbone import checkpoint_activations
    from ray_fer.training.rank import TrainSpec
    from ray_fer.training.runner import fit

    config, folder = inputs.config, storage.join(out, RUN)
    model, *_ = build_model(inputs)  # weights that do not fit are found here
    if config.checkpoint_activations:
        checkpoint_activations(model, str(config.backbone))
    cluster.connect()
    # Held here, or the actor would end with the rank that asked first.
    classes = inputs.labeled.classes
    actor = get_feedback_actor(inputs.feedback, classes, config.feedback_parts) if inputs.feedback else None
    log.info(
        "training %s at %d px on %d labelled, %d pseudo-labelled and %d unlabeled faces, %d classes",
        *(config.backbone, config.image_size, len(inputs.labeled), _pseudo_count(inputs)),
        *(start.unlabeled, len(classes)),
    )
    warn_of_doubts(inputs)
    if config.pretrained:
        config = config.model_copy(update={"pretrained": shared_pretrained(config.pretrained, folder)})
    run = TrainSpec(
        folder=folder,
        make=functools.partial(make_method, config, start, folder),
        device=config.device,
        workers=config.workers,
        zero_stage=config.zero_stage,
        precision=config.precision,
        max_failures=config.max_failures,
        on_bad_loss=config.on_bad_loss,
        reports=out,
        wait_minutes=config.wait_minutes,
        lease=lease,
    )
    outcome = fit(run)
    del actor
    return outcome


def _publish(out: str, inputs: Inputs, outcome: Outcome, identity: Identity, start: Start) -> None:
    from ray_fer.jobs.backbone_context import build_model, plain_weights

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
        "parents": {
            "init": inputs.init.id if inputs.init else None,
            "selection": selection,
            "unlabeled": start.unlabeled_digest,
            "licence": start_licence(inputs.init.uri if inputs.init else inputs.config.pretrained),
        },
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
            "labelled_counts": inputs.labeled.counts().tolist(),
        },
        provenance=provenance,
        temperature=outcome.best.get("temperature", 1.0),  # a run that an older version began has none
        # The sources go on growing, and what they held goes with the run's folder.
        extra={UNLABELED: storage.read_bytes(storage.join(out, RUN, UNLABELED))} if start.unlabeled else None,
    )


def _summary(out: str) -> dict[str, Any]:
    provenance = read_document(storage.join(out, PROVENANCE), Trained)
    if not provenance["config"]["classes"]:
        found = read_document(storage.join(out, METRICS), PreTrained)
        score = {"reconstruction": found["val"]["reconstruction"], "best_epoch": found["val"]["epoch"]}
        return {"model": out, **score, "epochs": len(found["history"]), "unlabeled": provenance["counts"]["unlabeled"]}
    artifact = open_artifact(out)
    metrics = artifact.trained_metrics(BackboneMetrics)
    best, resumed = metrics["val"], metrics["resumed"]
    return {
        **scores_of_model(artifact),
        "best_epoch": best["epoch"],
        "epochs": len(metrics["history"]),
        **provenance["counts"],
        "feedback_version": best.get("feedback_version"),
        "resumed_from_epoch": resumed[-1] if resumed else None,
    }


def _pseudo_count(inputs: Inputs) -> int:
    return len(inputs.selection.uris) if inputs.selection else 0
