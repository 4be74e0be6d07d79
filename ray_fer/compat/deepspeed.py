"""Undocumented names of DeepSpeed, which loads only when a function is called. Checked against `CHECKED`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CHECKED = "0.19.8"


def skip_operator_probe() -> None:
    """Keeps DeepSpeed from asking the compiler which of its operators could be built."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


def skip_allreduce(engine: Any) -> None:
    """Keeps a DeepSpeed engine at stage 0 from copying all gradients to and fro where there is nothing to reduce."""
    engine.enable_backward_allreduce = False


def held_weights(optimizer: Any, stage: int) -> list[tuple[list[nn.Parameter], torch.Tensor]]:
    """Returns the weights that a ZeRO optimizer of ``stage`` 1 to 3 holds together, and this rank's part of each."""
    if stage == 3:
        return list(zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True))
    return list(zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True))


def link_moments(parameters: list[nn.Parameter], held: torch.Tensor, state: Any) -> None:
    """Lets DeepSpeed find the moments of ``parameters``: at stages 1 and 2 it looks for them once, and too early.

    That is after the first group's first step, when the other groups have none yet.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    lazy_init_hp_params_optimizer_state(parameters, held, state)
