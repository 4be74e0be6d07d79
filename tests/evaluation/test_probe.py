"""The linear probe in closed form."""

from __future__ import annotations

import torch

from ray_fer.evaluation.probe import ridge_probe


def test_it_is_the_minimum_of_the_weighted_ridge_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, generator=generator)
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    weight, bias = ridge_probe(features, labels, 3)
    z = torch.cat([features, torch.ones(60, 1)], dim=1)
    shares = 1 / torch.bincount(labels)[labels].float()
    ridge = 0.01 * (z.square() * shares[:, None]).sum() / 5

    def loss(w: torch.Tensor) -> torch.Tensor:
        errors = (z @ w.T - torch.nn.functional.one_hot(labels, 3)).square().sum(dim=1)
        return (shares * errors).sum() + ridge * w.square().sum()

    solution = torch.cat([weight, bias[:, None]], dim=1).requires_grad_()
    loss(solution).backward()
    assert solution.grad is not None
    assert solution.grad.abs().max() < 1e-4


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    features = torch.cat([torch.zeros(99, 1), torch.ones(1, 1)])
    labels = torch.tensor([0] * 99 + [1])
    weight, bias = ridge_probe(features, labels, 2)
    assert (features @ weight.T + bias).argmax(dim=1).tolist() == labels.tolist()
