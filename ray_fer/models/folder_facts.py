"""The facts in a model folder's ``config.json`` and ``preprocessor_config.json``, by the keys of a sidecar.

These files are written by hand and by all versions of several libraries, so every value is checked. A value that
neither timm nor transformers would write is refused in one line that names file and key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError

from ray_fer import storage
from ray_fer.documents import parse_json
from ray_fer.errors import UserError, one_line

PROCESSOR = "preprocessor_config.json"
# The names that transformers gives to classes without names.
_NO_NAME = re.compile(r"label_\d+", re.IGNORECASE)
_SHOWN = 80
_NO_MODEL_ARGUMENTS = (
    *("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("scriptable", "exportable", "no_jit", "features_only"),
)


class Fact(NamedTuple):
    """A value, and its place as ``FILE: KEY``."""

    value: Any
    place: str


class Section(NamedTuple):
    """A JSON object in a file: its place, to which a key can be appended, and its contents."""

    place: str
    values: dict[str, Any]

    def get(self, key: str) -> Fact | None:
        """The value of ``key``; None if it is missing or null."""
        value = self.values.get(key)
        return None if value is None else Fact(value, f"{self.place}{key}")

    def section(self, key: str) -> Section | None:
        """The object at ``key``; None if it is missing or empty.

        Raises:
            UserError: If the value is not an object.
        """
        found = self.get(key)
        if found is None or found.value == {}:
            return None
        if not isinstance(found.value, dict):
            raise wrong(found, "not an object")
        return Section(f"{found.place}.", found.value)


NO_PROCESSOR = Section("", {})


def wrong(fact: Fact, what: str) -> UserError:
    """The error for a fact: its place, its value and ``what`` is wrong with it."""
    shown = repr(fact.value)
    return UserError(f"{fact.place}: {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}: {what}")


def read_json(path: Path, uri: str) -> Section:
    """The JSON object in the local file ``path``, which is a copy of ``uri``.

    Raises:
        UserError: If the file cannot be read or is not a JSON object; the message names ``uri``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None
    document = parse_json(data, uri)
    if not isinstance(document, dict):
        raise UserError(f"{uri}: not a JSON object but a {type(document).__name__}")
    return Section(f"{uri}: ", document)


def architecture_of(folder: str, given: str | None = None) -> str:
    """Timm's name of the model in a folder given as ``pretrained``, local or on S3.

    Args:
        folder: The folder.
        given: What the message names in its place.

    Raises:
        UserError: If there is no ``config.json`` that names one.
    """
    what = f"pretrained={given or folder}: "
    try:
        config = storage.read_json(storage.join(folder, "config.json"))
        if "architecture" not in config and (theirs := config.get("architectures")):
            raise UserError(f"{what}a {theirs[0]} of transformers, which timm cannot read; give the same net of timm")
        return str(config["architecture"])
    except (OSError, BotoCoreError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{what}no config.json that names an architecture") from None


def folder_facts(config: Section, processor: Section, said: Collection[str] = ()) -> dict[str, Fact]:
    """The facts in timm's configuration, or else in the image processor's.

    Args:
        config: The contents of ``config.json``.
        processor: The contents of ``preprocessor_config.json``; empty if there is none.
        said: The keys that a sidecar gives; the folder's own values of these are ignored.

    Returns:
        Facts by key of `ray_fer.models.sidecar.TimmSidecar`, as far as the folder has them.

    Raises:
        UserError: If a value cannot be understood; the message names file and key.
    """
    # Older folders of timm have the keys at the top level.
    timm = config.section("pretrained_cfg") or processor.section("pretrained_cfg") or config
    # Only the facts that are needed are read, because reading one checks it.
    readers: dict[str, Callable[[], Fact | None]] = {
        "architecture": lambda: config.get("architecture"),
        "classes": lambda: _names(config),
        "image_size": lambda: _timm_side(timm) or _processor_side(processor),
        "colour": lambda: _colour(config, timm),
        "mean": lambda: timm.get("mean") or processor.get("image_mean"),
        "std": lambda: timm.get("std") or processor.get("image_std"),
        "crop": lambda: timm.get("crop_pct"),
        "temperature": lambda: config.get("temperature"),
    }
    facts = {key: read() for key, read in readers.items() if key not in said}
    return {key: fact for key, fact in facts.items() if fact is not None}


def model_arguments(config: Section) -> dict[str, Any]:
    """The ``model_args`` in ``config.json``, which are further arguments of ``timm.create_model``.

    Raises:
        UserError: If one does not describe the model but, for instance, which weights are loaded.
    """
    found = config.section("model_args")
    if found is None:
        return {}
    for key in _NO_MODEL_ARGUMENTS:
        if (fact := found.get(key)) is not None:
            raise wrong(fact, "does not make a model")
    return dict(found.values)


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
    if not sides or not all(_is_integer(side) for side in sides):
        raise wrong(size, "not a size in pixels, such as [3, 224, 224]")
    if len(set(sides)) > 1:
        raise wrong(size, "not square; crops are")
    return Fact(int(sides[0]), size.place)


def _colour(config: Section, timm: Section) -> Fact | None:
    """Grey for a net of one channel; None for a net of three."""
    arguments, size = config.section("model_args"), timm.get("input_size")
    found = arguments.get("in_chans") if arguments else None
    if found is None and size is not None and isinstance(size.value, list) and len(size.value) == 3:
        found = Fact(size.value[0], size.place)
    if found is None or (_is_integer(found.value) and found.value == 3):
        return None
    if not _is_integer(found.value) or found.value != 1:
        raise wrong(found, "a teacher has three channels, or one for grey")
    return Fact("grey", found.place)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 and abs(value) < 1e9
