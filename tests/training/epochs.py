"""Epochs on one rank without Ray or DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch

from ray_fer.training.finite import FiniteGuard
from ray_fer.training.loop import Batch, Method, total, train_epoch
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World


def run_epochs(
    method: Method, epochs: range, engine: PlainEngine | None = None, guard: FiniteGuard | None = None
) -> list[float]:
    """Trains without validation; the losses of the epochs."""
    engine = engine or PlainEngine(method)
    guard = guard or FiniteGuard(World(), method.steps_per_epoch)
    return [train_epoch(method, engine, epoch, guard)["loss"] for epoch in epochs]


def loss_of(method: Any, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The sum of the terms."""
    return total(method.losses(outputs, batch))
