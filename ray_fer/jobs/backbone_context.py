"""From a job's config to a method on one rank: opens what the arguments point at and turns it into faces by index.

Methods know arrays, not files: all that they get is their `Context`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_fer.compat.timm import classifier_name
from ray_fer.data.loading import CACHE_BYTES, ImageLoader
from ray_fer.data.stream import PictureStream
from ray_fer.errors import UserError
from ray_fer.feedback.actor import get_feedback_actor, update
from ray_fer.feedback.config import FeedbackPart
from ray_fer.feedback.state import Snapshot
from ray_fer.feedback.store import load_snapshot
from ray_fer.jobs.backbone_inputs import Inputs, Start, open_inputs
from ray_fer.jobs.held_out import read_unlabeled
from ray_fer.methods.base import BackboneMethod, Weights
from ray_fer.methods.batch import Faces, PseudoLabels, Stream
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.methods.context import Context, Feedback
from ray_fer.methods.registry import find_method, numbers_of
from ray_fer.models.backbone import build_backbone, checkpoint_activations, normalisation
from ray_fer.models.depth_net import DepthNet
from ray_fer.models.frozen import rest_batch_norm
from ray_fer.models.pretrained import local_pretrained
from ray_fer.training.world import World


def make_method(config: TrainBackboneConfig, start: Start, folder: str, world: World) -> BackboneMethod:
    """The method of one rank, from the URIs in ``config``: data and weights never travel as arguments."""
    inputs = open_inputs(config, quiet=world.rank > 0)
    unlabeled, domains = read_unlabeled(folder) if start.unlabeled else ([], None)
    if inputs.feedback is None:
        return build_method(inputs, world, unlabeled, domains)
    classes = inputs.labeled.classes
    feedback = _Feedback(inputs.feedback, classes, config.feedback_parts, start.run_name)
    snapshot = load_snapshot(inputs.feedback, classes, start.feedback_version)
    return build_method(inputs, world, unlabeled, domains, feedback, snapshot)


@dataclass(frozen=True)
class _Feedback:
    """Reports a run's validations to the actor."""

    uri: str
    classes: tuple[str, ...]
    parts: Sequence[FeedbackPart]
    run_name: str

    def __call__(self, confusion: NDArray[np.int64], epoch: int, **evidence: Any) -> Snapshot:
        actor = get_feedback_actor(self.uri, self.classes, self.parts)
        source = f"{self.run_name}/epoch-{epoch + 1}"
        return update(actor, confusion.tolist(), source, **evidence)


def build_method(
    inputs: Inputs,
    world: World,
    unlabeled: Sequence[str] = (),
    domains: NDArray[np.int64] | None = None,
    feedback: Feedback | None = None,
    snapshot: Snapshot | None = None,
) -> BackboneMethod:
    """The method of one rank.

    Args:
        inputs: Of the job.
        world: The ranks.
        unlabeled: URIs of the N unlabeled faces; none for methods without.
        domains: Which source each of them is from, int64 (N,).
        feedback: As `Context` takes it.
        snapshot: As `Context` takes it.

    Raises:
        UserError: when what it would publish is not a plain backbone.
    """
    config = inputs.config
    torch.manual_seed(config.seed)
    start, mean, std = build_model(inputs)
    backbones, unused, plain = [start], [start], _shapes(start.state_dict())

    def backbone() -> torch.nn.Module:
        if unused:
            return unused.pop()
        backbones.append(build_model(inputs)[0])
        return backbones[-1]

    faces = functools.partial(_faces, inputs, world)
    selection, pseudo = inputs.selection, None
    if selection is not None:
        pseudo = PseudoLabels(faces("pseudo", selection.uris), selection.targets, selection.plain_weights)
    context = Context(
        config=config,
        numbers=numbers_of(config.method),
        classes=inputs.labeled.classes,
        mean=mean,
        std=std,
        backbone=backbone,
        labeled=faces("labeled", inputs.labeled.uris, inputs.labeled.labels),
        val=faces("val", inputs.val.uris, inputs.val.labels),
        feedback_rows=inputs.feedback_rows,
        pseudo=pseudo,
        unlabeled=faces("unlabeled", unlabeled, domains=domains),
        stream=functools.partial(_stream, inputs, world, unlabeled),
        world=world,
        feedback=feedback,
        snapshot=snapshot,
    )
    method = find_method(config.method.name)(context)
    _check_published(inputs, plain_weights(inputs, method.ema_model.state_dict(), start), plain)
    for each in backbones if config.checkpoint_activations else []:  # the averaged copy needs no gradients
        checkpoint_activations(each, str(config.backbone))
    return method


def _check_published(inputs: Inputs, weights: Weights, plain: dict[str, tuple[int, ...]]) -> None:
    if wrong := plain.items() ^ _shapes(weights).items():
        config = inputs.config
        raise UserError(f"method={config.method.name}: what it publishes is no {config.backbone}, see {min(wrong)[0]}")


def _faces(
    inputs: Inputs,
    world: World,
    name: str,
    uris: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    domains: NDArray[np.int64] | None = None,
) -> Faces:
    images = ImageLoader(uris, _size(inputs), cache_bytes=CACHE_BYTES // world.local_size, name=name)
    return Faces(images, uris, np.full(len(uris), -1) if labels is None else labels, domains)


def _stream(inputs: Inputs, world: World, unlabeled: Sequence[str], per_step: int, steps: int) -> Stream | None:
    """See `Context.stream`."""
    config, size = inputs.config, _size(inputs)
    if len(unlabeled) * size**2 * 3 <= CACHE_BYTES // world.local_size:
        return None
    if per_step % world.size:
        raise UserError(
            f"workers={world.size}: does not divide the {per_step} unlabeled faces of a step, which a stream needs"
        )
    return PictureStream(
        *(unlabeled, size),
        batch=per_step // world.size,
        steps=steps,
        epochs=config.epochs,
        rank=world.rank,
        ranks=world.size,
        broadcast=world.broadcast,
        seed=config.seed,
    ).epoch


def build_model(inputs: Inputs) -> tuple[torch.nn.Module, tuple[float, ...], tuple[float, ...]]:
    """The backbone that a run starts from, with mean and standard deviation per channel.

    Raises:
        UserError: when the weights do not fit.
    """
    config, init = inputs.config, inputs.init
    assert config.backbone is not None
    assert config.image_size is not None
    model = build_backbone(
        *(config.backbone, len(inputs.labeled.classes), config.image_size),
        pretrained=local_pretrained(config.pretrained) if config.pretrained else None,
        init=init,
        classes=inputs.labeled.classes,
        depths=bool(config.depths),
    )
    if config.batch_norm == "rest":
        rest_batch_norm(model.body if isinstance(model, DepthNet) else model)
    return (model, init.mean, init.std) if init else (model, *normalisation(model))


def plain_weights(inputs: Inputs, weights: Weights, model: Any) -> Weights:
    """What is published of a method's weights: those of ``model``, the plain backbone."""
    choice = inputs.config.method
    name = classifier_name(model)
    classifier = name if isinstance(name, str) else name[0]
    return find_method(choice.name).publish(weights, numbers_of(choice), classifier)


def _size(inputs: Inputs) -> int:
    assert inputs.config.image_size is not None
    return inputs.config.image_size


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in weights.items()}
