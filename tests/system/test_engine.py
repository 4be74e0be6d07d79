"""DeepSpeed over two ranks does what torch's AdamW does alone, in every ZeRO stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from ray_fer.training.engine import DeepSpeedEngine
from ray_fer.training.finite import FiniteGuard
from ray_fer.training.loop import train_epoch
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World
from tests.methods.test_meta_feedback import recipe_of
from tests.training.counting import CountingMethod
from tests.training.toy import write_faces

EPOCHS = 3
CIRCUIT_STAGES = (0, 2, 3)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "a frozen layer": {"frozen": True},
    "one bad picture": {"bad": 5},
    "one infinite gradient": {"kink": 7},
    "one bad picture accumulated": {"bad": 5, "accumulate": 2},
}


def train_stages(rank: int, folder: str) -> None:
    """Every case in every stage on one of two ranks; what rank 0 ends with goes into files."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train sets it
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for case, options in CASES.items():
        for stage in range(4):
            for precision in ("float32", "bfloat16"):
                world = World(rank, 2, 2, precision=precision)
                recipe = CountingMethod(EPOCHS, world, **options)
                guard = FiniteGuard(world, recipe.steps_per_epoch, "skip")
                engine = DeepSpeedEngine(recipe, world, stage)
                for epoch in range(EPOCHS):
                    train_epoch(recipe, engine, epoch, guard)
                with engine.gathered():
                    weights = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
                result = {"weights": weights, "ema": recipe.ema_model.state_dict(), "skipped": guard.skipped}
                if rank == 0:
                    torch.save(result, Path(folder) / f"{case}-{stage}-{precision}.pt")
    for stage in CIRCUIT_STAGES:
        train_circuit(World(rank, 2, 2), stage, Path(folder))
    dist.destroy_process_group()


def train_circuit(world: World, stage: int, folder: Path) -> None:
    """Meta feedback: an epoch of teacher and student, and one of the student alone."""
    recipe = recipe_of(folder, "epochs=2", "method.finetune=0.5", "learning_rate=0.001", world=world)
    engine = DeepSpeedEngine(recipe, world, stage)
    for epoch in range(2):
        train_epoch(recipe, engine, epoch, FiniteGuard(world, recipe.steps_per_epoch))
    with engine.gathered():
        if world.rank == 0:
            torch.save(engine.model.state_dict(), folder / f"circuit-{stage}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    for seed, (name, counts) in enumerate({"train": (24, 12, 12), "val": (10, 10, 10), "more": (20, 10, 10)}.items()):
        write_faces(folder / name, counts, seed=seed)
    torch.multiprocessing.spawn(train_stages, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_stage_is_the_plain_loop(trained: Path, case: str) -> None:
    recipe = CountingMethod(EPOCHS, World(), **CASES[case])
    guard = FiniteGuard(World(), recipe.steps_per_epoch, "skip")
    engine = PlainEngine(recipe)
    for epoch in range(EPOCHS):
        train_epoch(recipe, engine, epoch, guard)
    assert guard.skipped == (EPOCHS if "one" in case else 0)
    for stage in range(4):
        for precision, tolerance in (("float32", 1e-5), ("bfloat16", 3e-3)):
            result = torch.load(trained / f"{case}-{stage}-{precision}.pt")
            assert result["skipped"] == guard.skipped
            for name, weights in recipe.model.state_dict().items():
                torch.testing.assert_close(result["weights"][name], weights, atol=tolerance, rtol=0)
            for name, weights in recipe.ema_model.state_dict().items():
                torch.testing.assert_close(result["ema"][name], weights, atol=tolerance, rtol=0)


def test_a_teacher_at_rest_does_not_touch_the_student(trained: Path) -> None:
    """In fine-tuning no loss is the teacher's; stage 3 repeats the last gradients of weights that get none."""
    first, *others = (torch.load(trained / f"circuit-{stage}.pt") for stage in CIRCUIT_STAGES)
    for weights in others:
        for name, value in first.items():
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-5)
