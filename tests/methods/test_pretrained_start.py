"""Training from a pretrained net: its defaults, BatchNorm at rest, the rates, and what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ray_fer.errors import UserError
from ray_fer.jobs.backbone_context import build_method, build_model
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.methods.base import BackboneMethod
from ray_fer.models.artifact import open_artifact, save_artifact
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World
from tests.training.epochs import run_epochs
from tests.training.toy import CLASSES, config, write_sets


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces, and a net without a classifier as it comes from elsewhere."""
    folder = write_sets(tmp_path_factory.mktemp("faces"), (8, 8, 8))
    torch.manual_seed(7)
    net = timm.create_model("test_resnet", num_classes=0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
    timm.models.save_for_hf(net, str(folder / "pretrained"), model_config={"num_classes": 0})
    return folder


def opened(faces: Path, *arguments: str) -> Any:
    return open_inputs(config(faces, f"pretrained={faces / 'pretrained'}", "epochs=2", *arguments))


def method_of(faces: Path, *arguments: str) -> Any:
    return build_method(opened(faces, *arguments), World())


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


def test_its_defaults_are_those_of_fine_tuning(faces: Path) -> None:
    ours = opened(faces).config
    assert (ours.depths, ours.batch_norm, ours.class_sampling) == (True, "rest", "sqrt")
    assert (ours.learning_rate, ours.backbone_rate) == (1e-3, 0.3)
    given = opened(faces, "depths=false", "batch_norm=learn", "class_sampling=natural", "learning_rate=0.01").config
    assert (given.depths, given.batch_norm, given.class_sampling) == (False, "learn", "natural")
    assert given.learning_rate == 0.01
    scratch = open_inputs(config(faces)).config
    assert (scratch.depths, scratch.batch_norm, scratch.class_sampling) == (False, "learn", "uniform")
    assert (scratch.learning_rate, scratch.backbone_rate, scratch.warmup_epochs) == (2e-3, 1.0, 0)


def test_classes_are_drawn_by_the_square_root_of_their_counts(faces: Path) -> None:
    probs = method_of(faces).neutral_probs  # of 24, 12 and 12 faces
    assert probs[0] / probs[1] == pytest.approx(2**0.5)
    assert probs[1] == probs[2]


def test_batch_norm_rests_and_its_weights_learn(faces: Path) -> None:
    method = method_of(faces)
    before, weights = statistics(method.model.body), method.model.body.bn1.weight.clone()
    engine = PlainEngine(method)
    run_epochs(method, range(2), engine)
    for name, value in statistics(method.model.body).items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(method.model.body.bn1.weight, weights)
    assert method.model.norm.running_mean.any()
    below = {id(each) for each in method.model.body.parameters()}
    for group in engine.groups:
        assert group["lr_scale"] == (0.3 if id(group["params"][0]) in below else 1.0)
    learning = method_of(faces, "batch_norm=learn")
    run_epochs(learning, range(1))
    assert any(not torch.equal(value, before[name]) for name, value in statistics(learning.model.body).items())


def test_the_plain_net_rests_too(faces: Path) -> None:
    method = method_of(faces, "depths=false")
    before = statistics(method.model)
    engine = PlainEngine(method)
    run_epochs(method, range(1), engine)
    assert all(torch.equal(value, before[name]) for name, value in statistics(method.model).items())
    classifier = {id(each) for each in method.model.get_classifier().parameters()}
    for group in engine.groups:
        assert group["lr_scale"] == (1.0 if id(group["params"][0]) in classifier else 0.3)


def published(faces: Path, method: BackboneMethod, out: Path) -> None:
    inputs = opened(faces)
    model, mean, std = build_model(inputs)
    model.load_state_dict(method.model.state_dict())
    sizes = {"classes": CLASSES, "image_size": 32, "mean": mean, "std": std}
    save_artifact(str(out), model, metrics={}, provenance={}, **sizes)  # type: ignore[arg-type]


def test_a_student_goes_on_from_what_is_published(faces: Path, tmp_path: Path) -> None:
    method = method_of(faces)
    run_epochs(method, range(1))
    published(faces, method, tmp_path / "teacher")
    inputs = open_inputs(config(faces, f"init={tmp_path / 'teacher'}", f"pseudo={faces / 'selection'}"))
    assert inputs.config.batch_norm == "rest"
    student = build_method(inputs, World())
    for name, value in method.model.state_dict().items():
        assert torch.equal(student.model.state_dict()[name], value), name
    run_epochs(student, range(1))
    assert open_artifact(str(tmp_path / "teacher")).takes_depths


def test_a_backbone_without_depths_is_refused_by_name(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(timm.create_model("test_resnet")), "forward_intermediates")
    with pytest.raises(UserError, match="backbone=test_resnet: timm gives no maps of its depths"):
        build_model(opened(faces))


def test_a_head_beside_the_classifier_sees_the_depths(faces: Path) -> None:
    method = method_of(faces, "method.head=balanced")
    run_epochs(method, range(1))
    weights = method.publish(method.model.state_dict(), method.numbers, "fc")
    assert weights.keys() == method.model.backbone.state_dict().keys()
