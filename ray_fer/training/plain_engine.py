"""A method's model without DeepSpeed or Ray, on one rank: for benchmarks and tests of methods."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ray_fer.training.loop import CLIP_NORM, Method


class PlainEngine:
    """torch's AdamW with the runner's clipping; see `ray_fer.training.loop.Engine`."""

    def __init__(self, method: Method) -> None:
        self.model, self.accumulate = method.model, method.accumulate
        self.optimizer = torch.optim.AdamW(method.parameter_groups(), fused=True)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's."""
        return self.optimizer.param_groups

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the model."""
        outputs: torch.Tensor = self.model(inputs)
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of ``loss``, divided by the method's ``accumulate``."""
        (loss / self.accumulate).backward()  # type: ignore[no-untyped-call]

    def step(self) -> bool:
        """One optimiser step; False where a gradient is not finite."""
        finite = bool(torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM).isfinite())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return finite

    def gathered(self) -> AbstractContextManager[Any]:
        """The weights are whole."""
        return nullcontext()
