"""Conversion of the text of arguments and YAML files to values, by the types of a schema's fields.

YAML itself would read a folder called ``20241128_1530`` as a number, ``2024-11-28`` as a date and ``no`` as false.
Therefore scalars without quotes are parsed as `Plain` text, and `typed` converts them by the type of their field: text
stays text to the letter, and numbers are decimal. On a command line, ``null``, ``[a,b]`` and ``{key: value}`` are None,
a list and a mapping only if the field takes such a value, and text otherwise.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from botocore.exceptions import BotoCoreError
from pydantic import BaseModel
from yaml.constructor import ConstructorError

from ray_fer import storage
from ray_fer.argument_text import Plain, items, mapping_items, unquoted
from ray_fer.errors import UserError, one_line

_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NOT_FINITE = re.compile(r"[+-]?\.(inf|nan)", re.IGNORECASE)  # as YAML writes them
_LISTS = (list, tuple, set, frozenset, Sequence)
_MAPPINGS = (dict, Mapping)
_MERGE = "tag:yaml.org,2002:merge"
_NULLS = ("", "~", "null", "Null", "NULL")


class KeysOf:
    """Annotates a ``dict[str, Any]`` whose keys are those of another schema.

    Args:
        schema: The schema that has the keys.
    """

    def __init__(self, schema: type[BaseModel]) -> None:
        self.schema = schema


# --- YAML ---


class _Loader(yaml.SafeLoader):
    """A YAML loader that keeps the text of scalars, and refuses a key that is given twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [(tag, pattern) for tag, pattern in resolvers if tag == _MERGE]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str | None:
    if node.style is not None:
        return str(node.value)
    return None if node.value in _NULLS else Plain(node.value)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    given = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE]
    if twice := next((key for key in given if given.count(key) > 1), None):
        raise ConstructorError(None, None, f"the key {twice} is there twice", node.start_mark)
    loader.flatten_mapping(node)
    found = loader.construct_mapping(node, deep=True)
    return {str(key) if isinstance(key, str) else key: value for key, value in found.items()}


def _sequence(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:str", _text)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _sequence)


def parse_yaml(text: str | bytes) -> Any:
    """A YAML document of lists, mappings, text and `Plain` text; None for ``null``, ``~`` and empty values.

    Raises:
        yaml.YAMLError: If the text is not YAML, or has a key twice.
    """
    return yaml.load(text, _Loader)


def read_yaml(uri: str) -> Any:
    """`parse_yaml` the file at ``uri``.

    Raises:
        UserError: If the file cannot be read or parsed; the message does not name the file.
    """
    try:
        return parse_yaml(storage.read_bytes(uri))
    except FileNotFoundError:
        raise UserError("no such file") from None
    except (OSError, UserError, ValueError, RecursionError, yaml.YAMLError, BotoCoreError) as error:
        raise UserError(one_line(error)) from None


def merged(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``: mappings are merged key by key, and anything else is replaced."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


# --- types ---


def typed_fields(schema: type[BaseModel], values: Any) -> Any:
    """``values`` converted by the types of the fields of ``schema``; unknown keys, and non-mappings, are kept as is."""
    if not isinstance(values, Mapping):
        return values
    annotations = {
        name: Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for name, field in schema.model_fields.items()
    }
    return {key: typed(annotations[key], value) if key in annotations else value for key, value in values.items()}


def typed(annotation: Any, value: Any) -> Any:
    """``value`` with its `Plain` text converted to the type ``annotation``.

    Text that cannot be converted stays text, so that the schema refuses it. Under ``Any`` it stays `Plain`.
    """
    forms = list(_forms(annotation))
    if isinstance(value, Plain):
        return _typed_text(forms, value)
    if isinstance(value, Mapping):
        return _typed_mapping(forms, value)
    if isinstance(value, list):
        of_list = next((form for form in forms if _kind(form) in _LISTS), None)
        return [typed(_element(of_list, index), each) for index, each in enumerate(value)] if of_list else value
    return value


def _typed_text(forms: list[Any], text: Plain) -> Any:
    if text == "null" and type(None) in forms:
        return None
    of_list = next((form for form in forms if _kind(form) in _LISTS), None)
    if of_list is not None:
        if (parts := items(text, "[")) is not None:
            return [typed(_element(of_list, index), unquoted(part)) for index, part in enumerate(parts)]
        return typed(_element(of_list, 0), text)  # the schema may take a single value as a list of one
    if any(isinstance(form, KeysOf) or _kind(form) in _MAPPINGS or _is_model(form) for form in forms):
        if (pairs := mapping_items(text)) is not None:
            return _typed_mapping(forms, pairs)
        return str(text)
    if Any in forms:
        return text
    if str in forms:
        return str(text)
    return _scalar(forms, text)


def _scalar(forms: list[Any], text: Plain) -> Any:
    options = [option for form in forms if get_origin(form) is Literal for option in get_args(form)]
    numeric = any(form in (int, float) for form in forms) or any(isinstance(option, int) for option in options)
    if not numeric or text in options:
        return str(text)
    try:
        return (
            int(text)
            if _INTEGER.fullmatch(text)
            else float(_NOT_FINITE.sub(lambda found: found[0].replace(".", ""), text))
        )
    except ValueError:
        return None if text == "null" else str(text)


def _typed_mapping(forms: list[Any], values: Mapping[Any, Any]) -> Any:
    for form in forms:
        if isinstance(form, KeysOf):
            return typed_fields(form.schema, values)
    for form in forms:
        if _is_model(form):
            return typed_fields(form, values)
        if _kind(form) in _MAPPINGS:
            of_value = get_args(form)[1] if get_args(form) else Any
            return {key: typed(of_value, value) for key, value in values.items()}
        if _kind(form) in _LISTS:
            return typed(_element(form, 0), values)
    return values


def _forms(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type; of the metadata in `Annotated` only `KeysOf` is kept."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from (each for each in annotation.__metadata__ if isinstance(each, KeysOf))
        yield from _forms(annotation.__origin__)
    elif origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _forms(each)
    else:
        yield annotation


def _element(of_list: Any, index: int) -> Any:
    arguments = [each for each in get_args(of_list) if each is not Ellipsis]
    return arguments[min(index, len(arguments) - 1)] if arguments else Any


def _kind(form: Any) -> Any:
    return get_origin(form) or form


def _is_model(form: Any) -> bool:
    return isinstance(form, type) and issubclass(form, BaseModel)
