"""A linear probe: how well a linear classifier on fixed features tells the classes, found in closed form."""

from __future__ import annotations

import torch


def ridge_probe(features: torch.Tensor, labels: torch.Tensor, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a ridge regression on one-hot labels in which every class counts the same.

    W = (ZᵀDZ + λI)⁻¹ ZᵀDY, with Z the features and a column of ones, D the inverse of the number of faces of each
    one's class, Y the one-hot labels and λ = 0.01 tr(ZᵀDZ) / (D + 1).

    Args:
        features: float (N, D).
        labels: int64 (N,), each in [0, K).
        n_classes: K.

    Returns:
        float32 (K, D) and (K,), which make scores of features.
    """
    z = torch.cat([features, torch.ones_like(features[:, :1])], dim=1).double()
    y = torch.nn.functional.one_hot(labels, n_classes).double()
    weighted = z / y.sum(dim=0)[labels][:, None]
    gram = z.T @ weighted
    ridge = 0.01 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(gram + ridge, weighted.T @ y).T.float()
    return solution[:, :-1].contiguous(), solution[:, -1].contiguous()
