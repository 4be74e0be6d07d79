"""Two ranks of the online recipe find out what one does that has the whole step to itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from ray_fer.training.world import World
from tests.methods.test_online import ONLINE, Partly, recipe_of, step_of_known_logits
from tests.training.toy import write_faces

# Rules whose ranks add up what they measure, and FlexMatch, whose ranks append it.
CASES = [(rule, share) for rule in ("softmatch", "freematch", "debiaspl", "flexmatch") for share in ("all", "some")]


def taken_step(folder: Path, rule: str, share: str, world: World) -> dict[str, Any]:
    """What a rank knows after one step of which ``share`` of the unlabeled faces could be read."""
    recipe = recipe_of(folder, *ONLINE, f"method.rule={rule}", world=world)
    if share == "some":  # more of them on one rank than on the other
        recipe.unlabeled = replace(recipe.unlabeled, images=Partly(recipe.unlabeled.images, lambda rows: rows % 3 > 0))
    step, loss = step_of_known_logits(recipe, 2)
    recipe._exchange()
    readable = len(step.unlabeled.readable)
    return {"loss": loss, "readable": readable, "accepted": recipe.accepted, "tensors": recipe.tensors()}


def take_steps(rank: int, folder: str) -> None:
    """Every case on one of two ranks; what it ends with goes into files."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for rule, share in CASES:
        torch.save(taken_step(Path(folder), rule, share, World(rank, 2, 2)), f"{folder}/{rule}-{share}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    for name, counts in (("train", (24, 12, 12)), ("val", (10, 10, 10)), ("more", (20, 10, 10))):
        write_faces(folder / name, counts)
    torch.multiprocessing.spawn(take_steps, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize(("rule", "share"), CASES)
def test_two_ranks_are_one(taken: Path, rule: str, share: str) -> None:
    ranks = [torch.load(taken / f"{rule}-{share}-{rank}.pt") for rank in (0, 1)]
    whole = taken_step(taken, rule, share, World())
    assert whole["readable"] == sum(rank["readable"] for rank in ranks)
    assert (whole["readable"] == 16) == (share == "all")
    assert sum(rank["loss"] for rank in ranks) / 2 == pytest.approx(whole["loss"], rel=1e-5)
    for rank in ranks:
        torch.testing.assert_close(rank["accepted"], whole["accepted"])
        for name, tensor in whole["tensors"].items():
            # The mean over the ranks of their means: the same where both have seen as many faces.
            if name != "class_shares" or share == "all":
                torch.testing.assert_close(rank["tensors"][name], tensor, msg=lambda text, name=name: f"{name}: {text}")
