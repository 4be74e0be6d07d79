"""Import of modules that a user names in an argument: methods and nets."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import sys
from types import ModuleType

from ray_fer.errors import UserError, one_line


def is_there(name: str) -> bool:
    """Whether a module is in the current folder or installed; for ``a.b.c``, it imports ``a`` and ``a.b``.

    Raises:
        ModuleNotFoundError: If ``a`` or ``a.b`` exists and imports a module that is missing.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    # Python searches the folder of the script, not the current one. Ray's workers search the driver's already.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the package exists, and a module that it imports is missing
        return False


def load(where: str, name: str) -> ModuleType:
    """Imports a module.

    Args:
        where: The start of the message, such as ``method=mine``.
        name: The import path of the module.

    Raises:
        UserError: If the module is not on this node, be it the driver's or a worker's.
    """
    if not is_there(name):
        raise UserError(f"{where}: no such module on {socket.gethostname()}, in the current folder or installed")
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{where}: its module cannot be imported: {one_line(error)}") from None
