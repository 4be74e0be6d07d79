"""Modules of the user's that a job is given by name: a method, a net."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import sys
from types import ModuleType

from ray_fer.errors import UserError


def is_there(name: str) -> bool:
    """Whether a module can be found, in the current folder or installed; of ``a.b.c``, ``a`` and ``a.b`` are imported.

    Raises:
        ModuleNotFoundError: when one of them is there and lacks another module.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    # Python looks into the folder of the script alone; Ray's workers look into the driver's folder already.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks another
        return False


def load(where: str, name: str) -> ModuleType:
    """Imports a module.

    Args:
        where: What the message starts with, such as ``method=mine``.
        name: Its import path.

    Raises:
        UserError: when it is not there, which on a worker it may not be.
    """
    if not is_there(name):
        raise UserError(f"{where}: no such module on {socket.gethostname()}, in the current folder or installed")
    return importlib.import_module(name)
