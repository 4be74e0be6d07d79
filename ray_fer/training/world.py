"""The ranks that train together, as one of them sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The ranks that train together, and the device of this one.

    Attributes:
        rank: 0 … size - 1.
        size: number of ranks.
        local_size: ranks on the machine that has most of them: all ranks share a machine's memory out alike.
        device: where this rank computes.
        precision: ``float32`` or ``bfloat16`` (autocast; weights stay float32).
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"

    def autocast(self) -> torch.autocast:
        """The context for a forward pass in this world's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def broadcast(self, value: T) -> T:
        """Rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The ``value`` of every rank, in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def all(self, flag: torch.Tensor) -> bool:
        """Whether the boolean scalar ``flag`` holds on every rank."""
        if self.size == 1:
            return bool(flag)
        value = flag.to(torch.int32)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return bool(value)

    @torch.no_grad()
    def average_buffers(self, model: nn.Module) -> None:
        """Replaces the floating buffers (BatchNorm statistics) by their mean over the ranks."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size
