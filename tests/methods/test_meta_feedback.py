"""The circuit of meta feedback, on one rank."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ray_fer.jobs.backbone_context import build_method, build_model, plain_weights
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.methods import meta_feedback
from ray_fer.methods.meta_feedback import MetaBatch, MetaFeedbackMethod, Unlabeled
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World
from tests.training.epochs import loss_of, run_epochs
from tests.training.toy import config, write_sets


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("faces"), (20, 10, 10))


def recipe_of(faces: Path, *arguments: str, world: World | None = None) -> Any:
    unlabeled = sorted(str(path) for path in (faces / "more").glob("*.png"))
    settings = config(faces, f"unlabeled={faces / 'more'}", "method=meta_feedback", "batch_size=8", *arguments)
    return build_method(open_inputs(settings), world or World(), unlabeled)


def test_a_step_that_helps_has_a_positive_h(faces: Path) -> None:
    """The sign: a student that got better on labelled faces makes the teacher more sure of its labels."""
    recipe: MetaFeedbackMethod = recipe_of(faces)
    step = next(recipe.steps(0))
    student = recipe.pair.student.eval()
    start = deepcopy(student.state_dict())
    weights = list(student.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(student(step.labeled), step.labels), weights)
    for direction, expected in ((1, 1.0), (-1, -1.0)):
        student.load_state_dict(start)
        recipe.moments = {"mean": 0.0, "square": 1e-8, "count": 5}
        with torch.no_grad():
            torch._foreach_sub_(weights, [direction * 0.05 * slope for slope in slopes])
        recipe.after_step(recipe.model, [step])
        assert recipe.h == expected


def test_h_is_zero_for_a_student_that_does_not_move(faces: Path) -> None:
    """BatchNorm's statistics, which a forward pass moves, are no feedback."""
    recipe: MetaFeedbackMethod = recipe_of(faces)
    student = recipe.pair.student
    for step in itertools.islice(recipe.steps(0), 4):
        before = deepcopy(student.state_dict())
        recipe.model.train()(step.inputs)
        after = deepcopy(student.state_dict())
        assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
        recipe.after_step(recipe.model, [step])
        assert recipe.moments["mean"] == recipe.moments["square"] == recipe.h == 0.0
        assert student.training
        assert all(torch.equal(value, after[name]) for name, value in student.state_dict().items())


def test_the_baseline_takes_out_what_every_step_gains(faces: Path) -> None:
    recipe: MetaFeedbackMethod = recipe_of(faces)
    values = [recipe._standardised(0.1) for _ in range(50)]
    assert values == [0.0] * 50 or max(map(abs, values)) < 1e-6
    assert recipe._standardised(10.0) == 1.0
    assert recipe._standardised(-10.0) == -1.0


def test_h_by_hand(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By moments of 1 and 2: mean 1.5, variance .25. From the third on momentum .5 outweighs the plain mean."""
    recipe: MetaFeedbackMethod = recipe_of(faces)
    monkeypatch.setattr(meta_feedback, "_MOMENTUM", 0.5)
    assert recipe._standardised(1.0) == 0.0, "there is no baseline yet"
    assert recipe.moments == {"mean": 1.0, "square": 1.0, "count": 1}
    assert recipe._standardised(2.0) == 1.0
    assert recipe.moments == {"mean": 1.5, "square": 2.5, "count": 2}
    assert recipe._standardised(1.6) == pytest.approx(0.1 / (0.5 + 1e-3))
    assert recipe.moments == {"mean": pytest.approx(1.55), "square": pytest.approx(2.53), "count": 3}
    monkeypatch.setattr(meta_feedback, "_MOMENTUM", 0.9)
    recipe.moments = {"mean": 0.0, "square": 0.0, "count": 0}
    for h in (1.0, 2.0, 1.6):
        recipe._standardised(h)
    assert recipe.moments["mean"] == pytest.approx(4.6 / 3)
    assert recipe.moments["square"] == pytest.approx((1 + 4 + 2.56) / 3)


def test_the_loss_by_hand(faces: Path) -> None:
    """Half-way up the ramp; where one of two faces is unreadable, the mean is still over both."""
    recipe: MetaFeedbackMethod = recipe_of(faces, "method.consistency=3", "method.strength=0.5", "label_smoothing=0")
    recipe.h, recipe.pair.split = 0.4, 4
    logits = torch.tensor([2.0, 0.0, 0.0])
    total = math.log(math.exp(2) + 2)
    first, other = total - 2, total  # cross-entropies of class 0 and of another
    mixed = torch.tensor([[0.5, 0.3, 0.2]])
    before = Unlabeled(torch.empty(0), mixed.repeat(2, 1), torch.tensor([1.0, 0.0]))
    now = Unlabeled(torch.empty(0), torch.tensor([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]), torch.tensor([1.0, 1.0]))
    labels, readable = torch.tensor([0, 1]), torch.tensor([1.0, 0.0])
    batch = MetaBatch(torch.empty(0), [], labels, readable, torch.empty(0), now, before, {}, 0.0, 0.05)
    loss = loss_of(recipe, logits.repeat(6, 1), batch).item()
    teacher = (0.5 * 3 * (0.5 * first + 0.5 * other) + 0.5 * 0.4 * first) / 2
    assert loss == pytest.approx(first / 2 + teacher + (other + first) / 2, rel=1e-6)
    alone = replace(batch, before=None)
    recipe.pair.split = 2
    loss = loss_of(recipe, logits.repeat(4, 1), alone).item()
    assert loss == pytest.approx(first / 2 + (other + first) / 2, rel=1e-6)
    tuned = replace(alone, unlabeled=None)
    assert loss_of(recipe, logits.repeat(2, 1), tuned).item() == pytest.approx(first / 2)
    late = replace(batch, progress=0.5)
    recipe.pair.split = 4
    loss = loss_of(recipe, logits.repeat(6, 1), late).item()
    teacher += 0.5 * 3 * (0.5 * first + 0.5 * other) / 2
    assert loss == pytest.approx(first / 2 + teacher + (other + first) / 2, rel=1e-6)


def test_the_learning_rate_by_hand(faces: Path) -> None:
    """Of 60 steps the last 12 fine-tune: a cosine each, the second from three tenths of the rate."""
    arguments = ("epochs=10", "warmup_epochs=1", "learning_rate=0.1", "method.finetune=0.2")
    recipe: MetaFeedbackMethod = recipe_of(faces, *arguments)
    assert recipe.steps_per_epoch == 6
    rates = [recipe.learning_rate(step) for step in range(60)]
    assert rates[:6] == sorted(rates[:6])
    assert rates[6] == pytest.approx(0.1)
    assert rates[27] == pytest.approx(0.05)  # half of the 42 after the warm-up
    assert rates[48] == pytest.approx(0.03)
    assert rates[54] == pytest.approx(0.015)
    assert rates[6:48] == sorted(rates[6:48], reverse=True)
    assert rates[47] < 0.001


def test_teacher_and_student_learn_from_their_own_losses(faces: Path) -> None:
    recipe: MetaFeedbackMethod = recipe_of(faces)
    steps = recipe.steps(0)
    first = next(steps)
    assert len(first.inputs) == 8 + 16, "the first step has nothing of a step before"
    loss_of(recipe, recipe.model(first.inputs), first).backward()
    assert all(parameter.grad is not None for parameter in recipe.pair.parameters())
    recipe.after_step(recipe.model, [first])
    second = next(steps)
    assert len(second.inputs) == 8 + 16 + 16
    outputs = recipe.model(second.inputs)
    outputs = outputs.detach().requires_grad_()
    recipe.h = 0.0
    loss_of(recipe, outputs, second).backward()
    assert outputs.grad is not None
    assert outputs.grad.any(dim=1).all()


def test_nothing_is_learned_from_unreadable_faces(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path, dirs_exist_ok=True)
    bad = sorted((tmp_path / "more").glob("*.png"))[::20]
    for path in bad:
        path.write_bytes(b"no picture")
    recipe: MetaFeedbackMethod = recipe_of(tmp_path, "method.ratio=8")
    steps = recipe.steps(0)
    first = next(steps)
    recipe.after_step(recipe.model, [first])
    recipe.h = 0.7
    second = next(steps)
    outputs = torch.randn(8 + 64 + 64, 3, requires_grad=True)
    loss_of(recipe, outputs, second).backward()
    assert outputs.grad is not None
    learned = outputs.grad[8:].any(dim=1).tolist()
    uris = first.uris[8:] + second.uris[8:]
    assert learned == [uri not in set(map(str, bad)) for uri in uris]
    assert not all(learned[:64])
    assert not all(learned[64:])


def test_h_is_that_of_the_faces_it_weighs(faces: Path) -> None:
    """Two steps make one of the optimiser: h is the mean of their gains, and weighs the faces of these two."""
    recipe: MetaFeedbackMethod = recipe_of(faces, "accumulate=2", "epochs=1")
    steps = recipe.steps(0)
    first, second = next(steps), next(steps)
    assert first.before is second.before is None
    weight = recipe.pair.student.get_classifier().weight
    with torch.no_grad():
        weight.add_(0.1 * torch.randn(weight.shape))
    recipe.after_step(recipe.model, [first, second])
    student = recipe.pair.student.eval()
    errors = [F.cross_entropy(student(step.labeled), step.labels).item() for step in (first, second)]
    gain = (first.error + second.error - sum(errors)) / 2
    assert recipe.moments["mean"] == pytest.approx(gain, abs=1e-6) != 0
    third, fourth = next(steps), next(steps)
    assert (third.before, fourth.before) == (first.unlabeled, second.unlabeled)
    torch.testing.assert_close(third.inputs[8:24], first.inputs[8:])


def test_faces_of_a_step_left_out_are_not_weighed(faces: Path) -> None:
    recipe: MetaFeedbackMethod = recipe_of(faces)
    steps = recipe.steps(0)
    first = next(steps)
    recipe.after_step(recipe.model, [first])
    next(steps)
    assert next(steps).before is first.unlabeled


@pytest.mark.parametrize("arguments", [(), ("accumulate=2",)])
def test_an_epoch_depends_on_nothing_but_weights_and_state(faces: Path, arguments: tuple[str, ...]) -> None:
    recipe, twin = (recipe_of(faces, *arguments, "epochs=4", "method.finetune=0.4") for _ in range(2))
    engine = PlainEngine(recipe)
    run_epochs(recipe, range(1), engine)
    recipe.validate(0)
    twin.model.load_state_dict(recipe.model.state_dict())
    twin.ema_model.load_state_dict(recipe.ema_model.state_dict())
    twin.load_state(json.loads(json.dumps(recipe.state())), {})
    other = PlainEngine(twin)
    other.optimizer.load_state_dict(deepcopy(engine.optimizer.state_dict()))
    assert run_epochs(recipe, range(1, 4), engine) == run_epochs(twin, range(1, 4), other)
    assert recipe.state() == twin.state()
    assert recipe.validate(3) == twin.validate(3)


def test_it_fine_tunes_and_repeats_itself(faces: Path) -> None:
    runs = []
    for _ in range(2):
        recipe: MetaFeedbackMethod = recipe_of(faces, "epochs=5", "learning_rate=0.01", "method.finetune=0.4")
        losses = run_epochs(recipe, range(5))
        runs.append((losses, recipe.validate(4)[0], recipe.state()))
    assert runs[0] == runs[1]
    assert runs[0][1] > 1 / 3
    assert recipe.pair.split == 0, "the student alone"
    rates = [recipe.learning_rate(step) / recipe.config.learning_rate for step in (0, 17, 18, 29)]
    assert rates == pytest.approx([1.0, 0.0076, 0.3, 0.0051], abs=1e-3)


def test_checkpointed_activations_change_nothing(faces: Path) -> None:
    recipes = [recipe_of(faces, "epochs=2", f"checkpoint_activations={on}") for on in ("false", "true")]
    pair = recipes[1].pair
    assert pair.teacher.grad_checkpointing
    assert pair.student.grad_checkpointing
    losses = [run_epochs(recipe, range(2)) for recipe in recipes]
    assert losses[0] == losses[1]
    for name, value in recipes[0].model.state_dict().items():
        assert torch.equal(value, pair.state_dict()[name]) or "tracked" in name, name


def test_the_student_is_published(faces: Path) -> None:
    recipe: MetaFeedbackMethod = recipe_of(faces, "epochs=1")
    run_epochs(recipe, range(1))
    inputs = open_inputs(config(faces, f"unlabeled={faces / 'more'}", "method=meta_feedback"))
    model, *_ = build_model(inputs)
    model.load_state_dict(plain_weights(inputs, recipe.ema_model.state_dict(), model))
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), recipe.averaged_logits(x))
