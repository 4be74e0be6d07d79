"""Frozen parts of a model, which do not learn, and BatchNorm at rest."""

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


def rest_batch_norm(model: nn.Module) -> nn.Module:
    """Keeps the running statistics of BatchNorm as they are, in training too; its weights learn.

    A pretrained net has the statistics of the pictures that it was trained on. Those of a batch of other pictures
    scramble its features at the first step, at any learning rate.

    Args:
        model: The model, which is changed in place.

    Returns:
        The same model.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(_evaluate)
    return model


def _evaluate(part: nn.Module, inputs: Any) -> None:
    part.eval()
