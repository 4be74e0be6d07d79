"""An epoch of steps without any framework: accumulation, and steps that are not finite."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_fer.errors import UserError
from ray_fer.training.finite import FiniteGuard
from ray_fer.training.loop import Batch
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World
from tests.training.counting import ROWS, CountingMethod
from tests.training.epochs import run_epochs

THIRD = int(list(CountingMethod(1, World()).steps(0))[2].uris[0].removeprefix("row-"))
"""A row of the third step."""


class Partial(CountingMethod):
    """What `CountingMethod` would be if an epoch had only some of its steps, and its learning rate were constant."""

    def __init__(self, numbers: Sequence[int], **options: Any) -> None:
        super().__init__(1, World(), norm=True, **options)
        self.numbers = numbers

    def steps(self, epoch: int) -> Iterator[Batch]:
        return (step for number, step in enumerate(super().steps(epoch)) if number in self.numbers)

    def learning_rate(self, step: int) -> float:
        return 0.01


def everything(recipe: CountingMethod, engine: PlainEngine) -> list[torch.Tensor]:
    """Weights, statistics, moments, averages and the method's own table."""
    moments = [state for one in engine.optimizer.state.values() for state in one.values()]
    models = [*recipe.model.state_dict().values(), *recipe.ema_model.state_dict().values()]
    return deepcopy([*models, *moments, recipe.seen, torch.tensor(recipe.ema.updates)])


@pytest.mark.parametrize("fault", ["bad", "kink"])
def test_a_step_that_is_left_out_changes_nothing(fault: str) -> None:
    recipe, twin = Partial(range(4), **{fault: THIRD}), Partial([0, 1, 3])
    ours, theirs = PlainEngine(recipe), PlainEngine(twin)
    guard = FiniteGuard(World(), 4, "skip")
    run_epochs(recipe, range(1), ours, guard)
    run_epochs(twin, range(1), theirs)
    assert guard.skipped == 1
    assert recipe.seen.sum() == ROWS - 6
    for mine, other in zip(everything(recipe, ours), everything(twin, theirs), strict=True):
        assert torch.equal(mine, other)


def test_a_run_that_stops_leaves_what_was_before() -> None:
    recipe, twin = Partial(range(4), bad=THIRD), Partial([0, 1])
    ours, theirs = PlainEngine(recipe), PlainEngine(twin)
    message = rf"^the loss became nan in epoch 1, step 3: lower learning_rate, or look at .*: row-{THIRD}, row"
    with pytest.raises(UserError, match=message):
        run_epochs(recipe, range(1), ours)
    run_epochs(twin, range(1), theirs)
    for mine, other in zip(everything(recipe, ours), everything(twin, theirs), strict=True):
        assert torch.equal(mine, other)


def test_all_pictures_of_a_step_are_on_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    bad, many = torch.tensor(math.nan), [f"u{n}" for n in range(192)]
    guard = FiniteGuard(World(), 100, "skip", folder=str(tmp_path))
    guard.bad_loss(bad, 0, 1, many)
    file = tmp_path / "not_finite" / "epoch-1-step-2.json"
    assert caplog.messages[0].endswith(f"its pictures: {', '.join(many[:8])} and 184 more, all of them in {file}")
    assert json.loads(file.read_text()) == {"what": "the loss became nan in epoch 1, step 2", "pictures": many}
    with pytest.raises(UserError, match=r"u7 and 184 more, all of them in .*/epoch-3-step-4.json$"):
        FiniteGuard(World(), 100, "stop", folder=str(tmp_path)).bad_gradient(2, 3, many)
    guard.bad_loss(bad, 0, 4, many[:8])
    assert caplog.messages[1].endswith("its pictures: u0, u1, u2, u3, u4, u5, u6, u7")


def test_too_many_are_no_accident(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    guard = FiniteGuard(World(), 100, "skip", skipped=9)
    bad = torch.tensor(math.inf)
    assert guard.finite(torch.tensor(1.0))
    assert not guard.finite(bad)
    guard.bad_loss(bad, 0, 1, [f"u{n}" for n in range(10)])
    assert caplog.messages == [
        "the loss became inf in epoch 1, step 2 and is left out; its pictures: u0, u1, u2, u3, u4, u5, u6, u7, u8, u9"
    ]
    with pytest.raises(UserError, match="step 3, and more than 10 steps have been left out for that"):
        guard.bad_loss(bad, 0, 2, ["a"])
    longer = FiniteGuard(World(), 2000, "skip", skipped=19)
    longer.bad_gradient(0, 0, [])
    with pytest.raises(UserError, match="more than 20 steps"):
        longer.bad_gradient(0, 1, [])


def test_an_epoch_without_a_step_is_no_epoch() -> None:
    with pytest.raises(UserError, match=r"^the method makes no step in epoch 1$"):
        run_epochs(Partial([]), range(1))


def test_accumulated_steps_are_one_larger_step() -> None:
    recipe, larger = CountingMethod(3, World(), accumulate=2), CountingMethod(3, World(), steps=2)
    losses = [run_epochs(one, range(3)) for one in (recipe, larger)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for mine, other in zip(recipe.ema_model.parameters(), larger.ema_model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert recipe.ema.updates == 6


def test_a_group_scales_the_learning_rate() -> None:
    recipe = CountingMethod(1, World(), steps=1)
    recipe.parameter_groups = lambda: [  # type: ignore[method-assign]
        {"params": [parameter], "lr_scale": scale}
        for parameter, scale in zip(recipe.model.parameters(), (0.0, 1.0, 0.5, 1.0), strict=True)
    ]
    engine = PlainEngine(recipe)
    before = deepcopy(list(recipe.model.parameters()))
    run_epochs(recipe, range(1), engine)
    assert [group["lr"] for group in engine.groups] == [0.0, 0.01, 0.005, 0.01]
    moved = [not torch.equal(old, new) for old, new in zip(before, recipe.model.parameters(), strict=True)]
    assert moved == [False, True, True, True]
