"""Timm backbones with a classification head, initialised at random, from a local file or from an artifact."""

from __future__ import annotations

import difflib
import functools
import pickle
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data.config import resolve_model_data_config

from ray_fer.compat.timm import classifier_name
from ray_fer.errors import UserError, one_line
from ray_fer.models.artifact import CONFIG, Artifact, load_model
from ray_fer.models.depth_net import DepthNet, depth_net_of
from ray_fer.models.folder_facts import architecture_of
from ray_fer.models.nets import timm_name
from ray_fer.models.weights import check_finite, state_of

DEFAULT_BACKBONE = "resnet10t"
# The exceptions of timm, torch and safetensors for files that hold no weights, or weights of another model.
_BAD_WEIGHTS = (
    *(RuntimeError, KeyError, ValueError, AttributeError, AssertionError),
    *(OSError, EOFError, pickle.UnpicklingError, SafetensorError),
)

# If a size does not fit, these sizes are tried, nearest first, for so many seconds of CPU time.
_SIZES = range(32, 449, 32)
_SEARCH_SECONDS = 20.0


def check_backbone(name: str) -> None:
    """Raises `UserError` if timm has no backbone of this name; the message has the closest names."""
    given, name = name, timm_name(name)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        raise UserError(
            f"backbone={given}: timm has no such model" + (f" (near it: {', '.join(close)})" if close else "")
        )


def build_backbone(
    name: str,
    n_classes: int,
    image_size: int,
    *,
    pretrained: str | None = None,
    init: Artifact | None = None,
    classes: tuple[str, ...] = (),
    depths: bool = False,
) -> torch.nn.Module:
    """Builds a timm model with ``n_classes`` outputs.

    Args:
        name: Timm's model name, or ``MODULE:NAME`` of a net that the module registers.
        n_classes: The number of outputs of the head.
        image_size: Side of the input in pixels, for which vision transformers, whose weights depend on it, are built.
        pretrained: A timm folder or a weight file (``.safetensors``, or a ``.pth`` read without unpickling code). Its
            classifier is dropped, unless it is a folder with as many classes.
        init: An artifact to start from; its head is kept if its classes are ``classes`` in the same order.
        classes: Names in the order of the logits, which are compared with those of ``init``.
        depths: Whether the classifier is to take several depths of the backbone; see `DepthNet`.

    Raises:
        UserError: If the backbone does not support the size (the message has sizes near it that it supports), or the
            weights do not fit it.
    """
    given, name = name, timm_name(name)
    try:
        if pretrained is not None:
            model = _from_pretrained(name, pretrained, _arguments(name, n_classes, image_size))
        else:
            own = init.config.get("model_args", {}) if init is not None and init.architecture == given else {}
            model = timm.create_model(name, **own | _arguments(name, n_classes, image_size))
        if depths:
            model = _with_depths(given, model)
        check_forward(model, n_classes, image_size)
    except UserError:
        raise
    except Exception as error:  # for a size that does not fit, every module of timm may raise its own
        what = f"backbone={name}: cannot see pictures of image_size={image_size}: {one_line(error)}"
        raise UserError(what + _fitting(name, n_classes, image_size)) from None
    if init is not None:
        try:
            _start_from(model, init, keep_head=init.classes == classes)
        except RuntimeError as error:
            raise UserError(f"{init.uri}: its weights do not fit backbone={name}: {one_line(error)}") from None
    return model


def _with_depths(name: str, model: torch.nn.Module) -> torch.nn.Module:
    try:
        return model if isinstance(model, DepthNet) else depth_net_of(model)
    except ValueError as error:
        raise UserError(f"backbone={name}: {error}; give depths=false") from None


def own_size(name: str) -> int:
    """Side in pixels of the pictures that timm trained a backbone on."""
    config = timm.get_pretrained_cfg(timm_name(name).split(".")[0])
    return int(config.input_size[-1]) if config is not None else 224


def checkpoint_activations(model: torch.nn.Module, name: str) -> None:
    """Makes a timm model keep few activations in training and recompute the others in the backward pass.

    Args:
        model: The model, which is changed in place.
        name: The name of the model, for the message.

    Raises:
        UserError: If the model does not support it.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, TypeError, AssertionError):
        raise UserError(f"checkpoint_activations=true: backbone={name} has no such mode in timm") from None
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(functools.partial(_average_once, module.momentum))


def _average_once(momentum: float | None, module: torch.nn.Module, _: Any) -> None:
    # The backward pass repeats the forward pass, which must not update the running statistics a second time.
    repeated = torch._C._current_graph_task_id() != -1
    module.momentum = 0.0 if repeated else momentum  # type: ignore[assignment]


def normalisation(model: torch.nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation per channel, for pixels in [0, 1], that the backbone's weights expect."""
    data = resolve_model_data_config(model)
    return tuple(data["mean"]), tuple(data["std"])


def check_forward(model: torch.nn.Module, n_classes: int, image_size: int, channels: int = 3) -> None:
    """Runs a model on two pictures, which fails if its patches or windows do not divide the side.

    Args:
        model: A timm model, whose training mode is kept.
        n_classes: The number of outputs that it should have for each picture; 0 for features of any number.
        image_size: Side of the pictures in pixels.
        channels: The number of channels of the pictures.

    Raises:
        RuntimeError: If the output has another shape. Exceptions of the model are passed on.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            out = model(torch.zeros(2, channels, image_size, image_size))
    finally:
        model.train(training)
    shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if shape != (2, n_classes) and not (n_classes == 0 and shape[0] == 2 and len(shape) == 2):
        raise RuntimeError(f"it puts out {shape} for 2 pictures and {n_classes} classes")


def _arguments(name: str, n_classes: int, image_size: int) -> dict[str, Any]:
    config = timm.get_pretrained_cfg(name.split(".")[0])
    sized = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    return {"num_classes": n_classes} | sized


def _fitting(name: str, n_classes: int, image_size: int) -> str:
    """The end of a message: the sizes nearest to ``image_size`` that the backbone supports; empty if none is found."""
    config = timm.get_pretrained_cfg(name.split(".")[0])
    own = config.input_size[-1] if config is not None else _SIZES[0]
    began = time.process_time()
    found: list[int] = []
    for near in (
        sorted((size for size in {*_SIZES, own} if size < image_size), reverse=True),
        sorted(size for size in {*_SIZES, own} if size > image_size),
    ):
        for size in near:
            if time.process_time() - began > _SEARCH_SECONDS:
                break
            try:
                with torch.random.fork_rng(devices=[]):
                    check_forward(timm.create_model(name, **_arguments(name, n_classes, size)), n_classes, size)
            except Exception:  # as in `build_backbone`
                continue
            found.append(size)
            break
    return f"; {' or '.join(map(str, found))} would fit" if found else ""


def _from_pretrained(name: str, pretrained: str, arguments: dict[str, Any]) -> torch.nn.Module:
    folder = Path(pretrained)
    source, overlay = name, dict[str, Any]()
    if folder.is_dir():
        held = architecture_of(str(folder))
        if held != name.split(".")[0]:
            raise UserError(f"pretrained={pretrained}: holds a {held}, not backbone={name}")
        source = f"local-dir:{pretrained}"
    else:
        overlay = {"pretrained_cfg_overlay": {"file": pretrained, "custom_load": False}}
    # timm ignores weights that a file lacks, so the weights of another model would be accepted. Weights that are equal
    # in two models of the same seed were not loaded.
    with torch.random.fork_rng(devices=[]):
        seed = torch.initial_seed() ^ 0x5EED
        torch.manual_seed(seed)
        try:
            fresh = dict(timm.create_model(source, **arguments).named_parameters())
        except TypeError as error:
            if not folder.is_dir():
                raise
            raise UserError(f"pretrained={pretrained}: {CONFIG}: model_args: {one_line(error)}") from None
        torch.manual_seed(seed)
        try:
            model: torch.nn.Module = timm.create_model(source, pretrained=True, **overlay, **arguments)
            head = _head_names(model)
            for key, value in model.named_parameters():
                random = value.ndim > 1 and bool((value != value.flatten()[0]).any())
                if random and key not in head and torch.equal(value, fresh[key]):
                    raise RuntimeError(f"nothing there for {key}")
        except _BAD_WEIGHTS as error:
            what = f"its weights do not fit backbone={name}: {one_line(error)}"
            raise UserError(f"pretrained={pretrained}: {what}") from None
    check_finite(f"pretrained={pretrained}", state_of(model))
    return model


def check_step(model: torch.nn.Module, image_size: int, pictures: int) -> None:
    """Runs a model in training mode, which fails if BatchNorm has only one value per channel.

    Args:
        model: The model, whose running statistics are changed.
        image_size: Side of the pictures in pixels.
        pictures: The number of pictures of a step.

    Raises:
        UserError: If the model cannot learn from so few pictures; the message has the reason and not the model's name.
    """
    try:
        model.train()(torch.zeros(pictures, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(one_line(error)) from None


def _start_from(model: torch.nn.Module, init: Artifact, *, keep_head: bool) -> None:
    state = load_model(init).state_dict()
    head = set() if keep_head else _head_names(model)
    state = {key: value for key, value in state.items() if key not in head}
    missing, unexpected = model.load_state_dict(state, strict=False)
    # An artifact may lack the weights that a net adds to another net.
    added = tuple(getattr(model, "added", ()))
    wrong = [*unexpected, *(key for key in missing if key not in head and not (added and key.startswith(added)))]
    if wrong:
        raise RuntimeError(f"{wrong[0]} does not match")


def _head_names(model: torch.nn.Module) -> set[str]:
    classifier = classifier_name(model)
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{prefix}." for prefix in prefixes))}
