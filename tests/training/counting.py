"""A method as small as can be that keeps a table of what it has seen, as rules over unlabeled faces do."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_fer.models.frozen import freeze
from ray_fer.training.loop import Batch, Terms
from ray_fer.training.optimisation import Ema, parameter_groups
from ray_fer.training.world import World

ROWS = 24
TRUTH = torch.tensor([1.0, 2.0, 3.0])


@dataclass(frozen=True, eq=False)
class Rows(Batch):
    """Rows of one rank, and those of all ranks together."""

    together: torch.Tensor


class CountingMethod:
    """Fits y = x . (1, 2, 3); an epoch sees 24 rows, a step its share of them, a rank its share of that.

    Args:
        epochs: how many.
        world: the ranks.
        accumulate: steps to an optimiser step.
        bad: a row whose input is NaN.
        kink: a row whose loss has an infinite slope.
        norm: puts a BatchNorm into the model.
        steps: of an epoch.
        frozen: whether the first layer learns nothing.
        grave: a file in the run's folder; unless it is there, the last rank makes it and dies in the middle of the
            second epoch, once Ray Train has noted the checkpoint of the first: before, that does not count.
    """

    def __init__(
        self,
        epochs: int,
        world: World,
        accumulate: int = 1,
        bad: int | None = None,
        kink: int | None = None,
        norm: bool = False,
        steps: int = 4,
        grave: Path | None = None,
        frozen: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.world, self.kink, self.grave = world, kink, grave
        layers = [nn.Linear(3, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 1)]
        self.model: nn.Module = nn.Sequential(*layers).to(world.device)
        if frozen:
            freeze(layers[0])
        self.ema = Ema(self.model, 0.5)
        self.ema_model = self.ema.model
        self.epochs, self.steps_per_epoch, self.accumulate, self.images_per_epoch = epochs, steps, accumulate, ROWS
        self.inputs = torch.randn(ROWS, 3)
        if bad is not None:
            self.inputs[bad] = math.nan
        self.seen = torch.zeros(ROWS, dtype=torch.int8)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, 0.01)

    def learning_rate(self, step: int) -> float:
        return 0.01 / (1 + step)

    def steps(self, epoch: int) -> Iterator[Batch]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).reshape(self.steps_per_epoch, -1)
        for number, together in enumerate(order):
            if (epoch, number) == (1, 2) and self.world.rank == self.world.size - 1:
                self._die_once()
            rows = together[self.world.rank :: self.world.size]
            uris = [f"row-{row}" for row in rows.tolist()]
            yield Rows(self.inputs[rows].to(self.world.device), uris, together)

    def _die_once(self) -> None:
        if self.grave is not None and not self.grave.exists():
            while not (self.grave.parent / "ray" / "checkpoint_manager_snapshot.json").exists():
                time.sleep(0.1)
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def losses(self, outputs: torch.Tensor, batch: Rows) -> Terms:
        terms = {"square": ((outputs[:, 0] - batch.inputs @ TRUTH) ** 2).mean()}
        return terms | ({"kink": (0 * outputs.sum()).sqrt()} if f"row-{self.kink}" in batch.uris else {})

    def after_step(self, model: nn.Module, batches: list[Rows]) -> None:
        self.ema.update(model)
        for batch in batches:
            self.seen[batch.together] += 1

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


def make_counting(epochs: int, options: dict[str, Any], world: World) -> CountingMethod:
    return CountingMethod(epochs, world, **options)
