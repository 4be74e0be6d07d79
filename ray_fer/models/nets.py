"""Nets that timm lacks: a module of the user registers them with timm, and a run names that module.

``backbone=my.nets:resnet10t_wide`` imports ``my.nets``, in which ``timm.models.register_model`` decorates
``resnet10t_wide``. The artifact records the module, so the model opens again wherever the module can be imported. timm
itself opens it after the module has been imported.
"""

from __future__ import annotations

import timm
import torch

from ray_fer import plugins


def timm_name(backbone: str) -> str:
    """Timm's name of a backbone that is given as ``NAME`` or ``MODULE:NAME``; the module is imported.

    Raises:
        UserError: If there is no such module.
    """
    module, _, name = backbone.rpartition(":")
    if module:
        plugins.load(f"backbone={backbone}", module)
    return name


def module_of(model: torch.nn.Module) -> str | None:
    """The module that registered the net of ``model``; None for timm's own nets."""
    name = str(getattr(model, "default_cfg", {}).get("architecture", ""))
    module = timm.model_entrypoint(name).__module__ if timm.is_model(name) else "timm"
    return None if module.partition(".")[0] == "timm" else module
