"""The training loop without any framework: what a method is, and one epoch of steps.

A method is a function of (seed, epoch, step, rank) and of its weights: it keeps no iterator and no random state between
epochs. So a checkpoint at the end of an epoch is the whole truth, and a run that was interrupted goes on exactly as if
it had not been.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ray_fer.errors import UserError
from ray_fer.training.finite import FiniteGuard

CLIP_NORM = 1.0
"""The largest norm of the gradients of an optimiser step."""
Terms = dict[str, torch.Tensor]
"""The terms of a loss by name, each a scalar; their sum is the loss."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step computes on one rank; methods add what their losses need besides.

    Attributes:
        inputs: Input of the model.
        uris: The pictures in it, for messages.
    """

    inputs: torch.Tensor
    uris: list[str]


class Engine(Protocol):
    """A method's model in training.

    Attributes:
        model: The method's.
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
        """Adds the gradients of ``loss``, divided by the method's ``accumulate``."""
        ...

    def step(self) -> bool:
        """One optimiser step with the gradients' mean over the ranks; sets the gradients to zero.

        Returns:
            False where they are not finite on some rank: then nothing has changed but that they are zero.
        """
        ...

    def gathered(self) -> AbstractContextManager[Any]:
        """A context in which the model has its full weights, for engines that partition them."""
        ...


class Method(Protocol):
    """What is trained and how; the runner knows nothing else about it. Made anew on every rank and at every restart.

    Attributes:
        model: The model that is trained.
        ema_model: The model that is validated and published.
        epochs: Number of epochs.
        steps_per_epoch: Steps of every epoch, a multiple of ``accumulate``.
        accumulate: Steps whose gradients are averaged into one optimiser step.
        images_per_epoch: Number of images over all ranks, for the log.
    """

    model: nn.Module
    ema_model: nn.Module
    epochs: int
    steps_per_epoch: int
    accumulate: int
    images_per_epoch: int

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW; a group's ``lr_scale``, if it has one, multiplies its learning rate."""
        ...

    def learning_rate(self, step: int) -> float:
        """The learning rate at optimiser step ``step`` of the whole run."""
        ...

    def steps(self, epoch: int) -> Iterator[Batch]:
        """This rank's part of every step of ``epoch``, a function of the epoch alone."""
        ...

    def losses(self, outputs: torch.Tensor, batch: Any) -> Terms:
        """The terms of this rank's loss, scaled so that their mean over the ranks is the loss of the step.

        It changes no state: a step whose loss is not finite is left out. What it finds out for the method's state waits
        in ``batch`` for `after_step`.
        """
        ...

    def after_step(self, model: nn.Module, batches: list[Any]) -> None:
        """Called after every optimiser step with the model and the up to ``accumulate`` batches of that step."""
        ...

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Score (higher is better) and JSON-able metrics of the averaged model, the same on every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able state besides weights, the same on every rank."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """State that is tensors, the same on every rank; on any device, no two of them sharing memory."""
        ...

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `state` and `tensors` returned, on every rank; the tensors come on the CPU."""
        ...


def total(terms: Terms) -> torch.Tensor:
    """The sum of ``terms``, in their order."""
    return functools.reduce(operator.add, terms.values())


def train_epoch(method: Method, engine: Engine, epoch: int, guard: FiniteGuard) -> dict[str, float]:
    """Every step of one epoch.

    Args:
        method: What to train.
        engine: Wraps the method's model.
        epoch: Counts from 0.
        guard: Decides over steps whose loss or gradients are not finite.

    Returns:
        Means of ``loss`` and of each of its terms over this rank's part of the steps that were not left out.

    Raises:
        UserError: when the guard stops the run; it names the pictures of that step. When the epoch has no step.
    """
    model, means = engine.model, dict[str, list[torch.Tensor]]()
    before = _Buffers(model)
    start = before if method.accumulate == 1 else _Buffers(model)
    model.train()
    at = -1
    for at, batch in enumerate(method.steps(epoch)):
        before.keep()
        if at % method.accumulate == 0:
            together = list[Batch]()
            if start is not before:
                start.keep()
        terms = method.losses(engine(batch.inputs), batch)
        loss = total(terms)
        if guard.finite(loss):
            engine.backward(loss)
            together.append(batch)
            for name, term in {"loss": loss, **terms}.items():
                means.setdefault(name, []).append(term.detach())
        else:
            before.restore()
            guard.bad_loss(loss, epoch, at, batch.uris)
        if (at + 1) % method.accumulate or not together:
            continue
        learning_rate = method.learning_rate((epoch * method.steps_per_epoch + at) // method.accumulate)
        for group in engine.groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        if engine.step():
            with engine.gathered():
                method.after_step(model, together)
        else:
            start.restore()
            guard.bad_gradient(epoch, at, [uri for batch in together for uri in batch.uris])
    if at < 0:
        raise UserError(f"the method makes no step in epoch {epoch + 1}")
    return {"loss": math.nan} | {name: float(torch.stack(each).double().mean()) for name, each in means.items()}


class _Buffers:
    """The buffers of a model as they were: a forward pass leaves BatchNorm's statistics behind.

    They are copied in each step, so into memory that is there already: a tenth of the time of as many clones.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept = [buffer.clone() for buffer in model.buffers()]

    @torch.no_grad()
    def keep(self) -> None:
        if self._kept:
            torch._foreach_copy_(self._kept, list(self._model.buffers()))

    @torch.no_grad()
    def restore(self) -> None:
        if self._kept:
            torch._foreach_copy_(list(self._model.buffers()), self._kept)
