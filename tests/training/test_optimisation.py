import math

import pytest
import timm
import torch
from torch import nn

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
