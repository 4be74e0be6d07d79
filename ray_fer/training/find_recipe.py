"""From ``recipe=`` to what its module says of the recipe, and whether the job's other arguments fit it."""

from __future__ import annotations

import importlib
import socket
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from pydantic import ConfigDict, create_model

from ray_fer.config import JobConfig, TrainBackboneConfig, validate
from ray_fer.errors import UserError
from ray_fer.training.inputs import NO_FEEDBACK
from ray_fer.training.parts import RecipeKind
from ray_fer.training.recipe import Settings
from ray_fer.training.recipe_names import is_there, module_of


class _Own(JobConfig):
    model_config = ConfigDict(arbitrary_types_allowed=True)


def find_recipe(name: str) -> RecipeKind:
    """What the module of a recipe says of it.

    Raises:
        UserError: when the module is not there, which on a worker it may not be, or says nothing.
    """
    if not is_there(name):
        raise UserError(f"recipe={name}: no such module on {socket.gethostname()}, in the current folder or installed")
    kind = getattr(importlib.import_module(module_of(name)), "RECIPE", None)
    if not isinstance(kind, RecipeKind):
        raise UserError(f"recipe={name}: the module has no RECIPE = RecipeKind(…), see ray_fer/training/parts.py")
    return kind


def check_arguments(config: TrainBackboneConfig, kind: RecipeKind) -> dict[str, Any] | None:
    """Makes sure that a recipe takes what the job is given.

    Returns:
        ``settings`` of ``config``, of the types that the recipe's have.

    Raises:
        UserError: when it does not.
    """
    where = f"recipe={config.recipe}"
    if kind.unlabeled != (config.unlabeled is not None):
        wanted = "needs unlabeled=" if kind.unlabeled else "takes no unlabeled=, recipe=online does"
        raise UserError(f"{where}: {wanted}")
    given = {"pseudo": config.pseudo, "feedback": None if config.feedback == NO_FEEDBACK else config.feedback}
    refused = [key for key in given if not getattr(kind, key)]
    if any(given[key] for key in refused):
        raise UserError(f"{where}: takes {'no' if len(refused) == 1 else 'neither'} {'= nor '.join(refused)}=")
    return _own_settings(where, kind.settings, config.settings)


def _own_settings(where: str, kind: type[Settings], given: dict[str, Any] | None) -> dict[str, Any] | None:
    ours = {
        each.name
        for base in (Settings, *kind.__mro__[1:])
        if base.__module__.startswith("ray_fer.")
        for each in fields(base)
    }
    hints = get_type_hints(kind, include_extras=True)
    own: dict[str, Any] = {
        each.name: (hints[each.name], ... if each.default is each.default_factory is MISSING else None)
        for each in fields(kind)
        if each.name not in ours
    }
    schema = create_model("Own", __base__=_Own, settings=(create_model("Settings", __base__=_Own, **own), ...))
    checked = validate(where, schema, {"settings": given or {}}).settings.model_dump(exclude_unset=True)
    return checked or None
