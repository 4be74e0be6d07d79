"""The training loop without any framework: what a recipe is, and one epoch of steps.

A recipe is a function of (seed, epoch, step, rank) and of its weights: it keeps no iterator and no random state between
epochs. So a checkpoint at the end of an epoch is the whole truth, and a run that was interrupted goes on exactly as if
it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ray_fer.training.finite import FiniteGuard


@dataclass(frozen=True)
class Step:
    """What one step computes on one rank.

    Attributes:
        inputs: of the model.
        uris: the pictures in it, for messages.
        data: whatever the recipe's loss needs besides.
    """

    inputs: torch.Tensor
    uris: list[str]
    data: Any


class Engine(Protocol):
    """A recipe's model in training.

    Attributes:
        model: the recipe's.
    """

    model: nn.Module

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups, whose ``lr`` is set before every optimiser step."""
        ...

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the model in training mode."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of ``loss``, divided by the recipe's ``accumulate``."""
        ...

    def step(self) -> bool:
        """One optimiser step with the gradients' mean over the ranks, and gradients to zero.

        Returns:
            False where they are not finite on some rank: then nothing has changed but that they are zero.
        """
        ...

    def whole(self) -> AbstractContextManager[Any]:
        """A context in which the model has whole weights, for engines that cut them up."""
        ...


class Recipe(Protocol):
    """What is trained and how; the runner knows nothing else about it. Made anew on every rank and at every restart.

    Attributes:
        model: what is trained.
        ema_model: what is validated and published.
        epochs: number of epochs.
        steps_per_epoch: steps of every epoch, a multiple of ``accumulate``.
        accumulate: steps whose gradients are averaged into one optimiser step.
        images_per_epoch: over all ranks, for the log.
    """

    model: nn.Module
    ema_model: nn.Module
    epochs: int
    steps_per_epoch: int
    accumulate: int
    images_per_epoch: int

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For AdamW; a group's ``lr_scale``, if it has one, multiplies its learning rate."""
        ...

    def learning_rate(self, step: int) -> float:
        """At optimiser step ``step`` of the whole run."""
        ...

    def steps(self, epoch: int) -> Iterator[Step]:
        """This rank's part of every step of ``epoch``, a function of the epoch alone."""
        ...

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """This rank's loss; its mean over the ranks is the loss of the step.

        It changes no state, for where it is not finite, the step has never been. What it finds out for the recipe's
        state waits in ``step.data`` for `after_step`.
        """
        ...

    def after_step(self, model: nn.Module, steps: list[Step]) -> None:
        """Called after every optimiser step with the model and the up to ``accumulate`` steps that it was made of."""
        ...

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Score (higher is better) and JSON-able metrics of the averaged model, the same on every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able state besides weights, the same on every rank."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """State that is tensors, likewise; on any device, no two of them sharing memory."""
        ...

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` and `tensors` returned, on every rank; the tensors come on the CPU."""
        ...


def train_epoch(recipe: Recipe, engine: Engine, epoch: int, guard: FiniteGuard) -> float:
    """Every step of one epoch.

    Args:
        recipe: what to train.
        engine: wraps the recipe's model.
        epoch: counts from 0.
        guard: decides over steps whose loss or gradients are not finite.

    Returns:
        Mean loss of this rank's part of the steps that were not left out.

    Raises:
        UserError: when the guard stops the run, naming the pictures of that step.
    """
    model, losses = engine.model, list[torch.Tensor]()
    model.train()
    for at, step in enumerate(recipe.steps(epoch)):
        before = _buffers(model)
        if at % recipe.accumulate == 0:
            start, together = before, list[Step]()
        loss = recipe.loss(engine(step.inputs), step)
        if guard.finite(loss):
            engine.backward(loss)
            losses.append(loss.detach())
            together.append(step)
        else:
            _restore(model, before)
            guard.bad_loss(loss, epoch, at, step.uris)
        if (at + 1) % recipe.accumulate or not together:
            continue
        learning_rate = recipe.learning_rate((epoch * recipe.steps_per_epoch + at) // recipe.accumulate)
        for group in engine.groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        if engine.step():
            with engine.whole():
                recipe.after_step(model, together)
        else:
            _restore(model, start)
            guard.bad_gradient(epoch, at, [uri for step in together for uri in step.uris])
    return float(torch.stack(losses).double().mean()) if losses else math.nan


def _buffers(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


@torch.no_grad()
def _restore(model: nn.Module, buffers: list[torch.Tensor]) -> None:
    # BatchNorm's statistics are what a forward pass leaves behind.
    for buffer, earlier in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(earlier)
