"""JSON files that one job leaves for another, checked when they are read back.

Disks fill up, copies are cut short and people edit files, so what is read is not always what was written. A schema is a
``TypedDict`` of the keys that readers use; a file that does not fit it is refused in one line that names file and key.
Other keys, of an earlier or a later version, are left as they are.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar, cast

from botocore.exceptions import BotoCoreError
from pydantic import TypeAdapter, ValidationError

from ray_fer import storage
from ray_fer.errors import UserError, one_line

Schema = TypeVar("Schema")


class MissingDocumentError(UserError):
    """There is no such file."""


def read_document(uri: str, schema: type[Schema]) -> Schema:
    """The JSON document at ``uri``.

    Args:
        uri: local or ``s3://``.
        schema: what it has to be, checked without converting any value.

    Raises:
        MissingDocumentError: when there is none.
        UserError: when it cannot be read, is not JSON or does not fit ``schema``.
    """
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise MissingDocumentError(f"{uri}: is missing") from None
    except (OSError, BotoCoreError) as error:
        raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None
    return parse_document(data, uri, schema)


def parse_document(data: bytes, uri: str, schema: type[Schema]) -> Schema:
    """As `read_document`, of what was read from ``uri`` already."""
    return check_document(parse_json(data, uri), uri, schema)


def parse_json(data: bytes, uri: str) -> Any:
    """What the JSON that was read from ``uri`` holds, unchecked.

    Raises:
        UserError: naming ``uri``, when it is no JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri}: not JSON ({one_line(error) if data.strip() else 'the file is empty'})") from None


def check_document(document: Any, uri: str, schema: type[Schema]) -> Schema:
    """``document``, read from ``uri``, if it fits ``schema``.

    Raises:
        UserError: naming ``uri`` and the first key that does not fit.
    """
    try:
        _adapter(cast("Any", schema)).validate_python(document, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        said = "is missing" if problem["type"] == "missing" else f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
        raise UserError(f"{uri}: {key + ': ' if key else ''}{said}{_shown(problem)}") from None
    return cast("Schema", document)


def _shown(problem: Any) -> str:
    value = problem["input"]
    if problem["type"] == "missing" or isinstance(value, dict | list):
        return ""
    return f", not {str(value)[:60]!r}" if isinstance(value, str) else f", not {str(value)[:60]}"


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)
