"""The online recipe and its heads, on one rank."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import apply_temperature
from ray_fer.feedback.state import Snapshot
from ray_fer.jobs.backbone_context import build_method
from ray_fer.jobs.backbone_inputs import open_inputs, warn_of_doubts
from ray_fer.methods.online import MOMENTUM, OnlineMethod
from ray_fer.selection import RULES, debias
from ray_fer.training.loop import Batch
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World
from tests.training.epochs import loss_of, run_epochs
from tests.training.toy import config, write_sets

ONLINE = ("method=online", "feedback=none", "method.threshold=0.5", "batch_size=8")
META = ("method=meta_feedback", "batch_size=8")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("faces"), (20, 10, 10))


def recipe_of(faces: Path, *arguments: str, world: World | None = None, **told: Any) -> Any:
    settings = config(faces, f"unlabeled={faces / 'more'}", *arguments)
    unlabeled = sorted(str(path) for path in (faces / "more").glob("*.png"))
    return build_method(open_inputs(settings), world or World(), unlabeled, **told)


def factors(**changed: Any) -> Snapshot:
    neutral = {
        "version": 1,
        "loss_weights": [1.0] * 3,
        "sampling_weights": [1.0] * 3,
        "thresholds": [0.8] * 3,
        "log_debiasing_prior": [-math.log(3)] * 3,
    }
    return Snapshot.from_json(neutral | changed)


def step_of_known_logits(recipe: OnlineMethod, epoch: int) -> tuple[Batch, float]:
    """The first step of ``epoch`` and its loss, after it was taken.

    What teacher and student say depends on the face alone, not on its augmentation, which every rank draws for itself.
    """
    uris = [*recipe.labeled.uris, *recipe.unlabeled.uris]
    logits = 2 * torch.randn(2, len(uris), 3, generator=torch.Generator().manual_seed(0))
    step = next(recipe.steps(epoch))
    unlabeled = step.unlabeled
    recipe.averaged_logits = lambda weak: logits[0, len(recipe.labeled) + unlabeled.rows]  # type: ignore[method-assign]
    loss = loss_of(recipe, logits[1, [uris.index(uri) for uri in step.uris]], step)
    recipe.after_step(recipe.model, [step])
    return step, loss.item()


def test_a_step_by_hand(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, "method.rule=threshold", "method.targets=hard")
    step = next(recipe.steps(0))
    targets, unlabeled = step.targets, step.unlabeled
    assert step.inputs.shape == (8 + 16, 3, 32, 32)
    assert [Path(uri).parent.name for uri in step.uris] == ["train"] * 8 + ["more"] * 16
    with torch.no_grad():
        probs = recipe.ema_model(unlabeled.weak).softmax(dim=1)
    outputs = torch.randn(24, 3)
    confidence, labels = probs.max(dim=1)
    taken = confidence >= 0.5
    supervised = F.cross_entropy(outputs[:8], targets.labels, label_smoothing=0.1)
    pseudo = (F.cross_entropy(outputs[8:], labels, reduction="none") * taken).sum() / 16
    assert loss_of(recipe, outputs, step).item() == pytest.approx((supervised + pseudo).item(), rel=1e-5)
    assert recipe.named.eq(-1).all(), "a loss changes nothing: its step may be left out"
    recipe.after_step(recipe.model, [step])
    assert recipe.named[unlabeled.rows].tolist() == labels.tolist()
    assert recipe.unlabeled_view()[1] == pytest.approx(taken.float().mean().item())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_online(faces: Path, rule: str) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, f"method.rule={rule}", "epochs=8", "learning_rate=0.01")
    run_epochs(recipe, range(8))
    score, metrics = recipe.validate(7)
    assert 0 <= metrics["accepted_share"] <= 1
    assert score > 0.6


@pytest.mark.parametrize("arguments", [("method.rule=softmatch",), ("method.rule=flexmatch", "method.head=balanced")])
def test_an_epoch_depends_on_nothing_but_weights_and_state(faces: Path, arguments: tuple[str, ...]) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, *arguments, "epochs=4")
    engine = PlainEngine(recipe)
    run_epochs(recipe, range(1), engine)
    recipe.validate(0)
    twin: OnlineMethod = recipe_of(faces, *ONLINE, *arguments, "epochs=4")
    twin.model.load_state_dict(recipe.model.state_dict())
    twin.ema_model.load_state_dict(recipe.ema_model.state_dict())
    tensors = {name: tensor.clone() for name, tensor in recipe.tensors().items()}
    twin.load_state(json.loads(json.dumps(recipe.state())), tensors)
    other = PlainEngine(twin)
    other.optimizer.load_state_dict(deepcopy(engine.optimizer.state_dict()))
    assert run_epochs(recipe, range(1, 3), engine) == run_epochs(twin, range(1, 3), other)
    assert recipe.validate(2) == twin.validate(2)


def test_the_feedback_acts_in_all_four_places(faces: Path) -> None:
    rule = ("method.rule=threshold", "method.calibrate=false")
    told = factors(
        thresholds=[0.9, 0.8, 0.7], loss_weights=[0.5, 1.0, 1.5], log_debiasing_prior=np.log([0.5, 0.25, 0.25]).tolist()
    )
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, *rule, snapshot=told)
    np.testing.assert_allclose(recipe.known(0).thresholds, [0.6, 0.5, 0.5], err_msg="none falls below .5")
    step = next(recipe.steps(0))
    unlabeled = step.unlabeled
    with torch.no_grad():
        raw = recipe.ema_model(unlabeled.weak).softmax(dim=1)
    accepted = recipe._pseudo_labels(unlabeled)
    tilted = raw / torch.tensor([0.5, 0.25, 0.25])
    np.testing.assert_allclose(accepted.targets, tilted / tilted.sum(dim=1, keepdim=True), rtol=1e-5)
    assert unlabeled.found is not None
    assert unlabeled.found.named.tolist() == raw.argmax(dim=1).tolist(), "the class mix is that of the raw predictions"
    # Of forty faces half are named happiness: with twice its sampling weight it is two thirds of the draws.
    recipe.named[:] = torch.tensor([0] * 20 + [2] * 20)
    recipe.use(factors(sampling_weights=[1.0, 1.0, 2.0]), 1)
    drawn = recipe.named.numpy()[recipe._unlabeled_rows(1)]
    assert (drawn == 2).mean() == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize("calibrate", [True, False])
def test_margins_are_of_the_confidence_that_they_are_compared_with(faces: Path, calibrate: bool) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, "method.rule=ada_cm", f"method.calibrate={str(calibrate).lower()}")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    sure_of = np.where(rng.random(600) < 0.7, labels, rng.integers(0, 3, 600))
    probs = (0.05 + 0.85 * np.eye(3)[sure_of]).astype(np.float32)  # .9 where four out of five are right
    recipe.context = replace(recipe.context, feedback_rows=np.arange(600) % 2 == 0)
    recipe.predict = lambda faces: (probs, labels)  # type: ignore[method-assign]
    recipe.validate(0)
    assert recipe.temperature > 1.05
    temperature = recipe.temperature if calibrate else 1.0
    confidence = apply_temperature(probs, temperature).max()
    np.testing.assert_allclose(recipe.known(1).labelled_confidence, np.full(3, confidence), rtol=1e-5)


def test_what_the_teacher_sees_is_fed_back(faces: Path) -> None:
    told: list[dict[str, Any]] = []

    def feedback(confusion: np.ndarray, epoch: int, **evidence: Any) -> Snapshot:
        told.append(evidence)
        return factors()

    recipe: OnlineMethod = recipe_of(faces, *ONLINE, "epochs=2", feedback=feedback)
    run_epochs(recipe, range(1))
    recipe.validate(0)
    assert sum(told[0]["q_hat"]) == (recipe.named >= 0).sum().item() > 20
    assert 0 <= told[0]["accepted_share"] <= 1


@dataclass(frozen=True)
class Partly:
    """Pictures of which only those with a ``readable`` index can be read."""

    images: Any
    readable: Callable[[np.ndarray], np.ndarray]

    def batch(self, indices: np.ndarray) -> tuple[Any, np.ndarray]:
        return self.images.batch(indices)[0], self.readable(indices)


@pytest.mark.parametrize("rule", RULES)
def test_unreadable_faces_say_nothing_of_the_others(faces: Path, rule: str) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, f"method.rule={rule}")
    pictures = Partly(recipe.unlabeled.images, lambda rows: rows % 2 == 0)
    recipe.unlabeled = replace(recipe.unlabeled, images=pictures)
    step = next(recipe.steps(0))
    unlabeled = step.unlabeled
    even = unlabeled.rows % 2 == 0
    assert 0 < even.sum() < 16
    start = dict(recipe.rule_state)
    probs = recipe.averaged_logits(unlabeled.weak).detach().softmax(dim=1)[even]
    debiased = debias(probs, recipe.known_now.log_prior)
    loss_of(recipe, torch.randn(24, 3), step)
    recipe.after_step(recipe.model, [step])
    measured = recipe.rule.measure(debiased, start, unlabeled.rows[even])
    expected = recipe.rule.update(start, measured, MOMENTUM)
    for name, value in expected.items():
        torch.testing.assert_close(recipe.rule_state[name], value)
    assert recipe.named[unlabeled.rows[even]].tolist() == probs.argmax(dim=1).tolist()
    assert recipe.named[unlabeled.rows[~even]].eq(-1).all()
    seen = recipe.rule.accept(debiased, expected if recipe.rule.update_first else start, recipe.known_now)
    assert recipe.unlabeled_view()[1] == pytest.approx((seen.weights > 0).float().mean().item())


@pytest.mark.parametrize("rule", RULES)
def test_a_step_without_a_readable_face_leaves_all_as_it_was(faces: Path, rule: str) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, f"method.rule={rule}")
    pictures = Partly(recipe.unlabeled.images, lambda rows: rows < 0)
    recipe.unlabeled = replace(recipe.unlabeled, images=pictures)
    step = next(recipe.steps(0))
    before = {name: tensor.clone() for name, tensor in recipe.tensors().items()}
    outputs = torch.randn(24, 3)
    supervised = recipe.supervised_loss(outputs[:8], step.targets)
    assert torch.equal(loss_of(recipe, outputs, step), supervised)
    recipe.after_step(recipe.model, [step])
    for name, value in recipe.tensors().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert recipe.unlabeled_view() == (None, None)


def test_the_hybrid_has_three_kinds_of_faces(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(
        faces, *ONLINE, f"pseudo={faces / 'selection'}", "method.pseudo_ratio=1", "epochs=1"
    )
    step = next(recipe.steps(0))
    assert len(step.uris) == len(step.inputs) == 8 + 8 + 16
    assert step.unlabeled.first == 16
    assert math.isfinite(run_epochs(recipe, range(1))[0])


def test_ranks_share_a_step_and_its_loss(faces: Path) -> None:
    arguments = (*ONLINE, "method.rule=threshold")  # which measures nothing: no rank waits for another
    whole = recipe_of(faces, *arguments)
    parts = [recipe_of(faces, *arguments, world=World(rank, 2)) for rank in (0, 1)]
    (step, loss), *others = [step_of_known_logits(recipe, 2) for recipe in (whole, *parts)]
    assert sorted(step.uris) == sorted(uri for part, _ in others for uri in part.uris)
    assert 0 < whole.accepted[0] < 16
    assert sum(each for _, each in others) / 2 == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("method=online",), "method=online: needs unlabeled="),
        (("unlabeled=there",), "method=supervised: takes no unlabeled="),
        ((*META, "unlabeled=there", "pseudo=there"), "method=meta_feedback: takes neither pseudo= nor feedback="),
    ],
)
def test_arguments_that_do_not_fit(faces: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_inputs(config(faces, *arguments))


def test_a_circuit_from_scratch_is_warned_of(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    warn_of_doubts(open_inputs(config(faces, *META, "unlabeled=there", "pretrained=there")))
    assert "from scratch" not in caplog.text
    warn_of_doubts(open_inputs(config(faces, *META, "unlabeled=there")))
    assert "from scratch: the student learns from a teacher that knows nothing" in caplog.text
