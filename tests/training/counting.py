"""A recipe as small as can be that keeps a table of what it has seen, as rules over unlabeled faces do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ray_fer.training.loop import Step, World
from ray_fer.training.optimisation import Ema, parameter_groups

ROWS, STEPS = 24, 4


class CountingRecipe:
    """Fits y = x . (1, 2, 3); every step sees six of 24 rows, shared by the ranks."""

    def __init__(self, epochs: int, world: World) -> None:
        torch.manual_seed(0)
        self.world = world
        self.model: nn.Module = nn.Linear(3, 1).to(world.device)
        self.ema = Ema(self.model, 0.5)
        self.ema_model = self.ema.model
        self.epochs, self.steps_per_epoch, self.images_per_epoch = epochs, STEPS, ROWS
        self.inputs = torch.randn(ROWS, 3)
        self.seen = torch.zeros(ROWS, dtype=torch.int8)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, 0.0)

    def learning_rate(self, step: int) -> float:
        return 0.01

    def steps(self, epoch: int) -> Iterator[Step]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).reshape(STEPS, -1)
        for together in order:
            rows = together[self.world.rank :: self.world.size]
            yield Step(self.inputs[rows].to(self.world.device), [f"row-{row}" for row in rows.tolist()], together)

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        self.seen[step.data] += 1
        return ((outputs[:, 0] - step.inputs @ torch.tensor([1.0, 2.0, 3.0])) ** 2).mean()

    def after_step(self, model: nn.Module) -> None:
        self.ema.update(model)

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """The share of rows seen in every epoch so far, and how often all were seen together."""
        whole = float((self.seen == epoch + 1).float().mean())
        return whole, {"sightings": int(self.seen.sum())}

    def state(self) -> dict[str, Any]:
        return {"ema_updates": self.ema.updates}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.ema.updates = state["ema_updates"]
        self.seen = tensors["seen"]


def make_counting(epochs: int, world: World) -> CountingRecipe:
    return CountingRecipe(epochs, world)
