"""From a job's config to a recipe on one rank: opens what the arguments point at and turns it into faces by index.

Recipes know arrays, not files; a new one is its file and an entry in `BUILDERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch

from ray_fer.data.loading import CACHE_BYTES, ImageLoader
from ray_fer.data.stream import PictureStream
from ray_fer.models.backbone import build_backbone, checkpoint_activations, local_pretrained, normalisation
from ray_fer.selection import RULES
from ray_fer.training.balanced import BalancedRecipe
from ray_fer.training.heads import BALANCED, MAIN, published, with_heads
from ray_fer.training.inputs import Inputs
from ray_fer.training.meta_feedback import MetaFeedbackRecipe, MetaSettings, TeacherAndStudent
from ray_fer.training.online import OnlineRecipe, OnlineSettings
from ray_fer.training.recipe import BackboneRecipe, Faces, Settings
from ray_fer.training.supervised import PseudoLabels, SupervisedRecipe, SupervisedSettings
from ray_fer.training.world import World

AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True, eq=False)
class Parts:
    """What every recipe is built from on one rank.

    Attributes:
        inputs: of the job.
        world: the ranks.
        told: ``feedback`` and ``factors``, as `BackboneRecipe` takes them.
        mean: of the normalisation.
        std: likewise.
        backbone: with a classifier over the classes.
        labeled: every face labelled.
        val: likewise.
        pseudo: the selection, if any.
    """

    inputs: Inputs
    world: World
    told: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backbone: torch.nn.Module
    labeled: Faces
    val: Faces
    pseudo: PseudoLabels | None

    def settings(self, kind: type[AnySettings], **others: Any) -> AnySettings:
        """Settings with what the config has of the same name, and ``others``."""
        config = self.inputs.config
        shared = {each.name: getattr(config, each.name) for each in fields(kind) if hasattr(config, each.name)}
        return kind(**{**shared, **others})

    def shared(self) -> dict[str, Any]:
        """The arguments that all recipes have."""
        inputs = self.inputs
        return {
            "mean": self.mean,
            "std": self.std,
            "labeled": self.labeled,
            "val": self.val,
            "feedback_rows": inputs.feedback_rows,
            "classes": inputs.labeled.classes,
            "world": self.world,
        }


def build_recipe(inputs: Inputs, unlabeled: Sequence[str], world: World, told: dict[str, Any]) -> BackboneRecipe:
    """The recipe of one rank.

    Args:
        inputs: of the job.
        unlabeled: URIs of the unlabeled faces; none for recipes without.
        world: the ranks.
        told: ``feedback`` and ``factors``, as `BackboneRecipe` takes them.
    """
    config = inputs.config
    torch.manual_seed(config.seed)
    backbone, mean, std = build_model(inputs)

    def faces(name: str, uris: Sequence[str], labels: Any = None) -> Faces:
        assert config.image_size is not None
        images = ImageLoader(uris, config.image_size, cache_bytes=CACHE_BYTES // world.local_size, name=name)
        return Faces(images, uris, np.full(len(uris), -1) if labels is None else labels)

    pseudo = None
    if inputs.selection is not None:
        selection = inputs.selection
        pseudo = PseudoLabels(faces("pseudo", selection.uris), selection.targets, selection.plain_weights)
    labeled = faces("labeled", inputs.labeled.uris, inputs.labeled.labels)
    val = faces("val", inputs.val.uris, inputs.val.labels)
    parts = Parts(inputs, world, told, mean, std, backbone, labeled, val, pseudo)
    recipe = BUILDERS[config.recipe](parts, faces("unlabeled", unlabeled))
    # After the averaged copy was made, which needs no gradients.
    if config.checkpoint_activations:
        model = recipe.model
        for each in (model.teacher, model.student) if isinstance(model, TeacherAndStudent) else (backbone,):
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


def plain_weights(inputs: Inputs, weights: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is published of a recipe's weights: those of ``model``, the plain backbone."""
    config = inputs.config
    if config.recipe == "meta_feedback":
        prefix = "student."
        return {key[len(prefix) :]: each for key, each in weights.items() if key.startswith(prefix)}
    if config.recipe == "supervised" and config.supervised.head == MAIN:
        return weights
    chosen = config.online.head if config.recipe == "online" else config.supervised.head
    head = BALANCED if chosen == BALANCED else MAIN
    return published(weights, head, str(model.default_cfg["classifier"]))  # type: ignore[index]


def _supervised(parts: Parts, unlabeled: Faces) -> SupervisedRecipe:
    settings = parts.settings(SupervisedSettings)
    if parts.inputs.config.supervised.head == BALANCED:
        model = with_heads(parts.backbone, BALANCED, len(parts.inputs.labeled.classes))
        return BalancedRecipe(settings, model, pseudo=parts.pseudo, **parts.shared(), **parts.told)
    return SupervisedRecipe(settings, parts.backbone, pseudo=parts.pseudo, **parts.shared(), **parts.told)


def _online(parts: Parts, unlabeled: Faces) -> OnlineRecipe:
    config, world = parts.inputs.config, parts.world
    own = config.online.model_dump() | {"rule": RULES[config.online.rule]()}
    settings = parts.settings(OnlineSettings, **own)
    model = with_heads(parts.backbone, settings.head, len(parts.inputs.labeled.classes))
    recipe = OnlineRecipe(
        settings=settings, model=model, pseudo=parts.pseudo, unlabeled=unlabeled, **parts.shared(), **parts.told
    )
    assert config.image_size is not None
    if len(unlabeled) * config.image_size**2 * 3 > CACHE_BYTES // world.local_size:
        recipe.stream = PictureStream(
            *(unlabeled.uris, config.image_size),
            batch=recipe.unlabeled_per_step // world.size,
            steps=recipe.steps_per_epoch,
            rank=world.rank,
            ranks=world.size,
            share=world.broadcast,
            seed=config.seed,
        ).epoch
    return recipe


def _meta_feedback(parts: Parts, unlabeled: Faces) -> MetaFeedbackRecipe:
    settings = parts.settings(MetaSettings, **parts.inputs.config.meta.model_dump())
    student, *_ = build_model(parts.inputs)
    return MetaFeedbackRecipe(
        settings, TeacherAndStudent(parts.backbone, student), unlabeled=unlabeled, **parts.shared()
    )


BUILDERS: dict[str, Callable[[Parts, Faces], BackboneRecipe]] = {
    "supervised": _supervised,
    "online": _online,
    "meta_feedback": _meta_feedback,
}
