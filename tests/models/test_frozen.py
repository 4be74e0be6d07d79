"""Parts of a model that do not learn."""

from __future__ import annotations

import copy

import timm
import torch
from torch import nn

from ray_fer.models.frozen import freeze
from ray_fer.training.optimisation import parameter_groups


def test_weights_and_statistics_stay_whoever_calls_train() -> None:
    model = nn.Sequential(freeze(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))), nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()
        model(torch.randn(8, 2)).square().sum().backward()
        optimizer.step()
    same = {name: torch.equal(value, before[name]) for name, value in model.state_dict().items()}
    assert {name for name, equal in same.items() if equal} == {name for name in before if name.startswith("0.")}


def test_a_copy_stays_as_well() -> None:
    twin = copy.deepcopy(freeze(nn.BatchNorm1d(2))).train()
    twin(torch.randn(8, 2))
    assert twin.running_mean.tolist() == [0.0, 0.0]


def test_it_is_in_no_parameter_group_also_with_layer_decay() -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    freeze(model.layer1)
    frozen = {id(parameter) for parameter in model.layer1.parameters()}
    for layer_decay in (None, 0.5):
        grouped = {id(p) for group in parameter_groups(model, 0.05, layer_decay) for p in group["params"]}
        assert grouped == {id(parameter) for parameter in model.parameters()} - frozen
