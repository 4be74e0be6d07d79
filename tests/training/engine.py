"""The engine without DeepSpeed: torch's AdamW on one rank."""

from __future__ import annotations

import torch

from ray_fer.training.loop import Recipe, train_epoch


class PlainEngine:
    def __init__(self, recipe: Recipe) -> None:
        self.model = recipe.model
        self.optimizer = torch.optim.AdamW(recipe.parameter_groups(), fused=True)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.model(inputs)
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def run_epochs(recipe: Recipe, epochs: range, engine: PlainEngine | None = None) -> list[float]:
    """The losses of the epochs."""
    engine = engine or PlainEngine(recipe)
    return [train_epoch(recipe, engine, engine.model, engine.optimizer.param_groups, epoch) for epoch in epochs]
