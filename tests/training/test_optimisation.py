import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ray_fer.methods.heads import HeadedBackbone
from ray_fer.methods.meta_feedback import TeacherAndStudent
from ray_fer.methods.online_heads import DebiasedHead
from ray_fer.training.optimisation import Ema, learning_rate_factor, parameter_groups


def test_schedule_by_hand() -> None:
    factors = [learning_rate_factor(step, 10, 2) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate_factor(0, 4, 0) == 1.0
    assert learning_rate_factor(3, 4, 4) == 1.0


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, kept = parameter_groups(model, 0.1)
    assert [parameter.ndim for parameter in decayed["params"]] == [4, 2]
    assert [parameter.ndim for parameter in kept["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_a_transformer_excepts_its_position_embedding() -> None:
    model = timm.create_model("test_vit", num_classes=2)
    _, kept = parameter_groups(model, 0.1)
    assert any(parameter is model.pos_embed for parameter in kept["params"])


def test_layers_below_learn_more_slowly() -> None:
    model = timm.create_model("test_vit", num_classes=2)
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    scale_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale_of) == len(list(model.parameters()))
    assert scale_of[id(model.head.weight)] == 1
    assert scale_of[id(model.blocks[5].mlp.fc1.weight)] == 0.5
    assert scale_of[id(model.blocks[4].mlp.fc1.weight)] == 0.25
    assert scale_of[id(model.patch_embed.proj.weight)] == scale_of[id(model.pos_embed)] == 0.5**7
    without = {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    assert id(model.pos_embed) in without
    assert id(model.head.weight) not in without


def rates(model: nn.Module, part: nn.Module, layer_decay: float | None) -> dict[str, tuple[float, float]]:
    """By name, the scale of the learning rate and the weight decay of the parameters of ``part`` of ``model``."""
    groups = parameter_groups(model, 0.1, layer_decay)
    rate = {
        id(each): (group.get("lr_scale", 1.0), group["weight_decay"]) for group in groups for each in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(rate) == len(list(model.parameters()))
    return {name: rate[id(each)] for name, each in part.named_parameters()}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda backbone: HeadedBackbone(backbone, {}),
        lambda backbone: HeadedBackbone(backbone, DebiasedHead.modules(backbone.num_features, 2)),
        lambda backbone: TeacherAndStudent(timm.create_model("test_vit", num_classes=2), backbone),
        lambda backbone: TeacherAndStudent(backbone, timm.create_model("test_resnet", num_classes=2)),
    ],
    ids=["main", "debiased", "student", "teacher"],
)
def test_a_wrapper_changes_nothing_for_what_it_holds(
    wrap: Callable[[Any], nn.Module], name: str, layer_decay: float | None
) -> None:
    backbone = timm.create_model(name, num_classes=2)
    bare = rates(backbone, backbone, layer_decay)
    assert rates(wrap(backbone), backbone, layer_decay) == bare
    assert len({scale for scale, _ in bare.values()}) > (1 if layer_decay else 0), "layers differ"


def test_heads_learn_and_decay_as_the_classifier_does() -> None:
    backbone: Any = timm.create_model("test_vit", num_classes=2)
    headed = HeadedBackbone(backbone, DebiasedHead.modules(backbone.num_features, 2))
    found = rates(headed, headed.heads, 0.5)
    assert set(found.values()) == {(1.0, 0.1), (1.0, 0.0)}
    assert found["pseudo.0.weight"] == (1.0, 0.1)
    assert found["pseudo.0.bias"] == found["worst.layers.1.weight"] == (1.0, 0.0)


def test_ema_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    ema = Ema(model, decay=0.15)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.running_mean.fill_(10.0)
        model.num_batches_tracked.fill_(7)
    ema.update(model)  # decay 1/10
    assert ema.model.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    assert ema.model.running_mean.item() == pytest.approx(9.0)
    assert ema.model.num_batches_tracked.item() == 7
    ema.update(model)  # 2/11 is above .15
    assert ema.model.weight.item() == pytest.approx(0.15 * 1.9 + 0.85 * 2)
    assert not ema.model.training
    assert ema.updates == 2
