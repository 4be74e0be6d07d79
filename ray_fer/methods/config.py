"""What training a backbone can be told."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from ray_fer.config import Count, Device, JobConfig, Minutes, NonNegative, Seed, Share, Uri
from ray_fer.config_values import Plain, typed
from ray_fer.data.source_config import Sources
from ray_fer.feedback.config import FeedbackPart
from ray_fer.methods.recipe_names import RECIPES, is_there
from ray_fer.selection.config import Rule


def _known_recipe(name: str) -> str:
    if not is_there(name):
        ours = ", ".join(f"'{each}'" for each in RECIPES)
        raise PydanticCustomError(
            "recipe", f"input should be {ours} or a module such as my.recipe, in the current folder or installed"
        )
    return name


def _recorded(value: Any) -> Any:
    """What a run records of ``settings``, whose types their recipe alone knows: numbers where text can be no other."""
    if isinstance(value, Mapping):
        return {key: _recorded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_recorded(each) for each in value]
    if not isinstance(value, Plain):
        return value
    read = typed(dict[str, Any] if value.startswith("{") else list[Any], value)
    if not isinstance(read, str):
        return _recorded(read)
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if str(kind(value)) == value:
                return kind(value)
    return {"true": True, "false": False, "null": None}.get(value, str(value))


Settings = Annotated[dict[str, Any] | None, AfterValidator(lambda given: given or None), PlainSerializer(_recorded)]


class SupervisedConfig(JobConfig):
    """What the recipe ``supervised`` has alone."""

    head: Literal["main", "balanced"]


class OnlineConfig(JobConfig):
    """What the recipe ``online`` does with unlabeled faces."""

    rule: Rule
    threshold: Annotated[float, Field(gt=0, le=1)]
    ratio: Count
    weight: NonNegative
    targets: Literal["soft", "hard"]
    head: Literal["main", "balanced", "debiased"]
    calibrate: bool


class MetaConfig(JobConfig):
    """What the recipe ``meta_feedback`` does with unlabeled faces."""

    ratio: Count
    consistency: NonNegative
    strength: Annotated[float, Field(ge=0, le=0.5)]
    finetune: Share


class TrainBackboneConfig(JobConfig):
    """``jobs/train_backbone.py``"""

    labeled: Uri
    val: Uri
    feedback_val: Uri | None
    out: Uri
    backbone: Annotated[str, Field(min_length=1)] | None
    pretrained: Uri | None
    image_size: Annotated[int, Field(ge=16, le=1024)] | None
    classes: Annotated[list[str], Field(min_length=2)] | None
    epochs: Count
    batch_size: Count
    accumulate: Count
    class_sampling: Literal["uniform", "natural"]
    labeled_view: Literal["weak", "strong"]
    logit_adjustment: NonNegative
    learning_rate: Annotated[float, Field(gt=0)]
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    weight_decay: NonNegative
    warmup_epochs: NonNegative
    label_smoothing: Share
    ema_decay: Share
    seed: Seed
    init: Uri | None
    pseudo: Uri | None
    pseudo_ratio: Count
    pseudo_weight: NonNegative
    recipe: Annotated[str, AfterValidator(_known_recipe)]
    settings: Settings
    unlabeled: Sources | None
    supervised: SupervisedConfig
    online: OnlineConfig
    meta: MetaConfig
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
