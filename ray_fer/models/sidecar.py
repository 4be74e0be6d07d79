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

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from botocore.exceptions import BotoCoreError
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from ray_fer import storage
from ray_fer.config import JobConfig, validate
from ray_fer.config_values import parse_yaml
from ray_fer.errors import UserError, one_line
from ray_fer.expressions import canonical, class_name, class_order
from ray_fer.models.folder_facts import Fact, wrong
from ray_fer.models.outputs import DROPPED

IN_FOLDER = "teacher.yaml"

LARGEST_SIDE = 2048
"""Of a crop in pixels."""
# White after mean and std less black: 2 for [-1, 1], 255 for pixels as they are.
_SPANS = (0.5, 256.0)

# Not text, as in "224", and not true, which is no number to whoever wrote it.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PerChannel = Annotated[
    tuple[Number, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1, max_length=3),
]


def _whole(value: Any) -> Any:
    """Of 64.0 the integer; true is none, though Python thinks so."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    image_size: Annotated[int, Field(ge=1, le=1024, strict=True), BeforeValidator(_whole)]
    mean: PerChannel
    std: Annotated[PerChannel, AfterValidator(_positive)]
    crop: Annotated[Number, Field(gt=0, le=1)] = 1.0
    temperature: Annotated[Number, Field(ge=1e-3, le=1e3)] = 1.0

    @property
    def white(self) -> float:
        """The value of a white pixel before mean and std."""
        return 1.0

    @property
    def channels(self) -> int:
        """Of the net's input."""
        return 3


class TimmSidecar(Sidecar):
    """Of a timm checkpoint; in a folder whatever its ``config.json`` says already may be left out.

    Attributes:
        architecture: timm's name of the model.
        colour: rgb, or grey for a net of one channel.
    """

    architecture: Annotated[str, Field(strict=True)]
    colour: Literal["rgb", "grey"] = "rgb"

    @property
    def channels(self) -> int:
        """Of the net's input."""
        return 1 if self.colour == "grey" else 3


class OnnxSidecar(Sidecar):
    """Of an ONNX file.

    Attributes:
        scale: the value of a white pixel before mean and std: 1 or 255.
        colour: the order of the net's channels, or grey for one.
        layout: of the net's input.
        output: what the net puts out.
        output_name: which of several outputs.
    """

    scale: Annotated[Literal[1, 255], BeforeValidator(_whole)]
    colour: Literal["rgb", "bgr", "grey"]
    layout: Literal["nchw", "nhwc"]
    output: Literal["logits", "probabilities"]
    output_name: str | None = None

    @property
    def white(self) -> float:
        """The value of a white pixel before mean and std."""
        return float(self.scale)

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
        document = parse_yaml(storage.read_bytes(uri))
    except FileNotFoundError:
        return {}
    except (OSError, BotoCoreError) as error:
        raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None
    except Exception as error:  # text that is no YAML, tags and dates that PyYAML stumbles over
        raise UserError(f"{uri}: not YAML ({one_line(error)})") from None
    if not isinstance(document, dict):
        raise UserError(f"{uri}: not a YAML mapping of keys to values")
    return document


def check_sidecar(
    uri: str, schema: type[Schema], said: dict[Any, Any], facts: Mapping[str, Fact] = MappingProxyType({})
) -> Schema:
    """The typed sidecar, mean and std given for every channel.

    Args:
        uri: of the YAML, for messages.
        schema: of the kind of model.
        said: what the YAML says, above what the model says of itself.
        facts: the latter, by key.

    Raises:
        UserError: naming the file and every wrong or missing key.
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
    """Side in pixels of the crops, of which the net sees the centre."""
    # The parity of both is the same, or the centre would lie half a pixel off.
    border = round((sidecar.image_size / sidecar.crop - sidecar.image_size) / 2)
    return sidecar.image_size + 2 * border


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
