"""Whole weights and moments: what one number of ranks leaves off at one ZeRO stage, another goes on with at another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from ray_fer.training.engine import DeepSpeedEngine
from ray_fer.training.finite import FiniteGuard
from ray_fer.training.loop import Batch, train_epoch
from ray_fer.training.optimisation import Ema
from ray_fer.training.world import World
from tests.training.counting import CountingMethod

State = dict[str, dict[str, torch.Tensor]]


class Start(NamedTuple):
    """A run's number of ranks, its stage, its precision, and whether one branch learns only in the second epoch."""

    size: int
    stage: int
    precision: str = "float32"
    late: bool = False


STAGES = range(4)
CHANGES = [
    *((Start(1, stage), 2, stage) for stage in STAGES),
    *((Start(2, stage), 1, new_stage) for stage in STAGES for new_stage in (stage, (stage + 1) % 4)),
]
# On one rank torch's AdamW keeps nothing of weights that have had no gradient yet.
WITHOUT = Start(1, 0, late=True)
UNCHANGED = [WITHOUT, *(Start(2, stage, "bfloat16", late=True) for stage in STAGES)]


class Net(nn.Module):
    """Weights whose sizes two ranks do not divide, one that never learns, and a branch that may be left out.

    ``wide`` is large enough for stage 3 to cut up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.late, self.wide, self.last = (
            nn.Linear(3, 5),
            nn.Linear(3, 5),
            nn.Linear(5, 20_001),
            nn.Linear(20_001, 1),
        )
        self.first.bias.requires_grad_(False)
        self.with_late = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        outputs: torch.Tensor = self.last(
            torch.tanh(self.wide(torch.tanh(hidden + self.late(inputs) if self.with_late else hidden)))
        )
        return outputs


class GroupedRecipe(CountingMethod):
    """Two groups of weights, and two steps to one of the optimiser."""

    def __init__(self, world: World, late: bool) -> None:
        super().__init__(2, world, accumulate=2)
        self.net = self.model = Net()
        self.ema = Ema(self.net, 0.5)
        self.ema_model = self.ema.model
        self.late = late

    def parameter_groups(self) -> list[dict[str, Any]]:
        slow = {"params": [self.net.first.weight], "lr_scale": 0.5, "weight_decay": 0.01}
        return [
            slow,
            {
                "params": [
                    each for layer in (self.net.late, self.net.wide, self.net.last) for each in layer.parameters()
                ]
            },
        ]

    def steps(self, epoch: int) -> Iterator[Batch]:
        self.net.with_late = not self.late or epoch > 0
        return super().steps(epoch)


def snapshot(engine: DeepSpeedEngine) -> State:
    parts = {"weights": engine.weights(), "moments": engine.moments()}
    return {part: {name: tensor.clone() for name, tensor in tensors} for part, tensors in parts.items()}


def begin(start: Start, world: World) -> tuple[State, State]:
    """What there is after each of two epochs."""
    recipe = GroupedRecipe(world, start.late)
    engine = DeepSpeedEngine(recipe, world, start.stage)
    assert not snapshot(engine)["moments"], "nothing has been updated yet"
    train_epoch(recipe, engine, 0, FiniteGuard(world, recipe.steps_per_epoch))
    engine(recipe.inputs)  # a step that is left out
    half = snapshot(engine)
    train_epoch(recipe, engine, 1, FiniteGuard(world, recipe.steps_per_epoch))
    return half, snapshot(engine)


def go_on(start: Start, world: World, stage: int, half: State) -> tuple[State, State]:
    """What there is before and after the second epoch when it goes on from what there was ``half``-way."""
    recipe = GroupedRecipe(world, start.late)
    recipe.model.load_state_dict(half["weights"])
    engine = DeepSpeedEngine(recipe, world, stage)
    engine.load_moments(half["moments"])
    loaded = snapshot(engine)
    train_epoch(recipe, engine, 1, FiniteGuard(world, recipe.steps_per_epoch))
    return loaded, snapshot(engine)


def name_of(*what: object) -> str:
    return f"{what}.pt"


def train(index: int, folder: Path, begun: Any) -> None:
    """The first process is a world of its own, the other two are another; each goes on from what both have begun."""
    size, rank = (1, 0) if index == 0 else (2, index - 1)
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train sets it
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{size}", rank=rank, world_size=size)
    for start in dict.fromkeys([*(start for start, _, _ in CHANGES), *UNCHANGED, WITHOUT]):
        if start.size == size:
            result = begin(start, World(rank, size, size, precision=start.precision))
            if rank == 0:
                torch.save(result, folder / name_of(start))
    begun.wait()
    for start, after, stage in [*CHANGES, *((start, start.size, start.stage) for start in UNCHANGED), (WITHOUT, 2, 1)]:
        if after == size:
            half, _ = torch.load(folder / name_of(start))
            result = go_on(start, World(rank, size, size, precision=start.precision), stage, half)
            if rank == 0:
                torch.save(result, folder / name_of(start, after, stage))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moments")
    begun = torch.multiprocessing.get_context("spawn").Barrier(3)
    torch.multiprocessing.spawn(train, (folder, begun), nprocs=3)
    return folder


@pytest.mark.parametrize(("start", "after", "stage"), CHANGES)
def test_another_number_of_ranks_and_stage_go_on(trained: Path, start: Start, after: int, stage: int) -> None:
    """All that differs is the order in which floats are summed."""
    half, end = torch.load(trained / name_of(start))
    assert {float(value) for name, value in half["moments"].items() if name.endswith("/step")} == {2.0}
    assert len(half["moments"]) == 3 * 7
    loaded, resumed = torch.load(trained / name_of(start, after, stage))
    assert_close(loaded, half, 0)
    assert_close(resumed, end, 1e-6)


@pytest.mark.parametrize("start", UNCHANGED)
def test_the_same_ranks_go_on_to_the_bit(trained: Path, start: Start) -> None:
    loaded, resumed = torch.load(trained / name_of(start, start.size, start.stage))
    half, end = torch.load(trained / name_of(start))
    assert_close(loaded, half, 0)
    assert_close(resumed, end, 0)


def test_weights_without_moments_are_counted_with_the_others(trained: Path) -> None:
    half, _ = torch.load(trained / name_of(WITHOUT))
    loaded, _ = torch.load(trained / name_of(WITHOUT, 2, 1))
    known = {name: value for name, value in loaded["moments"].items() if not name.startswith("late.")}
    assert_close({**loaded, "moments": known}, half, 0)
    late = {name: value for name, value in loaded["moments"].items() if name not in known}
    assert len(late) == 3 * 2
    assert {value.abs().max().item() for name, value in late.items()} == {0.0, 2.0}
    assert all(value == 2 for name, value in late.items() if name.endswith("/step"))


def assert_close(ours: State, theirs: State, atol: float) -> None:
    for part in ("weights", "moments"):
        assert ours[part].keys() == theirs[part].keys()
        for name, value in theirs[part].items():
            torch.testing.assert_close(ours[part][name], value, atol=atol, rtol=0)
