"""Building a timm backbone with a classification head for our classes, from nothing, a local file or an artifact."""

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

from ray_fer import storage
from ray_fer.compat.timm import classifier_name
from ray_fer.errors import UserError, one_line
from ray_fer.models.artifact import CONFIG, Artifact, load_model
from ray_fer.models.folder_facts import architecture_of
from ray_fer.models.nets import timm_name
from ray_fer.models.weights import check_finite, state_of

DEFAULT_BACKBONE = "resnet10t"
# What timm, torch and safetensors raise for files that hold no weights, or others.
BAD_WEIGHTS = (
    *(RuntimeError, KeyError, ValueError, AttributeError, AssertionError),
    *(OSError, EOFError, pickle.UnpicklingError, SafetensorError),
)

# What is tried, nearest first, where a size does not fit, and for how long of the processor's time.
_SIZES = range(32, 449, 32)
_SEARCH_SECONDS = 20.0


def check_backbone(name: str) -> None:
    """Raises `UserError` when timm has no backbone of this name, with the closest ones it has."""
    name = timm_name(name)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
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
        name: timm's model name, or ``MODULE:NAME`` of a net that the module registers.
        n_classes: outputs of the head.
        image_size: input side in pixels; given to models whose weights depend on it (vision transformers).
        pretrained: a timm folder or a weight file (``.safetensors``, or a ``.pth`` read without unpickling code); its
            classifier is dropped unless it is a folder with as many classes.
        init: an artifact to start from; its head is kept when it has the same ``classes`` in the same order.
        classes: names in the order of the logits, compared with those of ``init``.

    Raises:
        UserError: when the backbone cannot have that size, with sizes that it can have, or the weights do not fit it.
    """
    name = timm_name(name)
    try:
        if pretrained is not None:
            model = _from_pretrained(name, pretrained, _arguments(name, n_classes, image_size))
        else:
            model = timm.create_model(name, **_arguments(name, n_classes, image_size))
        check_forward(model, n_classes, image_size)
    except UserError:
        raise
    except Exception as error:  # timm's modules raise anything for a size that is not theirs
        what = f"backbone={name}: cannot see pictures of image_size={image_size}: {one_line(error)}"
        raise UserError(what + _fitting(name, n_classes, image_size)) from None
    if init is not None:
        try:
            _start_from(model, init, keep_head=init.classes == classes)
        except RuntimeError as error:
            raise UserError(f"{init.uri}: its weights do not fit backbone={name}: {one_line(error)}") from None
    return model


def checkpoint_activations(model: torch.nn.Module, name: str) -> None:
    """Makes a timm model keep few activations in training and compute the others again in the backward pass.

    Args:
        model: changed in place.
        name: its name, for messages.

    Raises:
        UserError: when it cannot.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, TypeError, AssertionError):
        raise UserError(f"checkpoint_activations=true: backbone={name} has no such mode in timm") from None
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(functools.partial(_average_once, module.momentum))


def _average_once(momentum: float | None, module: torch.nn.Module, _: Any) -> None:
    # Statistics would be averaged in a second time when the pass is repeated, which is within the backward pass.
    repeated = torch._C._current_graph_task_id() != -1
    module.momentum = 0.0 if repeated else momentum  # type: ignore[assignment]


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
    return str(storage.local_copy(parent, only=[name]) / name)


def check_forward(model: torch.nn.Module, n_classes: int, image_size: int, channels: int = 3) -> None:
    """Lets two pictures through: a net tells only then that its patches or windows do not divide the side.

    Args:
        model: a timm model; its mode is kept.
        n_classes: numbers that it has to put out for each.
        image_size: side of the pictures in pixels.
        channels: of the pictures.

    Raises:
        RuntimeError: when it puts out anything else; whatever else the model raises.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            out = model(torch.zeros(2, channels, image_size, image_size))
    finally:
        model.train(training)
    shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if shape != (2, n_classes):
        raise RuntimeError(f"it puts out {shape} for 2 pictures and {n_classes} classes")


def _arguments(name: str, n_classes: int, image_size: int) -> dict[str, Any]:
    config = timm.get_pretrained_cfg(name.split(".")[0])
    sized = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    return {"num_classes": n_classes} | sized


def _fitting(name: str, n_classes: int, image_size: int) -> str:
    """Which sizes near ``image_size`` the backbone can have, as the end of a message; empty where none was found."""
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
    # timm passes over what a file lacks, so weights of another model would count as pretrained without a word.
    # Two models of one seed tell what was not loaded: it is equal in both.
    with torch.random.fork_rng(devices=[]):
        seed = torch.initial_seed() ^ 0x5EED
        torch.manual_seed(seed)
        fresh = dict(_create(source, arguments).named_parameters())
        torch.manual_seed(seed)
        try:
            model: torch.nn.Module = timm.create_model(source, pretrained=True, **overlay, **arguments)
            head = _head_names(model)
            for key, value in model.named_parameters():
                random = value.ndim > 1 and bool((value != value.flatten()[0]).any())
                if random and key not in head and torch.equal(value, fresh[key]):
                    raise RuntimeError(f"nothing there for {key}")
        except BAD_WEIGHTS as error:
            what = f"its weights do not fit backbone={name}: {one_line(error)}"
            raise UserError(f"pretrained={pretrained}: {what}") from None
    check_finite(f"pretrained={pretrained}", state_of(model))
    return model


def _create(source: str, arguments: dict[str, Any]) -> torch.nn.Module:
    try:
        model: torch.nn.Module = timm.create_model(source, **arguments)
    except TypeError as error:
        folder = source.removeprefix("local-dir:")
        if folder == source:
            raise
        raise UserError(f"pretrained={folder}: {CONFIG}: model_args: {one_line(error)}") from None
    return model


def check_step(model: torch.nn.Module, image_size: int, pictures: int) -> None:
    """Lets ``pictures`` through in training mode: BatchNorm cannot normalise over a single value.

    Args:
        model: whose batch statistics this changes.
        image_size: side in pixels.
        pictures: of a step.

    Raises:
        UserError: saying why the model cannot learn from so few, without naming it.
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
    # What a net adds to another one it may start without.
    added = tuple(getattr(model, "added", ()))
    wrong = [*unexpected, *(key for key in missing if key not in head and not (added and key.startswith(added)))]
    if wrong:
        raise RuntimeError(f"{wrong[0]} does not match")


def _head_names(model: torch.nn.Module) -> set[str]:
    classifier = classifier_name(model)
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{prefix}." for prefix in prefixes))}
