import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_fer.errors import UserError
from ray_fer.feedback.state import Snapshot
from ray_fer.jobs.backbone_context import build_method
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.methods.batch import Faces, PseudoLabels, Targets
from ray_fer.methods.labeled import sampled_margin
from ray_fer.methods.supervised import SupervisedMethod
from ray_fer.methods.terms import supervised_terms
from ray_fer.selection.file import Selection, read_selection
from ray_fer.training.loop import total
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World
from tests.training.epochs import loss_of, run_epochs
from tests.training.toy import CLASSES, config, write_faces, write_selection, write_sets


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("faces"), (10, 10, 10))


def recipe_of(faces: Path, *arguments: str, world: World | None = None, **others: Any) -> SupervisedMethod:
    recipe = build_method(open_inputs(config(faces, *arguments)), world or World(), **others)
    assert isinstance(recipe, SupervisedMethod)
    return recipe


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    targets = Targets(
        labels=torch.tensor([0, 0]),
        label_weights=torch.tensor([1.0, 0.0]),  # the second is unreadable
        soft=torch.tensor([[0.25, 0.75]]),
        soft_weights=torch.tensor([1.0]),
        label_count=2,
        soft_count=1,
    )
    log_p = [[-math.log(1 + math.exp(-2)), -math.log(1 + math.exp(2))]]  # of rows 0 and 2, both 2 apart
    labelled = -(0.9 * log_p[0][0] + 0.1 * log_p[0][1]) * 0.5 / 2
    soft = -(0.25 * log_p[0][0] + 0.75 * log_p[0][1]) * (0.25 * 0.5 + 0.75 * 1.5)
    terms = supervised_terms(logits, targets, torch.tensor([0.5, 1.5]), label_smoothing=0.2, pseudo_weight=3.0)
    assert total(terms).item() == pytest.approx(labelled + 3.0 * soft, rel=1e-6)
    assert terms["labeled"].item() == pytest.approx(labelled, rel=1e-6)
    assert terms["pseudo"].item() == pytest.approx(3.0 * soft, rel=1e-6)
    # Logits of autocast are small floats here exactly; their loss is not rounded like them.
    halves = supervised_terms(logits.bfloat16(), targets, torch.tensor([0.5, 1.5]), 0.2, 3.0)
    assert {name: term.item() for name, term in halves.items()} == {name: term.item() for name, term in terms.items()}


def test_the_margin_by_hand() -> None:
    """Of three classes, the last is never sampled, of ten faces."""
    margin = sampled_margin(np.array([0.7, 0.3, 0.0]), 10, tau=0.5)
    assert margin.tolist() == pytest.approx([0.5 * math.log(share / 13) for share in (8, 4, 1)])
    targets = Targets(torch.tensor([1]), torch.ones(1), torch.empty(0, 3), torch.empty(0), 1, 0)
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    loss = total(supervised_terms(logits, targets, torch.ones(3), 0.0, 1.0, torch.as_tensor(margin)))
    odds = [math.exp(z) * math.sqrt(share) for z, share in zip((1.0, 2.0, 0.5), (8, 4, 1), strict=True)]
    assert loss.item() == pytest.approx(-math.log(odds[1] / sum(odds)))


def test_uniform_sampling_leaves_nothing_to_adjust(faces: Path) -> None:
    """The labelled set is 24, 12, 12; adjusting to that would correct a second time."""
    plain, adjusted = recipe_of(faces), recipe_of(faces, "logit_adjustment=1")
    step, twin = next(plain.steps(0)), next(adjusted.steps(0))
    logits = torch.randn(len(step.uris), 3)
    assert step.uris == twin.uris
    assert loss_of(adjusted, logits, twin).item() == pytest.approx(loss_of(plain, logits, step).item(), rel=1e-5)
    natural = recipe_of(faces, "class_sampling=natural", "logit_adjustment=1", "epochs=1")
    steps = list(natural.steps(0))
    assert natural.margin.tolist() == pytest.approx([math.log(n / 51) for n in (25, 13, 13)], rel=1e-5)
    drawn = np.bincount(np.concatenate([step.targets.labels.numpy() for step in steps]), minlength=3)
    assert drawn[0] > drawn[1:].max()


def test_accumulation_and_layer_decay(faces: Path) -> None:
    recipe = recipe_of(faces, "batch_size=8", "accumulate=4", "epochs=2", "warmup_epochs=1", "layer_decay=0.5")
    assert recipe.steps_per_epoch == 8, "48 faces are six steps, but eight make whole optimiser steps"
    rates = [recipe.learning_rate(step) / recipe.config.learning_rate for step in range(4)]
    assert rates == pytest.approx([0.5, 1, 1, 0.5])
    engine = PlainEngine(recipe)
    run_epochs(recipe, range(1), engine)
    assert recipe.ema.updates == 2
    scales = {group["lr_scale"] for group in engine.groups}
    assert scales == {0.5**layer for layer in range(6)}
    head = next(group for group in engine.groups if group["params"][0] is recipe.model.get_classifier().weight)
    assert head["lr"] == recipe.config.learning_rate
    assert head["weight_decay"] == recipe.config.weight_decay


def test_checkpointed_activations_change_nothing(faces: Path) -> None:
    recipes = [recipe_of(faces, "epochs=1", f"checkpoint_activations={on}") for on in ("false", "true")]
    assert recipes[1].model.grad_checkpointing
    losses = [run_epochs(recipe, range(1)) for recipe in recipes]
    assert losses[0] == losses[1]
    for name, value in recipes[0].model.state_dict().items():
        assert torch.equal(value, recipes[1].model.state_dict()[name]) or "tracked" in name, name


def test_a_step_has_labelled_and_pseudo_labelled_faces(faces: Path) -> None:
    recipe = recipe_of(faces, f"pseudo={faces / 'selection'}", "method.pseudo_ratio=2", "batch_size=8")
    steps = list(recipe.steps(0))
    assert len(steps) == recipe.steps_per_epoch == 6  # 48 labelled faces
    assert recipe.images_per_epoch == 6 * 24
    for step in steps:
        assert step.inputs.shape == (24, 3, 32, 32)
        assert [Path(uri).parent.name for uri in step.uris] == ["train"] * 8 + ["more"] * 16
        assert step.targets.soft.shape == (16, 3)
    drawn = np.bincount(np.concatenate([step.targets.labels.numpy() for step in steps]), minlength=3)
    assert drawn.sum() == 48
    pseudo = [uri for step in steps for uri in step.uris[8:]]
    assert {pseudo.count(uri) for uri in set(pseudo)} <= {3, 4}  # 96 draws of 30 equal weights


def test_ranks_share_a_step_and_its_loss(faces: Path) -> None:
    whole = recipe_of(faces, f"pseudo={faces / 'selection'}", "batch_size=6")
    parts = [recipe_of(faces, f"pseudo={faces / 'selection'}", "batch_size=6", world=World(rank, 2)) for rank in (0, 1)]
    steps = [next(recipe.steps(3)) for recipe in (whole, *parts)]
    assert sorted(steps[0].uris) == sorted(steps[1].uris + steps[2].uris)
    logits = {uri: torch.randn(3) for uri in steps[0].uris}
    losses = [
        loss_of(recipe, torch.stack([logits[uri] for uri in step.uris]), step)
        for recipe, step in zip((whole, *parts), steps, strict=True)
    ]
    assert (losses[1] + losses[2]).item() / 2 == pytest.approx(losses[0].item(), rel=1e-5)


def test_it_learns_and_repeats_itself(faces: Path) -> None:
    runs = []
    for _ in range(2):
        recipe = recipe_of(faces, "epochs=8", "learning_rate=0.01")
        losses = run_epochs(recipe, range(8))
        score, metrics = recipe.validate(7)
        runs.append((losses, score, metrics["confusion_matrix"]))
    assert runs[0] == runs[1]
    assert runs[0][0][-1] < runs[0][0][0]
    assert runs[0][1] > 0.8
    assert metrics["temperature"] == 1.0, "30 pictures are too few to calibrate on"
    assert metrics["choice"]["ece_calibrated"] == pytest.approx(metrics["choice"]["ece"])
    right = np.diagonal(metrics["feedback"]["confusion_matrix"])
    assert [value is not None for value in metrics["confidence_of_correct"]] == (right > 0).tolist()


def test_an_epoch_depends_on_nothing_but_weights_and_state(faces: Path) -> None:
    recipe = recipe_of(faces, "epochs=4")
    engine = PlainEngine(recipe)
    run_epochs(recipe, range(2), engine)
    twin = recipe_of(faces, "epochs=4", "seed=0")
    twin.model.load_state_dict(recipe.model.state_dict())
    twin.ema_model.load_state_dict(recipe.ema_model.state_dict())
    twin.load_state(recipe.state(), recipe.tensors())
    other = PlainEngine(twin)
    other.optimizer.load_state_dict(deepcopy(engine.optimizer.state_dict()))
    assert run_epochs(recipe, range(2, 4), engine) == run_epochs(twin, range(2, 4), other)
    assert recipe.validate(3) == twin.validate(3)


def factors(version: int, loss: list[float], sampling: list[float], log_prior: list[float]) -> Snapshot:
    each = (np.array(values) for values in (loss, sampling, [0.8] * 3, log_prior))
    return Snapshot(*each, version=version)


def test_feedback_sets_the_weights_of_the_next_epoch(faces: Path) -> None:
    seen = []
    uniform = [math.log(1 / 3)] * 3

    def feedback(
        confusion: np.ndarray, epoch: int, *, trained_under: int, prior_helps: bool, **unlabeled: Any
    ) -> Snapshot:
        seen.append((confusion.sum(), epoch, trained_under, prior_helps))
        assert unlabeled == {"q_hat": None, "accepted_share": None}
        return factors(7, [0.5, 1.0, 1.5], [1.0, 1.0, 2.0], uniform)

    recipe = recipe_of(faces, feedback=feedback, snapshot=factors(3, [1.5, 1.0, 0.5], [1.0] * 3, uniform))
    assert recipe.class_weights.tolist() == [1.5, 1.0, 0.5]
    _, metrics = recipe.validate(4)
    assert seen == [(15, 4, 3, True)]
    assert (metrics["trained_under_feedback"], metrics["feedback_version"]) == (3, 7)
    # Drawn as 1 : 1 : 2, mean 1.125 of the loss weights: what is drawn oftener must not make the steps larger.
    np.testing.assert_allclose(recipe.sampler.class_probs(4), [1 / 3] * 3)
    np.testing.assert_allclose(recipe.sampler.class_probs(5), [0.25, 0.25, 0.5])
    np.testing.assert_allclose(recipe.class_weights.numpy(), np.array([0.5, 1.0, 1.5]) / 1.125, rtol=1e-6)
    twin = recipe_of(faces)
    twin.load_state(json.loads(json.dumps(recipe.state())), recipe.tensors())
    assert twin.state() == recipe.state()
    assert [step.uris for step in twin.steps(5)] == [step.uris for step in recipe.steps(5)]


def test_only_the_choice_half_chooses_and_only_the_other_is_fed_back(faces: Path) -> None:
    told = []

    def feedback(confusion: np.ndarray, epoch: int, **evidence: Any) -> Snapshot:
        told.append((confusion.tolist(), evidence["prior_helps"]))
        return recipe.snapshot

    recipe = recipe_of(faces, "epochs=8", "learning_rate=0.01", feedback=feedback)
    run_epochs(recipe, range(8))
    for log_prior in ([math.log(1 / 3)] * 3, [-9.0, -9.0, 0.0]):
        recipe.load_state({**recipe.state(), "factors": factors(1, [1.0] * 3, [1.0] * 3, log_prior).to_json()}, {})
        score, metrics = recipe.validate(7)
        halves = metrics["feedback"], metrics["choice"]
        assert score == halves[1]["macro_f1"] > 0.8
        assert [half["n"] for half in halves] == [15, 15]
        assert told[-1][0] == halves[0]["confusion_matrix"]
    assert [helps for _, helps in told] == [True, False], "the second names hardly anything happiness"


def pseudo_labels(selection: Selection) -> PseudoLabels:
    images: Any = None  # drawing looks at none
    faces = Faces(images, selection.uris, np.full(len(selection.uris), -1))
    return PseudoLabels(faces, selection.targets, selection.plain_weights)


def test_pseudo_labels_are_drawn_by_the_newest_sampling_weights(faces: Path) -> None:
    selection = read_selection(str(faces / "selection"), CLASSES)
    plain = pseudo_labels(selection).weights_under(np.ones(3), 30)
    np.testing.assert_allclose(plain, plain[0])
    labels = selection.targets.argmax(axis=1)
    tilted = pseudo_labels(selection).weights_under(np.array([1.0, 2.0, 1.0]), 30)
    mass = np.bincount(labels, tilted)
    np.testing.assert_allclose(mass / mass.sum(), [0.25, 0.5, 0.25])
    # The same boost is in the selection's weights already: it is not paid twice.
    weights = selection.weights * np.where(labels == 1, 2, 1)
    info = {**selection.info, "sampling_weights": {"neutral": 1.0, "anger": 2.0, "happiness": 1.0}}
    boosted = pseudo_labels(Selection(selection.uris, selection.targets, weights.astype(np.float32), info))
    np.testing.assert_allclose(boosted.weights_under(np.array([1.0, 2.0, 1.0]), 30), tilted, rtol=1e-6)
    np.testing.assert_allclose(boosted.weights_under(np.ones(3), 30), plain, rtol=1e-6)
    # Ten pictures of anger may be drawn four times each in an epoch of 90, unless they are anyway.
    capped = np.bincount(labels, pseudo_labels(selection).weights_under(np.array([1.0, 2.0, 1.0]), 90))
    np.testing.assert_allclose(capped / capped.sum(), [5 / 18, 4 / 9, 5 / 18])


def test_an_unreadable_picture_has_no_say(faces: Path, tmp_path: Path) -> None:
    manifest = write_faces(tmp_path / "val", (10, 10, 10), seed=5)
    (tmp_path / "val" / "anger-0.png").write_bytes(b"damaged")
    recipe = recipe_of(faces, f"val={manifest}")
    _, metrics = recipe.validate(0)
    assert metrics["n"] == 29


def test_a_loss_that_is_not_finite_names_the_pictures(faces: Path) -> None:
    recipe = recipe_of(faces)
    with torch.no_grad():
        recipe.model.get_classifier().weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"the loss became nan in epoch 1, step 1: .*train/\w+-\d+\.png") as error:
        run_epochs(recipe, range(1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(("neutral", "anger"), "its classes neutral, anger are not those"), (CLASSES[::-1], "are not those of labeled")],
)
def test_a_selection_of_other_classes(faces: Path, tmp_path: Path, classes: tuple[str, ...], message: str) -> None:
    uri = write_selection(tmp_path, faces / "more", classes)
    with pytest.raises(UserError, match=message):
        read_selection(uri, CLASSES)


def test_no_selection(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pseudo=.*: no selection there"):
        read_selection(str(tmp_path), CLASSES)
