"""What training a backbone can be told, and what a method's own numbers are made of."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ray_fer import plugins
from ray_fer.config import Count, Device, JobConfig, Minutes, NonNegative, Seed, Share, Uri, conf_file
from ray_fer.data.source_config import Sources
from ray_fer.errors import UserError
from ray_fer.feedback.config import FeedbackPart

METHODS = ("supervised", "online", "meta_feedback", "masked")
_PRE_TRAINING = ("masked",)
NO_FEEDBACK = "none"
"""What ``feedback=`` says where there shall be none."""
_WIDTH, _COLUMN = 118, 24
_EARLIER = {"supervised": "supervised", "online": "online", "meta_feedback": "meta"}  # sections of earlier versions


_FROM_SCRATCH: dict[str, Any] = {
    "depths": False,
    "batch_norm": "learn",
    "backbone_rate": 1.0,
    "class_sampling": "uniform",
    "learning_rate": 2.0e-3,
    "ema_decay": 0.997,
}
_FINE_TUNED: dict[str, Any] = {
    "depths": True,
    "batch_norm": "rest",
    "backbone_rate": 0.3,
    "class_sampling": "sqrt",
    "learning_rate": 1.0e-3,
}


class MethodConfig(JobConfig):
    """The numbers of a method, given as ``method.NAME=``. The text under a field is its documentation."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class MethodChoice(JobConfig):
    """The name of a method and, under their names, its numbers, which the method's own ``Config`` validates."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, AfterValidator(lambda name: _known(name))]


def module_of(name: str) -> str:
    """The module that a method's name stands for: one of ours, or one of the user's."""
    return f"ray_fer.methods.{name}" if name in METHODS else name


def is_there(name: str) -> bool:
    """Whether the module of a method can be found."""
    return name in METHODS or plugins.is_there(name)


def upgraded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version recorded as the arguments of a run, by their names of now."""
    old = {**{key: _FROM_SCRATCH[key] for key in ("depths", "batch_norm", "backbone_rate")}, **arguments}
    if "recipe" not in old:
        return old
    name = old.pop("recipe")
    pseudo = {key: old.pop(key) for key in ("pseudo_ratio", "pseudo_weight") if key in old}
    own = {ours: old.pop(key, {}) for ours, key in _EARLIER.items()}
    given = old.pop("settings", None) or {}
    numbers = {**(pseudo if name in ("supervised", "online") else {}), **own.get(name, {}), **given}
    return {**old, "method": {"name": name, **numbers}}


def _known(name: str) -> str:
    if not is_there(name):
        ours = ", ".join(f"'{each}'" for each in METHODS)
        raise PydanticCustomError(
            "method", f"input should be {ours} or a module such as my.method, in the current folder or installed"
        )
    return name


def as_yaml(name: str, numbers: type[MethodConfig]) -> str:
    """The numbers of a method as commented YAML, which ``config=FILE`` takes."""
    lines = [f"# The numbers of method={name}, with their defaults.", "method:", f"  name: {name}"]
    for key, field in numbers.model_fields.items():
        value = "???" if field.is_required() else _scalar(field.get_default(call_default_factory=True))
        said = textwrap.wrap(" ".join((field.description or "").split()), _WIDTH - _COLUMN)
        start = f"  {key}: {value}"
        lines.append(f"{start:{_COLUMN - 2}}  # {said[0]}" if said else start)
        lines += [f"{'':{_COLUMN}}# {line}" for line in said[1:]]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


class TrainBackboneConfig(JobConfig):
    """``jobs/train_backbone.py``"""

    shorthand: ClassVar[dict[str, str]] = {"method": "name"}
    renamed: ClassVar[dict[str, str]] = {
        "recipe": "method",
        **dict.fromkeys(("settings", "supervised", "online", "meta"), "method.NAME"),
        "pseudo_ratio": "method.pseudo_ratio",
        "pseudo_weight": "method.pseudo_weight",
    }

    labeled: Uri | None
    val: Uri | None
    feedback_val: Uri | None
    out: Uri
    backbone: Annotated[str, Field(min_length=1)] | None
    pretrained: Uri | None
    depths: bool | None
    batch_norm: Literal["learn", "rest"] | None
    image_size: Annotated[int, Field(ge=16, le=1024)] | None
    classes: list[str] | None
    epochs: Count
    batch_size: Count
    accumulate: Count
    class_sampling: Literal["uniform", "sqrt", "natural"] | None
    labeled_view: Literal["weak", "strong"]
    logit_adjustment: NonNegative
    learning_rate: Annotated[float, Field(gt=0)] | None
    backbone_rate: Annotated[float, Field(gt=0)] | None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    weight_decay: NonNegative
    warmup_epochs: NonNegative
    label_smoothing: Share
    ema_decay: Share | None
    seed: Seed
    init: Uri | None
    pseudo: Uri | None
    method: MethodChoice
    unlabeled: Sources | None
    feedback: Uri | None
    feedback_parts: list[FeedbackPart]
    device: Device
    workers: Count | None
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    checkpoint_activations: bool
    precision: Literal["auto", "float32", "bfloat16"]
    wait_minutes: Minutes
    max_failures: Annotated[int, Field(ge=0)]
    on_bad_loss: Literal["stop", "skip"]

    def with_defaults(self, fine_tuned: bool) -> TrainBackboneConfig:
        """The config with the defaults of its start where it leaves a key null.

        Args:
            fine_tuned: Whether training starts from a pretrained net, rather than from scratch or from a model of ours.
        """
        defaults = _FINE_TUNED if fine_tuned else _FROM_SCRATCH
        return self.model_copy(update={key: each for key, each in defaults.items() if getattr(self, key) is None})

    @model_validator(mode="before")
    @classmethod
    def _may_lack_labels(cls, values: Any) -> Any:
        method = values.get("method") if isinstance(values, Mapping) else None
        if isinstance(method, Mapping) and method.get("name") in _PRE_TRAINING:
            return {"labeled": None, "val": None, **values}
        return values

    @classmethod
    def further_help(cls, arguments: Sequence[str]) -> str:
        """The numbers of the method that is asked about, else of all of ours."""
        given = (argument.partition("=") for argument in arguments)
        asked = [value for key, _, value in given if key in ("method", "method.name")]
        return "\n".join(_help_of(name) for name in asked or METHODS)


def _help_of(name: str) -> str:
    written = conf_file(f"methods/{name}")
    if name in METHODS and written.exists():  # importing the method takes seconds
        return written.read_text()
    numbers = getattr(getattr(plugins.load(f"method={name}", module_of(name)), "METHOD", None), "Config", None)
    if not (inspect.isclass(numbers) and issubclass(numbers, MethodConfig)):
        raise UserError(f"method={name}: has no METHOD with a Config that is a MethodConfig, see CONTRIBUTING.md")
    return as_yaml(name, numbers)
