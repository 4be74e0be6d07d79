"""In which order a step of the online recipe measures, updates and accepts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ray_fer.jobs.backbone_context import build_method
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.methods.online import OnlineMethod
from ray_fer.selection import Accepted, Measured, Rule, SelectionContext, State
from ray_fer.training.world import World
from tests.training.epochs import loss_of
from tests.training.toy import config, write_faces


@dataclass(frozen=True)
class AcceptAfterTheFirst(Rule):
    """Accepts everything once any face was counted."""

    def measure(self, probs: Any, state: State, rows: Any = None) -> Measured:
        return {"count": probs.new_tensor(float(len(probs)))}

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        return {"count": state["count"] + measured["count"]}

    def accept(self, probs: Any, state: State, known: SelectionContext) -> Accepted:
        return Accepted((state["count"] > 0).float().expand(len(probs)), probs.argmax(dim=1), probs)


class UpdateFirst(AcceptAfterTheFirst):
    update_first: ClassVar[bool] = True


@pytest.mark.parametrize(("rule", "of_the_first"), [(AcceptAfterTheFirst(), 0.0), (UpdateFirst(), 1.0)])
def test_a_batch_enters_the_statistics_when_its_rule_says(tmp_path: Path, rule: Rule, of_the_first: float) -> None:
    for number, name in enumerate(("train", "val", "more")):
        write_faces(tmp_path / name, (6, 6, 6), seed=number)
    settings = config(tmp_path, "method=online", "feedback=none", "batch_size=6", f"unlabeled={tmp_path / 'more'}")
    recipe = build_method(open_inputs(settings), World(), sorted(map(str, (tmp_path / "more").glob("*.png"))))
    assert isinstance(recipe, OnlineMethod)
    recipe.rule, recipe.rule_state = rule, {"count": torch.zeros(())}
    for number, (step, expected) in enumerate(zip(recipe.steps(0), (of_the_first, 1.0), strict=False)):
        loss_of(recipe, torch.zeros(len(step.uris), 3), step)
        assert step.unlabeled.found.accepted.tolist() == [expected] * 12
        assert recipe.rule_state["count"] == 12 * number, "a loss changes nothing: its step may be left out"
        recipe.after_step(recipe.model, [step])
        assert recipe.rule_state["count"] == 12 * (number + 1), "once"
