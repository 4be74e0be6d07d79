"""From a job's config to a recipe on one rank: opens what the arguments point at and turns it into faces by index.

Recipes know arrays, not files: what they get are `Parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ray_fer.data.loading import CACHE_BYTES, ImageLoader
from ray_fer.data.stream import PictureStream
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_inputs import Inputs
from ray_fer.methods.find_recipe import find_recipe
from ray_fer.methods.parts import Parts, Stream, Weights
from ray_fer.methods.recipe import BackboneRecipe, Faces
from ray_fer.methods.supervised import PseudoLabels
from ray_fer.models.backbone import build_backbone, checkpoint_activations, local_pretrained, normalisation
from ray_fer.training.world import World


def build_recipe(inputs: Inputs, unlabeled: Sequence[str], world: World, told: dict[str, Any]) -> BackboneRecipe:
    """The recipe of one rank.

    Args:
        inputs: of the job.
        unlabeled: URIs of the unlabeled faces; none for recipes without.
        world: the ranks.
        told: ``feedback`` and ``factors``, as `BackboneRecipe` takes them.

    Raises:
        UserError: when what it would publish is not a plain backbone.
    """
    config, cache_bytes = inputs.config, CACHE_BYTES // world.local_size
    assert config.image_size is not None
    size = config.image_size
    torch.manual_seed(config.seed)
    backbone, mean, std = build_model(inputs)
    backbones, plain = [backbone], _shapes(backbone.state_dict())

    def another_backbone() -> torch.nn.Module:
        backbones.append(build_model(inputs)[0])
        return backbones[-1]

    def faces(name: str, uris: Sequence[str], labels: Any = None) -> Faces:
        images = ImageLoader(uris, size, cache_bytes=cache_bytes, name=name)
        return Faces(images, uris, np.full(len(uris), -1) if labels is None else labels)

    def stream(per_step: int, steps: int) -> Stream | None:
        if len(unlabeled) * size**2 * 3 <= cache_bytes:
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

    pseudo = None
    if inputs.selection is not None:
        selection = inputs.selection
        pseudo = PseudoLabels(faces("pseudo", selection.uris), selection.targets, selection.plain_weights)
    parts = Parts(
        config=config,
        classes=inputs.labeled.classes,
        world=world,
        told=told,
        mean=mean,
        std=std,
        backbone=backbone,
        another_backbone=another_backbone,
        labeled=faces("labeled", inputs.labeled.uris, inputs.labeled.labels),
        val=faces("val", inputs.val.uris, inputs.val.labels),
        feedback_rows=inputs.feedback_rows,
        pseudo=pseudo,
        unlabeled=faces("unlabeled", unlabeled),
        stream=stream,
    )
    recipe = find_recipe(config.recipe).build(parts)
    if wrong := plain.items() ^ _shapes(plain_weights(inputs, recipe.ema_model.state_dict(), backbone)).items():
        raise UserError(f"recipe={config.recipe}: what it publishes is no {config.backbone}, see {min(wrong)[0]}")
    # After the averaged copy was made, which needs no gradients.
    if config.checkpoint_activations:
        for each in backbones:
            checkpoint_activations(each, str(config.backbone))
    return recipe


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
    )
    return (model, init.mean, init.std) if init else (model, *normalisation(model))


def plain_weights(inputs: Inputs, weights: Weights, model: torch.nn.Module) -> Weights:
    """What is published of a recipe's weights: those of ``model``, the plain backbone."""
    return find_recipe(inputs.config.recipe).publish(weights, inputs.config, model)


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in weights.items()}
