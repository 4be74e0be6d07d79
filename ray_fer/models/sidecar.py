"""What a model that is not ours does not say of itself: a small YAML beside it, checked as strictly as a job's config.

``model.onnx`` has ``model.yaml`` beside it, ``weights.pth`` has ``weights.yaml``, a folder has ``teacher.yaml`` in it::

    classes: [neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF]
    map: {contempt: other, unknown: null, NF: null}
    image_size: 64
    mean: 0
    std: 1
    scale: 255
    colour: grey
    layout: nchw
    output: logits

``classes`` are the net's outputs in their order. One that is no expression of ours in any usual spelling must be named
in ``map``, with the class that it counts as (itself: it is kept) or null: then it is dropped and the others are
renormalised (`outputs`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from ray_fer import storage
from ray_fer.config import Count, JobConfig, validate
from ray_fer.errors import UserError, one_line
from ray_fer.expressions import canonical, class_name, class_order
from ray_fer.models.outputs import DROPPED

IN_FOLDER = "teacher.yaml"

PerChannel = Annotated[
    tuple[float, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1, max_length=3),
]


def _positive(values: tuple[float, ...]) -> tuple[float, ...]:
    if min(values) <= 0:
        raise ValueError("must be above 0")
    return values


class Sidecar(JobConfig):
    """What every foreign model has to say.

    Attributes:
        classes: of the net's outputs, in their order.
        map: what becomes of classes that are not ours, or that shall count as another; null drops one.
        image_size: side in pixels of the square that enters the net.
        mean: subtracted, per channel in the net's own order or one for all, in units of the scale.
        std: what remains is divided by it.
        crop: the central share of the picture's sides that the net sees.
        temperature: that the net's logits are divided by.
    """

    classes: Annotated[list[str], Field(min_length=2)]
    map: dict[str, str | None] = Field(default_factory=dict)
    image_size: Count
    mean: PerChannel
    std: Annotated[PerChannel, AfterValidator(_positive)]
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


class TimmSidecar(Sidecar):
    """Of a timm checkpoint; in a folder whatever its ``config.json`` says already may be left out.

    Attributes:
        architecture: timm's name of the model.
    """

    architecture: str


class OnnxSidecar(Sidecar):
    """Of an ONNX file.

    Attributes:
        scale: the value of a white pixel before mean and std: 1 or 255.
        colour: the order of the net's channels, or grey for one.
        layout: of the net's input.
        output: what the net puts out.
        output_name: which of several outputs.
    """

    scale: Literal[1, 255]
    colour: Literal["rgb", "bgr", "grey"]
    layout: Literal["nchw", "nhwc"]
    output: Literal["logits", "probabilities"]
    output_name: str | None = None

    @property
    def channels(self) -> int:
        """Of the net's input."""
        return 1 if self.colour == "grey" else 3


Schema = TypeVar("Schema", bound=Sidecar)


def read_sidecar(uri: str) -> dict[Any, Any]:
    """What the YAML at ``uri`` says, unchecked; empty where there is none.

    Raises:
        UserError: when it is not a YAML mapping.
    """
    try:
        document = yaml.safe_load(storage.read_bytes(uri))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: not YAML ({one_line(error)})") from None
    if not isinstance(document, dict):
        raise UserError(f"{uri}: not a YAML mapping of keys to values")
    return document


def check_sidecar(uri: str, schema: type[Schema], values: dict[Any, Any], channels: int | None = None) -> Schema:
    """The typed sidecar, mean and std given for every channel.

    Args:
        uri: of the YAML, for messages.
        schema: of the kind of model.
        values: what it says, under what the model says of itself.
        channels: of the net's input; None: as its colour says.

    Raises:
        UserError: naming the file and every wrong or missing key.
    """
    sidecar: Schema = validate(uri, schema, values, assign=": ")
    wanted = sidecar.channels if isinstance(sidecar, OnnxSidecar) else channels or 3
    spread = {}
    for key in ("mean", "std"):
        given = getattr(sidecar, key)
        if len(given) not in (1, wanted):
            raise UserError(f"{uri}: {key}: {len(given)} numbers for {wanted} channel{'s' * (wanted > 1)}")
        spread[key] = given if len(given) == wanted else given * wanted
    return sidecar.model_copy(update=spread)


def map_classes(uri: str, sidecar: Sidecar) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Our K classes in the package's order, and for each of the model's M the index among them or `DROPPED`.

    Raises:
        UserError: naming the class that is neither an expression nor mapped, or whatever else makes no sense.
    """
    names = sidecar.classes
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{uri}: classes: {twice[0]!r} is there twice")
    if unknown := [name for name in sidecar.map if name not in names]:
        raise UserError(f"{uri}: map: {unknown[0]!r} is not one of the classes ({', '.join(names)})")
    targets = [_target(uri, name, sidecar) for name in names]
    ours = class_order(target for target in targets if target is not None)
    if len(ours) < 2:
        raise UserError(f"{uri}: map: leaves fewer than two classes")
    return ours, tuple(DROPPED if target is None else ours.index(target) for target in targets)


def _target(uri: str, name: str, sidecar: Sidecar) -> str | None:
    wanted = sidecar.map.get(name, name)
    if wanted is None:
        return None
    if name in sidecar.map and wanted in sidecar.classes:  # a class of one's own is kept by mapping it to itself
        return class_name(wanted)
    try:
        return canonical(wanted)
    except UserError as error:
        if name in sidecar.map:
            raise UserError(f"{uri}: map: {name}: {error}") from None
        raise UserError(f"{uri}: classes: {error}; say in map what it counts as, or null to drop it") from None
