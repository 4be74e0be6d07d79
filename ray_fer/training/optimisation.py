"""What methods share around the optimiser: which weights decay, the learning-rate schedule, the averaged weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None, backbone_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: kernels and matrices decay; biases, norms and what the model excepts do not.

    Args:
        model: any; where ``layer_decay`` is given, of timm, or one that holds such as its children.
        weight_decay: of the first kind.
        layer_decay: makes groups per layer of each timm model; the ``lr_scale`` of its classifier is 1, and this much
            of it for each layer below (BEiT, arXiv:2106.08254, as in timm). Heads beside it are as the classifier.
        backbone_rate: factor on the learning rate of all weights of a timm model below its classifier.
    """
    groups: list[dict[str, Any]] = []
    excepted: set[int] = set()
    for backbone in _backbones(model):
        exceptions: Any = getattr(backbone, "no_weight_decay", set)  # timm's transformers have such a method
        names = set(exceptions())
        excepted |= {id(parameter) for name, parameter in backbone.named_parameters() if name in names}
        if layer_decay is not None:
            groups += param_groups_layer_decay(
                backbone, weight_decay, no_weight_decay_list=names, layer_decay=layer_decay
            )
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in grouped:
            (kept if parameter.ndim <= 1 or id(parameter) in excepted else decayed).append(parameter)
    others = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups += [group for group in others if group["params"]]
    return groups if backbone_rate == 1 else _slowed(groups, _below_classifier(model), backbone_rate)


def _below_classifier(model: nn.Module) -> set[int]:
    below: set[int] = set()
    for net in _nets(model):
        heads = {id(each) for each in net.get_classifier().parameters()}  # type: ignore[operator]
        below |= {id(each) for each in net.parameters()} - heads
    return below


def _slowed(groups: list[dict[str, Any]], slow: set[int], rate: float) -> list[dict[str, Any]]:
    parts = []
    for group in groups:
        for factor, mine in ((rate, True), (1.0, False)):
            params = [each for each in group["params"] if (id(each) in slow) == mine]
            if params:
                parts.append(group | {"params": params, "lr_scale": factor * group.get("lr_scale", 1.0)})
    return parts


def _backbones(model: nn.Module) -> list[nn.Module]:
    # timm knows the layers and exceptions of its own models only: of a wrapper around them it would find neither.
    return [getattr(net, "body", net) for net in _nets(model)]


def _nets(model: nn.Module) -> list[nn.Module]:
    if hasattr(model, "pretrained_cfg"):
        return [model]
    return [each for each in model.children() if hasattr(each, "pretrained_cfg")] or [model]


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: linear warm-up, then half a cosine towards zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))


class Ema:
    """A copy of a model whose weights follow it slowly; it is what is validated and published.

    The decay at update t is min(decay, (1 + t) / (10 + t)), so that the random start is forgotten within a few updates
    (the warm-up of TensorFlow's ExponentialMovingAverage). BatchNorm statistics are averaged like weights (EMAN,
    arXiv:2101.08482): statistics copied from the fast model do not belong to the slow one. The copy is float32 and
    whole on every rank.

    Attributes:
        model: the averaged model, in evaluation mode.
        updates: t.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step towards the weights of ``model``, which has the same architecture."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        slow, fast = _floats(self.model), [tensor.detach() for tensor in _floats(model)]
        torch._foreach_lerp_(slow, fast, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)


def _floats(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
