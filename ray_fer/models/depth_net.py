"""A backbone with a classifier over several of its depths.

The last layer of a net that was trained to recognise persons has lost the expression, which its middle layers still
carry. So the classifier of this net takes the maps of several depths, average-pooled and side by side, through a
BatchNorm without weights, dropout, and one linear layer that starts at zero.

timm opens an artifact of such a net after ``import ray_fer.models.depth_net``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ray_fer.compat.timm import model_arguments
from ray_fer.models.nets import module_of, timm_name

_DEPTHS, _SHRINKAGE = 4, 8
# timm finds it under this name in the module of `depth_net`.
default_cfgs = generate_default_cfgs({"depth_net": {"classifier": "fc"}})


class DepthNet(nn.Module):
    """See the module.

    Args:
        backbone: Timm's name of the backbone, or ``MODULE:NAME``; it is built without a classifier.
        depths: Indices of the maps, as timm's ``forward_intermediates`` numbers them; None for the last four stages
            that shrink the picture at least eightfold, or four evenly spaced blocks of a transformer.
        num_classes: K.
        drop_rate: Dropout in front of the classifier.
        backbone_args: Further arguments of the backbone.
    """

    def __init__(
        self,
        backbone: str,
        depths: Sequence[int] | None = None,
        num_classes: int = 7,
        drop_rate: float = 0.3,
        **backbone_args: Any,
    ) -> None:
        super().__init__()
        body: Any = timm.create_model(timm_name(backbone), num_classes=0, **backbone_args)
        self.depths = list(depths) if depths is not None else default_depths(body)
        channels = [stage["num_chs"] for stage in _stages(body)]
        without_late_layers(body, self.depths)
        # Not named ``backbone``: so the weights of a method with several heads call theirs.
        self.body = body
        self.num_classes = num_classes
        self.num_features = sum(channels[depth] for depth in self.depths)
        self.norm = nn.BatchNorm1d(self.num_features, affine=False)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.num_features, num_classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The pooled maps (B, D) of ``x`` (B, 3, S, S)."""
        return pooled_depths(self.body, x, self.depths)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits (B, K) of the pooled maps (B, D), or what the classifier takes where ``pre_logits`` is true."""
        x = self.drop(self.norm(x))
        logits: torch.Tensor = x if pre_logits else self.fc(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of ``x`` (B, 3, S, S)."""
        return self.forward_head(self.forward_features(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's models have it."""
        self.body.set_grad_checkpointing(enable)


def without_late_layers(body: Any, depths: Sequence[int]) -> nn.Module:
    """Removes the layers behind the last of ``depths`` from a timm model, which is changed in place."""
    body.prune_intermediate_layers(list(depths), prune_norm=True, prune_head=True)
    return body  # type: ignore[no-any-return]


class WithFeatures(nn.Module):
    """A timm model that gives its features beside its logits, from one forward pass.

    Args:
        model: A timm model with a classifier.

    Attributes:
        depths: Indices of the maps whose means are the features: those of a `DepthNet`, else `default_depths`.

    Raises:
        ValueError: If timm does not know the depths of the model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.depths = model.depths if isinstance(model, DepthNet) else default_depths(model)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K) and features (B, D) of ``x`` (B, C, S, S)."""
        model: Any = self.model
        if isinstance(model, DepthNet):
            features = model.forward_features(x)
            return model.forward_head(features), features
        last, maps = model.forward_intermediates(x, indices=self.depths)
        return model.forward_head(last), _pooled(maps)


def pooled_depths(backbone: Any, x: torch.Tensor, depths: Sequence[int]) -> torch.Tensor:
    """The average-pooled maps of several depths side by side, (B, D).

    Args:
        backbone: A timm model.
        x: (B, 3, S, S).
        depths: Indices as timm's ``forward_intermediates`` numbers them.
    """
    return _pooled(backbone.forward_intermediates(x, indices=list(depths), intermediates_only=True))


def _pooled(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    # The pooling of the net's own head, which OpenVINO then computes once.
    return torch.cat([nn.functional.adaptive_avg_pool2d(each, 1) for each in maps], dim=1).flatten(1)


def depth_net_of(model: Any) -> nn.Module:
    """A `DepthNet` over the weights of a timm model, whose own classifier is dropped.

    Raises:
        ValueError: As `default_depths`.
    """
    net: Any = timm.create_model("depth_net", num_classes=model.num_classes, **described(model))
    fill(net.body, model)
    mine = {"architecture": "depth_net", "classifier": "fc", "first_conv": None}
    net.pretrained_cfg = net.default_cfg = dict(model.pretrained_cfg) | mine
    return net  # type: ignore[no-any-return]


def described(model: Any) -> dict[str, Any]:
    """What builds the body of a timm model again, its name as ``backbone``."""
    name, module = model.pretrained_cfg["architecture"], module_of(model)
    given = {key: each for key, each in model_arguments(model).items() if key not in ("num_classes", "global_pool")}
    return given | {"backbone": f"{module}:{name}" if module else name}


def fill(body: nn.Module, model: nn.Module) -> None:
    """Gives a body, which may lack late layers and the classifier, the weights that ``model`` has for it."""
    kept = body.state_dict().keys()
    body.load_state_dict({key: value for key, value in model.state_dict().items() if key in kept})


def default_depths(backbone: Any) -> list[int]:
    """The indices of the stages that shrink the picture at least eightfold, or of four evenly spaced blocks.

    Raises:
        ValueError: If timm does not know the stages of the backbone.
    """
    stages = _stages(backbone)
    if len({stage["reduction"] for stage in stages}) == 1:  # the blocks of a transformer
        return [round((number + 1) * len(stages) / _DEPTHS) - 1 for number in range(min(_DEPTHS, len(stages)))]
    return [number for number, stage in enumerate(stages) if stage["reduction"] >= _SHRINKAGE]


def _stages(backbone: Any) -> list[dict[str, Any]]:
    info = getattr(backbone, "feature_info", None)
    stages = getattr(info, "info", info)
    if not stages or not hasattr(backbone, "forward_intermediates"):
        raise ValueError("timm gives no maps of its depths")
    return list(stages)


@register_model
def depth_net(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A `DepthNet`, for ``timm.create_model``."""
    model: nn.Module = build_model_with_cfg(DepthNet, "depth_net", pretrained, **arguments)
    return model
