"""The sidecar of a model that was trained elsewhere: a small YAML, checked as strictly as a job's config.

It holds the facts that the model's own files lack. ``model.onnx`` has ``model.yaml`` beside it, ``weights.pth`` has
``weights.yaml``, and a folder contains ``teacher.yaml``::

    classes: [neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF]
    map: {contempt: other, unknown: null, NF: null}
    image_size: 64
    mean: 0
    std: 1
    scale: 255
    colour: grey
    layout: nchw
    output: logits

``classes`` are the net's outputs in their order. A class that is not an expression in any usual spelling must be named
in ``map``, with the class that it counts as, which may be itself, or with null. Null drops the class, and the
probabilities of the others are renormalised (see `outputs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from ray_fer.config import JobConfig, validate
from ray_fer.config_values import parse_yaml
from ray_fer.documents import MissingDocumentError, read_file
from ray_fer.errors import UserError, one_line
from ray_fer.expressions import canonical, class_name, class_order
from ray_fer.models.folder_facts import Fact, wrong
from ray_fer.models.outputs import DROPPED

IN_FOLDER = "teacher.yaml"

LARGEST_SIDE = 2048
"""The largest side of a crop in pixels."""
# The difference between white and black after mean and std: 2 for [-1, 1], 255 for pixels that are not scaled.
_SPANS = (0.5, 256.0)

# A strict number is neither text, such as "224", nor true.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PerChannel = Annotated[
    tuple[Number, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1, max_length=3),
]


def _integer(value: Any) -> Any:
    """Converts a float such as 64.0 to an integer, and refuses bool, which is an int in Python."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _positive(values: tuple[float, ...]) -> tuple[float, ...]:
    if min(values) <= 0:
        raise ValueError("must be above 0")
    return values


class Sidecar(JobConfig):
    """The facts about every kind of model that was trained elsewhere.

    Attributes:
        classes: The M classes of the net's outputs, in their order.
        map: The class that a class of the net counts as; null drops it.
        image_size: Side in pixels of the square that enters the net.
        mean: The number subtracted from each channel, in the net's channel order, or from all; in units of the scale.
        std: The divisor of each channel or of all.
        crop: The central share of the crop's sides that the net sees.
        temperature: The divisor of the net's logits.
        colour: The order of the net's channels, or grey for a net of one channel.
    """

    classes: Annotated[list[str], Field(min_length=2)]
    map: dict[str, str | None] = Field(default_factory=dict)
    image_size: Annotated[int, Field(ge=1, le=1024, strict=True), BeforeValidator(_integer)]
    mean: PerChannel
    std: Annotated[PerChannel, AfterValidator(_positive)]
    crop: Annotated[Number, Field(gt=0, le=1)] = 1.0
    temperature: Annotated[Number, Field(ge=1e-3, le=1e3)] = 1.0
    colour: Literal["rgb", "bgr", "grey"]

    @property
    def white(self) -> float:
        """The value of a white pixel before mean and std."""
        return 1.0

    @property
    def channels(self) -> int:
        """The number of channels of the net's input."""
        return 1 if self.colour == "grey" else 3


class TimmSidecar(Sidecar):
    """The sidecar of a timm checkpoint; in a folder, facts that its ``config.json`` holds may be left out.

    Attributes:
        architecture: Timm's name of the model.
    """

    architecture: Annotated[str, Field(strict=True)]
    colour: Literal["rgb", "grey"] = "rgb"


class OnnxSidecar(Sidecar):
    """The sidecar of an ONNX file.

    Attributes:
        scale: The value of a white pixel before mean and std, 1 or 255.
        layout: The order of the axes of the net's input.
        output: Whether the net puts out logits or probabilities.
        output_name: The name of the output, which is required if there are several.
        embedding: The outputs or inner layers whose values, pooled and side by side, are the net's features. They are
            no part of the model's id, because they change no probability.
    """

    scale: Annotated[Literal[1, 255], BeforeValidator(_integer)]
    layout: Literal["nchw", "nhwc"]
    output: Literal["logits", "probabilities"]
    output_name: str | None = None
    embedding: Annotated[
        list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), Field(min_length=1)
    ] = Field(default_factory=list)

    @property
    def white(self) -> float:
        """The value of a white pixel before mean and std."""
        return float(self.scale)


Schema = TypeVar("Schema", bound=Sidecar)


def read_sidecar(uri: str) -> dict[Any, Any]:
    """The mapping in the YAML at ``uri``, which is not validated; empty if there is no file.

    Raises:
        UserError: If the file cannot be read or is not a YAML mapping.
    """
    try:
        document = parse_yaml(read_file(uri))
    except MissingDocumentError:
        return {}
    except UserError:
        raise
    except Exception as error:  # besides its own errors, PyYAML raises others for some tags and dates
        raise UserError(f"{uri}: not YAML ({one_line(error)})") from None
    if not isinstance(document, dict):
        raise UserError(f"{uri}: not a YAML mapping of keys to values")
    return document


def check_sidecar(
    uri: str, schema: type[Schema], said: dict[Any, Any], facts: Mapping[str, Fact] = MappingProxyType({})
) -> Schema:
    """Validates a sidecar; the result has a mean and a std for every channel.

    Args:
        uri: The URI of the YAML, for messages.
        schema: The schema for the kind of model.
        said: The contents of the YAML, which override ``facts``.
        facts: The facts in the model's own files, by key of the schema.

    Raises:
        UserError: If a key is wrong or missing; the message names the file and every such key.
    """
    facts = {key: fact for key, fact in facts.items() if key not in said}
    for key, fact in facts.items():
        _check_fact(schema, key, fact)
    sidecar: Schema = validate(uri, schema, {key: fact.value for key, fact in facts.items()} | said, assign=": ")
    spread = {}
    for key in ("mean", "std"):
        given, wanted = getattr(sidecar, key), sidecar.channels
        if len(given) not in (1, wanted):
            many = f"{len(given)} numbers for {wanted} channel{'s' * (wanted > 1)}"
            raise UserError(f"{_place(uri, key, facts)}: {many}")
        spread[key] = given if len(given) == wanted else given * wanted
    sidecar = sidecar.model_copy(update=spread)
    _check_ranges(uri, sidecar, facts)
    return sidecar


def _check_fact(schema: type[Sidecar], key: str, fact: Fact) -> None:
    try:
        schema.model_validate({key: fact.value})
    except ValidationError as error:
        for problem in error.errors():
            if problem["loc"][0] == key and problem["type"] != "missing":
                raise wrong(fact, problem["msg"].lower()) from None


def _check_ranges(uri: str, sidecar: Sidecar, facts: Mapping[str, Fact]) -> None:
    white = sidecar.white
    for mean in sidecar.mean:
        if not 0 <= mean <= white:
            also = " (for pixels up to 255 say scale: 255)" if isinstance(sidecar, OnnxSidecar) and white == 1 else ""
            raise UserError(
                f"{_place(uri, 'mean', facts)}: {mean:g}: not within the pixels' range, 0 to {white:g}{also}"
            )
    for std in sidecar.std:
        if not _SPANS[0] <= white / std <= _SPANS[1]:
            what = f"of pixels from 0 to {white:g} it makes a range of {white / std:.4g}, which no net is trained with"
            raise UserError(f"{_place(uri, 'std', facts)}: {std:g}: {what}")
    if (side := crop_side(sidecar)) > LARGEST_SIDE:
        raise UserError(
            f"{_place(uri, 'crop', facts)}: {sidecar.crop:g}: crops of {side} pixels, more than {LARGEST_SIDE}"
        )


def _place(uri: str, key: str, facts: Mapping[str, Fact]) -> str:
    return facts[key].place if key in facts else f"{uri}: {key}"


def crop_side(sidecar: Sidecar) -> int:
    """Side in pixels of the crops whose centre the net sees."""
    # Both sides have the same parity, or the centre would be half a pixel off.
    border = round((sidecar.image_size / sidecar.crop - sidecar.image_size) / 2)
    return sidecar.image_size + 2 * border


def map_classes(uri: str, sidecar: Sidecar) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The K classes in the package's order, and for each of the M outputs the index of its class or `DROPPED`.

    Raises:
        UserError: If a class is neither an expression nor mapped, a name is given twice or mapped without being a
            class, or fewer than two classes remain.
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
    if name in sidecar.map and wanted in sidecar.classes:  # mapping a custom class to itself keeps it
        return class_name(wanted)
    try:
        return canonical(wanted)
    except UserError as error:
        if name in sidecar.map:
            raise UserError(f"{uri}: map: {name}: {error}") from None
        raise UserError(f"{uri}: classes: {error}; say in map what it counts as, or null to drop it") from None
