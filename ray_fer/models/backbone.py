"""Building a timm backbone with a classification head for our classes, from nothing, a local file or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, load_model

DEFAULT_BACKBONE = "resnet10t"


def check_backbone(name: str) -> None:
    """Raises `UserError` when timm has no backbone of this name, with the closest ones it has."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:5]
        raise UserError(
            f"backbone={name}: timm has no such model" + (f" (near it: {', '.join(close)})" if close else "")
        )


def build_backbone(
    name: str,
    n_classes: int,
    image_size: int,
    *,
    pretrained: str | None = None,
    init: Artifact | None = None,
    classes: tuple[str, ...] = (),
) -> torch.nn.Module:
    """A timm model with ``n_classes`` outputs.

    Args:
        name: timm's model name.
        n_classes: outputs of the head.
        image_size: input side in pixels; given to models whose weights depend on it (vision transformers).
        pretrained: a timm folder or a weight file (``.safetensors``, or a ``.pth`` read without unpickling code); its
            classifier is dropped when it has other classes.
        init: an artifact to start from; its head is kept when it has the same ``classes`` in the same order.
        classes: names in the order of the logits, compared with those of ``init``.

    Raises:
        UserError: when the weights do not fit the backbone.
    """
    arguments: dict[str, Any] = {"num_classes": n_classes}
    if _has_fixed_size(name):
        arguments["img_size"] = image_size
    try:
        if pretrained is None:
            model = timm.create_model(name, **arguments)
        elif Path(pretrained).is_dir():
            model = timm.create_model(f"local-dir:{pretrained}", pretrained=True, **arguments)
        else:
            overlay = {"file": pretrained, "custom_load": False}
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
        if init is not None:
            _start_from(model, init, keep_head=init.classes == classes)
    except (RuntimeError, KeyError, FileNotFoundError) as error:
        where = init.uri if init else pretrained or name
        raise UserError(f"{where}: its weights do not fit backbone={name}: {str(error).splitlines()[0]}") from None
    return model


def normalisation(model: torch.nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for pixels in [0, 1], that the backbone's weights expect."""
    data = resolve_model_data_config(model)
    return tuple(data["mean"]), tuple(data["std"])


def local_pretrained(uri: str) -> str:
    """A local path of the pretrained folder or file ``uri``.

    Raises:
        UserError: when nothing is there.
    """
    if not storage.exists(uri):
        raise UserError(f"pretrained={uri}: no such file or folder")
    if not storage.is_remote(uri):
        return storage.normalise(uri)
    if storage.is_dir(uri):
        return str(storage.local_copy(uri))
    parent, _, name = uri.rpartition("/")
    return str(storage.local_copy(parent, only=name) / name)


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name.split(".")[0])
    return bool(config is not None and config.fixed_input_size)


def _start_from(model: torch.nn.Module, init: Artifact, *, keep_head: bool) -> None:
    state = load_model(init).state_dict()
    if not keep_head:
        head = {name for name, _ in model.named_parameters() if name.startswith(_head_prefix(model))}
        state = {key: value for key, value in state.items() if key not in head}
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [*unexpected, *([] if not keep_head else missing)]
    if wrong:
        raise RuntimeError(f"{wrong[0]} does not match")


def _head_prefix(model: torch.nn.Module) -> str:
    classifier = getattr(model, "default_cfg", {}).get("classifier", "fc")
    return str(classifier)
