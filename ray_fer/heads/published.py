"""Backbones and heads in one net: what heads on kept embeddings are published as.

timm opens an artifact of such a net after ``import ray_fer.heads.published``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ray_fer.heads.net import Head, MeanOfHeads
from ray_fer.models.depth_net import DepthNet, default_depths, described, fill, pooled_depths, without_late_layers
from ray_fer.models.nets import timm_name

# timm finds it under this name in the module of `head_net`.
default_cfgs = generate_default_cfgs({"head_net": {}})


class HeadNet(nn.Module):
    """Backbones side by side, and the mean probability of heads on their embeddings.

    Args:
        backbones: Of each its timm name (``backbone``), the ``depths`` whose pooled maps are its embedding, the
            normalisation that it expects (``mean`` and ``std`` per channel), and what else ``timm.create_model`` takes
            for it. Pixels are normalised for the first.
        heads: Of each the width of its hidden layer (``hidden``, 0 for none) and the ``columns`` of the embeddings side
            by side that it takes, [first, last).
        num_classes: K.
        in_chans: Channels of the pictures; timm records it.
    """

    def __init__(
        self,
        backbones: Sequence[Mapping[str, Any]],
        heads: Sequence[Mapping[str, Any]],
        num_classes: int,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, max(each["columns"][1] for each in heads)
        self.depths = [list(each["depths"]) for each in backbones]
        self.bodies = nn.ModuleList([_body(each) for each in backbones])
        first = backbones[0]
        for number, each in enumerate(backbones):
            own, mine = (torch.tensor(given["std"]).view(1, -1, 1, 1) for given in (each, first))
            shift = (torch.tensor(first["mean"]) - torch.tensor(each["mean"])).view(1, -1, 1, 1) / own
            self.register_buffer(f"factor{number}", mine / own, persistent=False)
            self.register_buffer(f"shift{number}", shift, persistent=False)
        self.head = MeanOfHeads([_head(each, num_classes) for each in heads], [tuple(e["columns"]) for e in heads])

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The embeddings side by side, (B, D), of ``x`` (B, 3, S, S)."""
        parts = []
        for number, (body, depths) in enumerate(zip(self.bodies, self.depths, strict=True)):
            own = x * getattr(self, f"factor{number}") + getattr(self, f"shift{number}")
            parts.append(pooled_depths(body, own, depths))
        return torch.cat(parts, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of ``x`` (B, 3, S, S)."""
        logits: torch.Tensor = self.head(self.forward_features(x))
        return logits


@register_model
def head_net(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A `HeadNet`, for ``timm.create_model``."""
    model: nn.Module = build_model_with_cfg(HeadNet, "head_net", pretrained, **arguments)
    return model


def head_net_of(nets: Sequence[Any], head: MeanOfHeads) -> nn.Module:
    """A `HeadNet` with the weights of backbones and of trained heads.

    Args:
        nets: Timm models or `DepthNet`, whose embeddings side by side, in this order, the heads take.
        head: The heads.
    """
    bodies = [(net.body, net.depths) if isinstance(net, DepthNet) else (net, default_depths(net)) for net in nets]
    backbones = [_described(body, depths) for body, depths in bodies]
    heads = []
    for each, columns in zip(head.heads, head.columns, strict=True):
        hidden = [layer.out_features for layer in each.layers if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]
        heads.append({"columns": list(columns), "hidden": hidden[0] if hidden else 0})
    n_classes = head.heads[0].last.out_features  # type: ignore[union-attr]
    model: Any = timm.create_model("head_net", backbones=backbones, heads=heads, num_classes=n_classes)
    for mine, (body, _) in zip(model.bodies, bodies, strict=True):
        fill(mine, body)
    for mine, theirs in zip(model.head.heads, head.heads, strict=True):
        mine.load_state_dict(theirs.state_dict())
    return model  # type: ignore[no-any-return]


def _described(body: Any, depths: Sequence[int]) -> dict[str, Any]:
    facts = body.pretrained_cfg
    return described(body) | {"depths": list(depths), "mean": list(facts["mean"]), "std": list(facts["std"])}


def _body(facts: Mapping[str, Any]) -> nn.Module:
    own = {key: each for key, each in facts.items() if key not in ("backbone", "depths", "mean", "std")}
    body: nn.Module = timm.create_model(timm_name(facts["backbone"]), num_classes=0, **own)
    return without_late_layers(body, facts["depths"])


def _head(facts: Mapping[str, Any], n_classes: int) -> Head:
    first, last = facts["columns"]
    even = np.zeros(last - first), np.ones(last - first)
    return Head(*even, n_classes, hidden=facts["hidden"], dropout=0.0)
