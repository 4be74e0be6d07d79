"""The training loop without any framework: what a recipe is, who takes part, and one epoch of steps.

A recipe is a function of (seed, epoch, step, rank) and of its weights: it keeps no iterator and no random state between
epochs. So a checkpoint at the end of an epoch is the whole truth, and a run that was interrupted goes on exactly as if
it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ray_fer.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The ranks that train together, and the device of this one.

    Attributes:
        rank: 0 … size - 1.
        size: number of ranks.
        local_size: ranks on this machine.
        device: where this rank computes.
        precision: ``float32`` or ``bfloat16`` (autocast; weights stay float32).
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"

    def autocast(self) -> torch.autocast:
        """The context for a forward pass in this world's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def broadcast(self, value: T) -> T:
        """Rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The ``value`` of every rank, in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def average_buffers(self, model: nn.Module) -> None:
        """Replaces the floating buffers (BatchNorm statistics) by their mean over the ranks."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size


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
    """A model in training, as DeepSpeed wraps it."""

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the model in training mode."""
        ...

    def backward(self, loss: torch.Tensor) -> Any:
        """Gradients of ``loss``, averaged over the ranks."""
        ...

    def step(self) -> Any:
        """One optimiser step, and gradients to zero."""
        ...


class Recipe(Protocol):
    """What is trained and how; the runner knows nothing else about it. Made anew on every rank and at every restart.

    Attributes:
        model: what is trained.
        ema_model: what is validated and published.
        epochs: number of epochs.
        steps_per_epoch: steps of every epoch.
        images_per_epoch: over all ranks, for the log.
    """

    model: nn.Module
    ema_model: nn.Module
    epochs: int
    steps_per_epoch: int
    images_per_epoch: int

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For AdamW."""
        ...

    def learning_rate(self, step: int) -> float:
        """At step ``step`` of the whole run."""
        ...

    def steps(self, epoch: int) -> Iterator[Step]:
        """This rank's part of every step of ``epoch``, a function of the epoch alone."""
        ...

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """This rank's loss; its mean over the ranks is the loss of the step."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Called with the model after every optimiser step."""
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


def train_epoch(
    recipe: Recipe,
    engine: Engine,
    model: nn.Module,
    groups: list[dict[str, Any]],
    epoch: int,
    whole: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Every step of one epoch.

    Args:
        recipe: what to train.
        engine: wraps ``model``.
        model: the model that ``engine`` updates.
        groups: the optimiser's parameter groups, whose ``lr`` is set before every step.
        epoch: counts from 0.
        whole: makes a context in which ``model`` has whole weights, for engines that cut them up.

    Returns:
        Mean loss of this rank's part.

    Raises:
        UserError: when a loss is not finite, naming the pictures of that step.
    """
    total = torch.zeros((), dtype=torch.float64)
    last: tuple[int, Step, torch.Tensor] | None = None
    model.train()
    for number, step in enumerate(recipe.steps(epoch), start=epoch * recipe.steps_per_epoch):
        for group in groups:
            group["lr"] = recipe.learning_rate(number)
        loss = recipe.loss(engine(step.inputs), step)
        engine.backward(loss)
        engine.step()
        with whole():
            recipe.after_step(model)
        # One step late, so that an accelerator is never waited for.
        if last is not None:
            total += _checked(epoch, *last)
        last = number, step, loss.detach()
    if last is not None:
        total += _checked(epoch, *last)
    return float(total) / recipe.steps_per_epoch


def _checked(epoch: int, number: int, step: Step, loss: torch.Tensor) -> float:
    value = float(loss)
    if not math.isfinite(value):
        named = ", ".join(step.uris[:8]) + (f" and {len(step.uris) - 8} more" if len(step.uris) > 8 else "")
        raise UserError(
            f"the loss became {value} in epoch {epoch + 1}, step {number + 1}: "
            f"lower learning_rate, or look at the pictures of that step: {named}"
        )
    return value
