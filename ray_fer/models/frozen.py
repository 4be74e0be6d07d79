"""Frozen parts of a model, which do not learn."""

from __future__ import annotations

from typing import Any

from torch import nn


def freeze(part: nn.Module) -> nn.Module:
    """Freezes a part of a model: its weights get no gradient, and its BatchNorm statistics do not change.

    The part runs in evaluation mode even after ``model.train()``, which the training loop calls in every epoch.

    Args:
        part: A child of a model, at any depth; it is changed in place.

    Returns:
        The same module.
    """
    part.requires_grad_(False)
    part.register_forward_pre_hook(_evaluate)
    return part


def _evaluate(part: nn.Module, inputs: Any) -> None:
    part.eval()
