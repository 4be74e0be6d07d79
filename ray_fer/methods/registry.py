"""From ``method=`` to the class of the method, its numbers, and whether the job's other arguments fit it."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import create_model

from ray_fer import plugins
from ray_fer.config import JobConfig, validate
from ray_fer.errors import UserError
from ray_fer.methods.base import BackboneMethod
from ray_fer.methods.config import NO_FEEDBACK, MethodChoice, MethodConfig, TrainBackboneConfig, module_of

_TOGETHER = (("labeled",), ("unlabeled",), ("pseudo", "feedback"))
_DATA = tuple(key for keys in _TOGETHER for key in keys)


def find_method(name: str) -> type[BackboneMethod]:
    """The class that the module of a method calls ``METHOD``.

    Raises:
        UserError: when the module is not there, which on a worker it may not be, or has none.
    """
    module = plugins.load(f"method={name}", module_of(name))
    method = getattr(module, "METHOD", None)
    if not (inspect.isclass(method) and issubclass(method, BackboneMethod)):
        file = getattr(module, "__file__", None) or "the module"
        raise UserError(f"method={name}: {file} has no METHOD = … that is a BackboneMethod, see CONTRIBUTING.md")
    if not issubclass(method.Config, MethodConfig):
        raise UserError(f"method={name}: its Config is no MethodConfig, see CONTRIBUTING.md")
    if unknown := {*method.needs, *method.takes} - {*_DATA}:
        raise UserError(f"method={name}: it needs or takes {min(unknown)}; there are {', '.join(_DATA)}")
    return method


def numbers_of(choice: MethodChoice) -> Any:
    """The numbers that are given for a method, as an instance of its ``Config``.

    Raises:
        UserError: for a name that the method does not have, a wrong value, and a missing one.
    """
    schema = create_model("Numbers", __base__=JobConfig, method=(find_method(choice.name).Config, ...))
    return validate(f"method={choice.name}", schema, {"method": choice.model_extra or {}}).method


def resolved(config: TrainBackboneConfig) -> TrainBackboneConfig:
    """``config`` with every number of its method.

    Raises:
        UserError: as `numbers_of`.
    """
    numbers = numbers_of(config.method).model_dump()
    return config.model_copy(update={"method": MethodChoice(name=config.method.name, **numbers)})


def check_arguments(config: TrainBackboneConfig) -> type[BackboneMethod]:
    """The method of ``config``, once it is known that it takes what the job is given.

    Raises:
        UserError: when it does not.
    """
    method = find_method(config.method.name)
    where, given = f"method={config.method.name}", {key: getattr(config, key) for key in _DATA}
    if given["feedback"] == NO_FEEDBACK:
        given["feedback"] = None
    if missing := [key for key in _DATA if key in method.needs and given[key] is None]:
        raise UserError(f"{where}: needs {missing[0]}=")
    if config.val is None and (config.labeled is not None or not method.pre_trains):
        raise UserError(f"{where}: needs val=")
    for keys in _TOGETHER:
        refused = [key for key in keys if key not in (*method.needs, *method.takes)]
        if any(given[key] is not None for key in refused):
            raise UserError(f"{where}: takes {'neither ' if refused[1:] else 'no '}{'= nor '.join(refused)}=")
    numbers_of(config.method)
    return method
