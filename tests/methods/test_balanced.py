import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_context import build_method, build_model, plain_weights
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.methods.batch import Targets
from ray_fer.methods.registry import numbers_of
from ray_fer.methods.supervised import BalancedHead, SupervisedMethod
from ray_fer.methods.terms import balanced, supervised_terms
from ray_fer.selection.file import Selection
from ray_fer.training.loop import total
from ray_fer.training.world import World
from tests.training.epochs import loss_of, run_epochs
from tests.training.toy import config, write_faces, write_sets

NATURAL = ("class_sampling=natural", "method.head=balanced")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("faces"), (10, 10, 10))


def recipe_of(faces: Path, *arguments: str, world: World | None = None) -> SupervisedMethod:
    recipe = build_method(open_inputs(config(faces, *arguments)), world or World())
    assert isinstance(recipe, SupervisedMethod)
    assert isinstance(recipe.head, BalancedHead)
    return recipe


def test_the_loss_by_hand() -> None:
    """Of two labelled faces the first is of a class drawn four times as often as that of the second."""
    targets = Targets(
        labels=torch.tensor([0, 1]),
        label_weights=torch.ones(2),
        soft=torch.tensor([[0.75, 0.25], [0.4, 0.6]]),
        soft_weights=torch.tensor([1.0, 0.0]),  # the second is unreadable
        label_count=2,
        soft_count=2,
    )
    weighted = balanced(targets, torch.tensor([0.25, 1.0]), torch.tensor([0.5, 1.0]))
    assert (weighted.label_weights.tolist(), weighted.soft_weights.tolist()) == ([0.25, 1.0], [0.5, 0.0])
    both = balanced(replace(targets, soft_weights=torch.ones(2)), torch.ones(2), torch.tensor([0.5, 1.0]))
    assert both.soft_weights.tolist() == [0.5, 1.0]
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0]])
    near, far = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    labelled = (0.25 * near + far) / 2
    soft = 0.5 * (0.75 * math.log(1 + math.exp(-2)) + 0.25 * math.log(1 + math.exp(2))) / 2
    loss = total(supervised_terms(logits, weighted, torch.ones(2), label_smoothing=0.0, pseudo_weight=3.0))
    assert loss.item() == pytest.approx(labelled + 3.0 * soft, rel=1e-6)


def test_both_heads_learn_the_balanced_one_without_the_margin(faces: Path) -> None:
    """Of 24, 12, 12 labelled faces, and of pseudo-labelled ones that are drawn alike."""
    arguments = ("logit_adjustment=1", f"pseudo={faces / 'selection'}", "batch_size=8")
    recipe = recipe_of(faces, *NATURAL, *arguments)
    assert recipe.head.labeled.tolist() == [0.5, 1.0, 1.0]
    assert recipe.head.pseudo.tolist() == [1.0] * 3
    step = next(recipe.steps(0))
    outputs = torch.randn(24, 2, 3)
    expected = recipe.supervised_loss(outputs[:, 0], step.targets)
    targets = balanced(step.targets, recipe.head.labeled, recipe.head.pseudo)
    expected += total(supervised_terms(outputs[:, 1], targets, recipe.class_weights, 0.1, 1.0))
    assert loss_of(recipe, outputs, step).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(recipe.inference_logits(outputs), outputs[:, 1])


def test_scarce_pseudo_labels_weigh_more(faces: Path) -> None:
    inputs = open_inputs(config(faces, f"pseudo={faces / 'selection'}", *NATURAL))
    assert inputs.selection is not None
    weights = np.where(inputs.selection.targets.argmax(axis=1) == 2, 0.25, 1.0).astype(np.float32)
    selection = Selection(inputs.selection.uris, inputs.selection.targets, weights, inputs.selection.info)
    recipe = build_method(replace(inputs, selection=selection), World())
    assert isinstance(recipe, SupervisedMethod)
    assert recipe.head.pseudo.tolist() == [0.25, 0.25, 1.0]


def test_uniform_draws_leave_nothing_to_balance(faces: Path) -> None:
    recipe = recipe_of(faces, "method.head=balanced")
    assert recipe.head.labeled.tolist() == [1.0] * 3


def test_ranks_share_a_step_and_its_loss(faces: Path) -> None:
    arguments = (*NATURAL, f"pseudo={faces / 'selection'}", "batch_size=6")
    recipes = [recipe_of(faces, *arguments, world=world) for world in (World(), World(0, 2), World(1, 2))]
    steps = [next(recipe.steps(3)) for recipe in recipes]
    outputs = {uri: torch.randn(2, 3) for uri in steps[0].uris}
    whole, *parts = (
        loss_of(recipe, torch.stack([outputs[uri] for uri in step.uris]), step).item()
        for recipe, step in zip(recipes, steps, strict=True)
    )
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)


def test_it_learns(faces: Path) -> None:
    recipe = recipe_of(faces, *NATURAL, "epochs=8", "learning_rate=0.01")
    losses = run_epochs(recipe, range(8))
    assert losses[-1] < losses[0]
    assert recipe.validate(7)[0] > 0.8


def test_it_learns_no_prior(faces: Path, tmp_path: Path) -> None:
    """Of faces that say nothing of their labels, 64, 8 and 8, the classifier learns how many there are of each."""
    manifest = Path(write_faces(tmp_path / "alike", (80, 0, 0), seed=7))
    names = [row.partition(",")[0] for row in manifest.read_text().splitlines()[1:]]
    labels = ["neutral"] * 64 + ["anger"] * 8 + ["happiness"] * 8
    manifest.write_text("\n".join(["path,label", *map(",".join, zip(names, labels, strict=True))]) + "\n")
    recipe = recipe_of(faces, f"labeled={manifest}", *NATURAL, "epochs=6", "learning_rate=0.01", "label_smoothing=0")
    run_epochs(recipe, range(6))
    of_head, _ = recipe.predict(recipe.val)
    recipe.inference_logits = lambda outputs: outputs[:, 0]  # type: ignore[method-assign]
    of_classifier, _ = recipe.predict(recipe.val)
    alike = recipe.val.labels == 0
    assert of_head[alike, 0].mean() < 0.5
    assert of_classifier[alike, 0].mean() > 0.6


def test_it_is_published_as_the_plain_backbone(faces: Path) -> None:
    recipe = recipe_of(faces, *NATURAL, "epochs=1")
    run_epochs(recipe, range(1))
    inputs = open_inputs(config(faces, *NATURAL))
    model, *_ = build_model(inputs)
    model.load_state_dict(plain_weights(inputs, recipe.ema_model.state_dict(), model))
    x = torch.randn(4, 3, 32, 32)
    both = recipe.ema_model(x)
    torch.testing.assert_close(model.eval()(x), both[:, 1])
    assert not torch.equal(both[:, 0], both[:, 1])


def test_it_takes_no_other_head() -> None:
    with pytest.raises(UserError, match=r"method\.head='debiased'"):
        numbers_of(load_config("train_backbone", ["labeled=a", "val=b", "out=c", "method.head=debiased"]).method)
