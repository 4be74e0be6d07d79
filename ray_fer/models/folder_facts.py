"""What a model folder says of itself in ``config.json`` and ``preprocessor_config.json``, in a sidecar's terms.

People write these files by hand and with every version of several libraries, so nothing in them is taken for granted:
what is not as timm or transformers write it is refused, in one line that names file and key.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError

from ray_fer import storage
from ray_fer.documents import parse_json
from ray_fer.errors import UserError, one_line

PROCESSOR = "preprocessor_config.json"
# What transformers calls classes whose names nobody gave.
_NO_NAME = re.compile(r"label_\d+", re.IGNORECASE)
_SHOWN = 80


class Fact(NamedTuple):
    """A value, and ``FILE: KEY`` where it stands."""

    value: Any
    place: str


class Section(NamedTuple):
    """A JSON object in a file: where it stands, ready for a key to be appended, and what it holds."""

    place: str
    values: dict[str, Any]

    def get(self, key: str) -> Fact | None:
        """The value of ``key``; None where there is none, or null."""
        value = self.values.get(key)
        return None if value is None else Fact(value, f"{self.place}{key}")

    def section(self, key: str) -> Section | None:
        """The object at ``key``; None where there is none, or an empty one.

        Raises:
            UserError: when something else is there.
        """
        found = self.get(key)
        if found is None or found.value == {}:
            return None
        if not isinstance(found.value, dict):
            raise wrong(found, "not an object")
        return Section(f"{found.place}.", found.value)


NO_PROCESSOR = Section("", {})


def wrong(fact: Fact, what: str) -> UserError:
    """The error that names the place and the value of ``fact`` and says ``what`` is wrong with it."""
    shown = repr(fact.value)
    return UserError(f"{fact.place}: {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}: {what}")


def read_json(path: Path, uri: str) -> Section:
    """The JSON object in the file ``path``.

    Raises:
        UserError: naming ``uri``, when it is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None
    document = parse_json(data, uri)
    if not isinstance(document, dict):
        raise UserError(f"{uri}: not a JSON object but a {type(document).__name__}")
    return Section(f"{uri}: ", document)


def architecture_of(folder: str) -> str:
    """Timm's name of the model in a folder given as ``pretrained``, local or on S3.

    Raises:
        UserError: when its ``config.json`` does not tell.
    """
    try:
        return str(storage.read_json(storage.join(folder, "config.json"))["architecture"])
    except (OSError, BotoCoreError, ValueError, KeyError, TypeError):
        raise UserError(f"pretrained={folder}: no config.json that names an architecture") from None


def folder_facts(config: Section, processor: Section, said: Collection[str] = ()) -> dict[str, Fact]:
    """Timm's configuration, else the image processor's.

    Args:
        config: ``config.json``.
        processor: ``preprocessor_config.json``, empty where there is none.
        said: keys that a sidecar says: what stands here of them is not looked at.

    Returns:
        Facts by the key of `ray_fer.models.sidecar.TimmSidecar`; what the folder does not say is not among them.

    Raises:
        UserError: naming file and key of what cannot be understood.
    """
    # timm's older folders have the keys at the top.
    timm = config.section("pretrained_cfg") or processor.section("pretrained_cfg") or config
    facts: dict[str, Fact | None] = {}
    if "architecture" not in said:
        facts["architecture"] = config.get("architecture")
    if "classes" not in said:
        facts["classes"] = _names(config)
    if "image_size" not in said:
        facts["image_size"] = _timm_side(timm) or _processor_side(processor)
    if "colour" not in said:
        facts["colour"] = _colour(config, timm)
    for key, of_timm, of_processor in (("mean", "mean", "image_mean"), ("std", "std", "image_std")):
        if key not in said:
            facts[key] = timm.get(of_timm) or processor.get(of_processor)
    if "crop" not in said:
        facts["crop"] = timm.get("crop_pct")
    if "temperature" not in said:
        facts["temperature"] = config.get("temperature")
    return {key: fact for key, fact in facts.items() if fact is not None}


def _names(config: Section) -> Fact | None:
    """Class names in the order of the outputs, from ``label_names`` or ``id2label``."""
    found = config.get("label_names") or config.get("id2label")
    if found is None or not found.value:
        return None
    names = found.value
    if isinstance(names, dict):
        try:
            names = {int(index): name for index, name in names.items()}
        except ValueError:
            raise wrong(found, "its keys are not the numbers of the outputs") from None
        if len(names) < len(found.value) or min(names) < 0:
            raise wrong(found, "its keys are not the numbers of the outputs")
        names = [names[index] for index in sorted(names)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong(found, "not a list of names, nor an object from numbers to names")
    if unnamed := [name for name in names if _NO_NAME.fullmatch(name)]:
        raise wrong(found, f"{unnamed[0]} names no class; say classes, the outputs' names in their order, in a sidecar")
    if twice := [name for name in names if names.count(name) > 1]:
        raise wrong(found, f"{twice[0]!r} is there twice")
    return Fact(names, found.place)


def _timm_side(timm: Section) -> Fact | None:
    size = timm.get("input_size")
    if size is None:
        return None
    sides = size.value[-2:] if isinstance(size.value, list) and len(size.value) in (2, 3) else [size.value]
    return _square(size, sides)


def _processor_side(processor: Section) -> Fact | None:
    size = (processor.get("crop_size") if processor.get("do_center_crop") else None) or processor.get("size")
    if size is None:
        return None
    if isinstance(size.value, dict):
        sides = [size.value[key] for key in ("height", "width", "shortest_edge") if size.value.get(key) is not None]
        return _square(size, sides)
    return _square(size, size.value if isinstance(size.value, list) else [size.value])


def _square(size: Fact, sides: list[Any]) -> Fact:
    if not sides or not all(_is_whole(side) for side in sides):
        raise wrong(size, "not a size in pixels, such as [3, 224, 224]")
    if len(set(sides)) > 1:
        raise wrong(size, "not square; crops are")
    return Fact(int(sides[0]), size.place)


def _colour(config: Section, timm: Section) -> Fact | None:
    """Grey for a net of one channel, None for one of three."""
    arguments, size = config.section("model_args"), timm.get("input_size")
    found = arguments.get("in_chans") if arguments else None
    if found is None and size is not None and isinstance(size.value, list) and len(size.value) == 3:
        found = Fact(size.value[0], size.place)
    if found is None or (_is_whole(found.value) and found.value == 3):
        return None
    if not _is_whole(found.value) or found.value != 1:
        raise wrong(found, "a teacher has three channels, or one for grey")
    return Fact("grey", found.place)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 and abs(value) < 1e9
