"""The heads beside the classifier, and what each learns in the online recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from ray_fer.jobs.backbone_context import build_model, plain_weights
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.methods.heads import (
    BALANCED,
    MAIN,
    PSEUDO,
    WORST,
    HeadedBackbone,
    ReversedHead,
    keep_rates,
    published,
)
from ray_fer.methods.online import OnlineMethod
from ray_fer.methods.online_heads import OnlineBalancedHead, worst_case
from ray_fer.methods.supervised import BalancedHead, Head
from tests.methods.test_online import ONLINE, recipe_of
from tests.training.epochs import loss_of, run_epochs
from tests.training.toy import config, write_sets

ABC = (*ONLINE, "method.head=balanced", "method.rule=threshold", "method.targets=hard")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("faces"), (20, 10, 10))


def test_keep_rates_by_hand() -> None:
    shares = torch.tensor([0.5, 0.3, 0.2])
    torch.testing.assert_close(keep_rates(shares), torch.tensor([0.4, 2 / 3, 1.0]))
    torch.testing.assert_close(keep_rates(shares, 0.5), torch.tensor([0.7, 5 / 6, 1.0]))
    assert keep_rates(shares, 0.0).tolist() == keep_rates(torch.full((3,), 1 / 3)).tolist() == [1.0] * 3
    absent = keep_rates(torch.tensor([0.75, 0.25, 0.0]))
    torch.testing.assert_close(absent[:2], torch.tensor([1 / 3, 1.0]), msg="a class without a face is not the rarest")
    assert absent.isfinite().all()


@pytest.mark.parametrize(
    ("sampling", "kept"), [("uniform", [1.0, 1.0, 1.0]), ("natural", [0.5, 1.0, 1.0])], ids=["uniform", "natural"]
)
def test_the_balanced_head_by_hand(faces: Path, sampling: str, kept: list[float]) -> None:
    """Zero logits cost ln 3 whatever the label, so that the loss counts what reaches the head."""
    recipe: OnlineMethod = recipe_of(faces, *ABC, "method.threshold=0.05", f"class_sampling={sampling}")
    assert recipe.head.labeled.tolist() == pytest.approx(kept)
    step = next(recipe.steps(0))
    targets, unlabeled = step.targets, step.unlabeled
    unlabeled.progress = 0.5
    recipe.class_shares = torch.tensor([0.5, 0.3, 0.2])
    outputs = torch.zeros(24, 2, 3)
    outputs[:8, 0] = torch.randn(8, 3)
    main = F.cross_entropy(outputs[:8, 0], targets.labels, label_smoothing=0.1).item() + math.log(3)
    loss = loss_of(recipe, outputs, step).item()
    named = unlabeled.found.named.tolist()
    labelled = sum(kept[label] for label in targets.labels.tolist()) / 8
    pseudo = sum([0.7, 5 / 6, 1.0][label] for label in named) / 16
    assert loss == pytest.approx(main + math.log(3) * (labelled + pseudo), rel=1e-5)


def test_labelled_faces_reach_the_balanced_head_class_uniformly(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ABC, "class_sampling=natural", "logit_adjustment=1")
    drawn = recipe.labeled.labels[np.concatenate([recipe.sampler.epoch(epoch).ravel() for epoch in range(40)])]
    assert np.bincount(drawn)[0] > 1.8 * np.bincount(drawn)[1:].max()
    mass = np.bincount(drawn, recipe.head.labeled.numpy()[drawn])
    np.testing.assert_allclose(mass / mass.sum(), np.full(3, 1 / 3), atol=0.03)
    assert recipe.head.margin.unique().numel() == 1, "nothing to adjust for"
    assert recipe.margin.unique().numel() == 2


def test_a_class_without_a_face_has_no_share_in_the_balanced_mix(faces: Path) -> None:
    """Of 48 faces three of four classes have some: 16 each, and one more for each of the four (Laplace)."""
    arguments = ("class_sampling=natural", "logit_adjustment=1", "classes=[neutral,anger,happiness,fear]")
    recipe: OnlineMethod = recipe_of(faces, *ABC, *arguments)
    assert isinstance(recipe.head, OnlineBalancedHead)
    assert recipe.head.margin.tolist() == pytest.approx([math.log(17 / 52)] * 3 + [math.log(1 / 52)])


def test_pseudo_labelled_faces_play_no_part_in_the_worst_case(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, "method.head=debiased", f"pseudo={faces / 'selection'}")
    step = next(recipe.steps(0))
    outputs = torch.randn(8 + 16 + 16 + 16, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(recipe.losses(outputs, step)["worst_case"], outputs)
    heard = recipe.logits(gradient, WORST).any(dim=1)
    assert heard.nonzero()[:, 0].tolist() == [*range(8), *range(40, 56)]


def test_a_class_that_is_never_named_does_not_keep_labels_from_the_balanced_head(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ABC, "method.threshold=0.05")
    step = next(recipe.steps(0))
    step.unlabeled.progress = 0.999
    recipe.class_shares = torch.tensor([0.5, 0.5, 0.0])
    outputs = torch.zeros(24, 2, 3, requires_grad=True)
    loss = loss_of(recipe, outputs, step)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient.isfinite().all()
    assert gradient[:8, 1].abs().sum(dim=1).gt(0.05).all()


def test_who_learns_from_what_in_dst(faces: Path) -> None:
    """The table of ssl.md: h only from labels, g only from pseudo-labels, v from its game, features from all."""
    recipe: OnlineMethod = recipe_of(
        faces, *ONLINE, "method.head=debiased", "method.rule=threshold", "method.threshold=0.05"
    )
    step = next(recipe.steps(0))
    unlabeled = step.unlabeled
    model: Any = recipe.model
    outputs = model(step.inputs)
    pseudo = recipe._pseudo_labels(unlabeled)
    m = len(unlabeled.rows)
    fits = F.cross_entropy(recipe.logits(outputs[8 : 8 + m], PSEUDO), pseudo.labels)
    of_worst = recipe.logits(outputs, WORST)
    labeled, readable = (outputs[:8, 0], of_worst[:8]), (torch.ones(8), torch.ones(m))
    worst = worst_case(labeled, readable[0], of_worst[8 + m :], pseudo.labels, readable[1])
    classifier = model.backbone.get_classifier().weight
    g, v = (next(model.heads[name].parameters()) for name in (PSEUDO, WORST))
    for loss, touched, untouched in ((fits, g, (classifier, v)), (worst, v, (classifier, g))):
        gradients = torch.autograd.grad(loss, [touched, *untouched], retain_graph=True, allow_unused=True)
        assert gradients[0].any()
        assert all(each is None or not each.any() for each in gradients[1:])


def test_the_reversed_gradient_by_hand() -> None:
    """Of the sum of W f with rows (1, 2) and (3, 5) the features' gradient is (4, 7), and W's is f in both rows."""
    head = ReversedHead(2, 2)
    head.layers = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    weight = head.layers[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    features = torch.tensor([[0.5, -1.0]], requires_grad=True)
    of_features, of_weight = torch.autograd.grad(head(features).sum(), [features, weight])
    assert of_features.tolist() == [[0.0, 0.0]], "before a strength is set, the features learn nothing of it"
    assert of_weight.tolist() == [[0.5, -1.0], [0.5, -1.0]]
    head.strength = 0.25
    logits = head(features)
    assert logits.tolist() == [[-1.5, -3.5]]
    of_features, of_weight = torch.autograd.grad(logits.sum(), [features, weight])
    assert of_features.tolist() == [[-1.0, -1.75]]
    assert of_weight.tolist() == [[0.5, -1.0], [0.5, -1.0]]


def test_one_step_down_the_worst_case_makes_it_worse_for_the_features() -> None:
    """Descent on what the head returns is ascent on its loss, as far as the features go."""
    torch.manual_seed(0)
    head = ReversedHead(4, 3).eval()
    head.strength = 1.0
    features, labels = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 3
    before = F.cross_entropy(head(features), labels)
    (gradient,) = torch.autograd.grad(before, features)
    assert F.cross_entropy(head(features - 0.1 * gradient), labels) > before


def test_the_features_learn_the_opposite_of_the_worst_case() -> None:
    head = ReversedHead(4, 3).eval()
    features = torch.randn(5, 4, requires_grad=True)
    gradients = []
    for strength in (-1.0, 0.3):  # -1 reverses nothing
        head.strength = strength
        gradients.append(torch.autograd.grad(F.cross_entropy(head(features), torch.arange(5) % 3), features)[0])
    torch.testing.assert_close(gradients[1], -0.3 * gradients[0])


def test_the_worst_case_of_its_own_labelled_error_is_capped() -> None:
    sure, sure_of_others = torch.tensor([[9.0, 0.0, 0.0]] * 2), torch.tensor([[-1e6, 0.0, 0.0]] * 2)
    term = worst_case((sure, sure_of_others), torch.ones(2), torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2))
    assert term.item() == pytest.approx(0.3 * (2 * (math.log(3) + 2) - math.log(2 / 3)), rel=1e-3)


def test_black_pictures_play_no_part_in_the_worst_case(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, "method.head=debiased")
    step = next(recipe.steps(0))
    targets, unlabeled = step.targets, step.unlabeled
    targets.label_weights[3] = unlabeled.ok[5] = 0
    outputs = torch.randn(8 + 16 + 16, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_of(recipe, outputs, step), outputs)
    heard = recipe.logits(gradient, WORST).any(dim=1)
    assert (~heard).nonzero()[:, 0].tolist() == [3, *range(8, 24), 24 + 5]


def test_the_balanced_head_is_published(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, "method.head=balanced", "epochs=1")
    run_epochs(recipe, range(1))
    inputs = open_inputs(config(faces, f"unlabeled={faces / 'more'}", *ONLINE, "method.head=balanced"))
    model, *_ = build_model(inputs)
    model.load_state_dict(plain_weights(inputs, recipe.ema_model.state_dict(), model))
    x = torch.randn(4, 3, 32, 32)
    both = recipe.ema_model(x)
    torch.testing.assert_close(model.eval()(x), recipe.logits(both, BALANCED))
    assert not torch.equal(both[:, 0], both[:, 1])
    plain = published(recipe.ema_model.state_dict(), "main", model.default_cfg["classifier"])
    model.load_state_dict(plain)
    torch.testing.assert_close(model(x), both[:, 0])


def test_where_the_logits_of_a_head_are_and_who_is_reversed(faces: Path) -> None:
    recipe: OnlineMethod = recipe_of(faces, *ONLINE, "method.head=debiased")
    headed: Any = recipe.model
    outputs = torch.arange(6.0).reshape(1, 3, 2)
    assert [headed.logits(outputs, name).tolist() for name in (MAIN, PSEUDO, WORST)] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    recipe.head.at(0.5)
    assert headed.heads[WORST].strength == pytest.approx(0.1 * math.tanh(0.75))
    assert [*BalancedHead.modules(4, 3)] == [BALANCED]
    assert not Head.modules(4, 3)


def test_heads_share_the_features() -> None:
    backbone = timm.create_model("test_resnet", num_classes=3).eval()
    headed = HeadedBackbone(backbone, {"other": torch.nn.Linear(backbone.num_features, 3)}).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(headed(x)[:, 0], backbone(x))
