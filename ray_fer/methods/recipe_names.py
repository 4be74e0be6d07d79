"""What ``recipe=`` may name: one of ours, or a module of the user's.

Apart from the recipes, which import torch: a mistyped name is told without.
"""

from __future__ import annotations

import importlib.util
import os
import sys

RECIPES = ("supervised", "online", "meta_feedback")


def module_of(name: str) -> str:
    """The module that a recipe's name stands for."""
    return f"ray_fer.methods.{name}" if name in RECIPES else name


def is_there(name: str) -> bool:
    """Whether the module of a recipe can be found; of ``a.b.c``, ``a`` and ``a.b`` are imported for that."""
    if name in RECIPES:
        return True
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    # Of a job, Python looks into jobs/ alone; Ray's workers look into the driver's folder already.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks another
        return False
