"""What a recipe for a backbone is made of, and what its module says of it: a new recipe is one file.

The module of a recipe has a `RecipeKind` called ``RECIPE``, and ``recipe=`` takes the module's import path. So all that
is a recipe's own is in its file: what it needs, its numbers, how it is built and what of its weights is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, create_model

from ray_fer.config import JobConfig, validate
from ray_fer.errors import UserError
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.methods.recipe import BackboneRecipe, Faces, Indices, Settings
from ray_fer.training.world import World

if TYPE_CHECKING:  # a recipe itself
    from ray_fer.methods.supervised import PseudoLabels

AnySettings = TypeVar("AnySettings", bound=Settings)
Weights = dict[str, torch.Tensor]
Stream = Callable[[int], Iterator[tuple[Indices, Any, Any]]]
"""From an epoch to this rank's rows, pictures and which of them are readable, step by step."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What every recipe is built from on one rank.

    Attributes:
        config: of the job, with ``backbone``, ``image_size`` and ``classes`` resolved.
        classes: K names.
        world: the ranks.
        told: ``feedback`` and ``factors``, as `BackboneRecipe` takes them; neither where the feedback is off.
        mean: of the normalisation.
        std: likewise.
        backbone: with a classifier over the classes.
        another_backbone: makes one more, from the same start.
        labeled: every face labelled.
        val: likewise.
        feedback_rows: which rows of ``val`` are the feedback half, bool.
        pseudo: the selection, if any.
        unlabeled: the same on every rank; none for recipes without.
        stream: from the unlabeled faces per step over all ranks and the steps of an epoch to their `Stream`, which
            every rank has to use; None where they fit in memory, to be drawn by index.
    """

    config: TrainBackboneConfig
    classes: tuple[str, ...]
    world: World
    told: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backbone: torch.nn.Module
    another_backbone: Callable[[], torch.nn.Module]
    labeled: Faces
    val: Faces
    feedback_rows: NDArray[np.bool_]
    pseudo: PseudoLabels | None
    unlabeled: Faces
    stream: Callable[[int, int], Stream | None]

    def settings(self, kind: type[AnySettings], **others: Any) -> AnySettings:
        """Settings with what the config has of ray-fer's, ``others``, and what is given as ``settings.NAME=``."""
        config, own = self.config, _own_names(kind)
        keys = type(config).model_fields.keys() & {each.name for each in fields(kind)} - own
        given = own_settings(config.recipe, kind, config.settings)
        return kind(**{**{key: getattr(config, key) for key in keys}, **others, **given})

    def shared(self) -> dict[str, Any]:
        """The arguments that all recipes have."""
        return {
            "mean": self.mean,
            "std": self.std,
            "labeled": self.labeled,
            "val": self.val,
            "feedback_rows": self.feedback_rows,
            "classes": self.classes,
            "world": self.world,
            **self.told,
        }


def whole(weights: Weights, config: TrainBackboneConfig, backbone: torch.nn.Module) -> Weights:
    """``weights`` as they are: what is trained is the plain backbone."""
    return weights


@dataclass(frozen=True, kw_only=True)
class RecipeKind:
    """What a recipe's module says of it.

    Attributes:
        build: makes the recipe of one rank.
        unlabeled: whether it needs ``unlabeled=``; otherwise it takes none.
        pseudo: whether it takes ``pseudo=``.
        feedback: whether it takes ``feedback=``; then it is on by default where there are faces beside the labelled.
        settings: its numbers. Those that it adds to ray-fer's own settings are given as ``settings.NAME=``.
        publish: from the averaged weights of the recipe's model, the job's config and a plain backbone to the weights
            of the latter.
        from_scratch: what to warn of where neither ``init=`` nor ``pretrained=`` is given.
    """

    build: Callable[[Parts], BackboneRecipe]
    unlabeled: bool = False
    pseudo: bool = False
    feedback: bool = True
    settings: type[Settings] = Settings
    publish: Callable[[Weights, TrainBackboneConfig, torch.nn.Module], Weights] = whole
    from_scratch: str | None = None


class _Own(JobConfig):
    model_config = ConfigDict(arbitrary_types_allowed=True)


def own_settings(recipe: str, kind: type[Settings], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is ``given`` as ``settings.NAME=``, of the types that ``kind`` has.

    Raises:
        UserError: for a name that is none of what ``kind`` adds to ray-fer's settings, a wrong value, or a missing one.
    """
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise UserError(f"recipe={recipe}: the types of {kind.__name__} cannot be told: {error}") from None
    own: dict[str, Any] = {
        each.name: (hints[each.name], ... if each.default is each.default_factory is MISSING else None)
        for each in fields(kind)
        if each.name in _own_names(kind)
    }
    schema = create_model("Own", __base__=_Own, settings=(create_model("Settings", __base__=_Own, **own), ...))
    checked = validate(f"recipe={recipe}", schema, {"settings": given or {}}).settings
    return {name: getattr(checked, name) for name in checked.model_fields_set}


def _own_names(kind: type[Settings]) -> set[str]:
    """What ``kind`` adds to the settings of ray-fer's that it is made of."""
    bases = [base for base in kind.__mro__ if base.__module__.startswith("ray_fer.")]
    return {each.name for each in fields(kind)} - {each.name for base in bases for each in fields(base)}
