"""From ``recipe=`` to what its module says of the recipe, and whether the job's other arguments fit it."""

from __future__ import annotations

import importlib
import socket

from ray_fer.errors import UserError
from ray_fer.jobs.backbone_inputs import NO_FEEDBACK
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.methods.parts import RecipeKind, own_settings
from ray_fer.methods.recipe_names import is_there, module_of


def find_recipe(name: str) -> RecipeKind:
    """What the module of a recipe says of it.

    Raises:
        UserError: when the module is not there, which on a worker it may not be, or says nothing.
    """
    if not is_there(name):
        raise UserError(f"recipe={name}: no such module on {socket.gethostname()}, in the current folder or installed")
    module = importlib.import_module(module_of(name))
    kind = getattr(module, "RECIPE", None)
    if not isinstance(kind, RecipeKind):
        file = getattr(module, "__file__", None) or "the module"
        raise UserError(f"recipe={name}: {file} has no RECIPE = RecipeKind(…), see ray_fer/methods/parts.py")
    return kind


def check_arguments(config: TrainBackboneConfig, kind: RecipeKind) -> None:
    """Makes sure that a recipe takes what the job is given.

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
    own_settings(config.recipe, kind.settings, config.settings)
