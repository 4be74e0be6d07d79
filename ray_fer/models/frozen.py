"""Parts of a model that do not learn."""

from __future__ import annotations

from typing import Any

from torch import nn


def freeze(part: nn.Module) -> nn.Module:
    """Keeps a part of a model as it is: its weights get no gradient, and its BatchNorm statistics do not move.

    Whoever calls ``model.train()`` later, as the training loop does in every epoch, the part runs in evaluation mode.

    Args:
        part: A child of a model, at any depth; changed in place.

    Returns:
        The same module.
    """
    part.requires_grad_(False)
    part.register_forward_pre_hook(_evaluate)
    return part


def _evaluate(part: nn.Module, inputs: Any) -> None:
    part.eval()
