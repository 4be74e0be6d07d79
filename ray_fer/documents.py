"""JSON files that one job writes for another, validated when they are read.

Disks fill up, copies are cut short and people edit files, so a file may differ from what was written. A schema is a
``TypedDict`` of the keys that readers use. A file that does not fit it is refused in one line that names file and key.
Other keys, of an earlier or a later version, are kept as they are.
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
    """The file does not exist."""


def read_document(uri: str, schema: type[Schema]) -> Schema:
    """Reads and validates the JSON document at ``uri``.

    Args:
        uri: The file, local or ``s3://``.
        schema: The schema that the document has to fit; no value is converted.

    Raises:
        MissingDocumentError: If the file does not exist.
        UserError: If the file cannot be read, is not JSON or does not fit ``schema``.
    """
    return parse_document(read_file(uri), uri, schema)


def read_file(uri: str) -> bytes:
    """The contents of the file at ``uri``.

    Raises:
        MissingDocumentError: If the file does not exist.
        UserError: If the file cannot be read.
    """
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise MissingDocumentError(f"{uri}: is missing") from None
    except (OSError, BotoCoreError) as error:
        raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None


def parse_document(data: bytes, uri: str, schema: type[Schema]) -> Schema:
    """Like `read_document`, for ``data`` that has been read from ``uri``."""
    return check_document(parse_json(data, uri), uri, schema)


def parse_json(data: bytes, uri: str) -> Any:
    """Parses JSON that has been read from ``uri``; its contents are not validated.

    Raises:
        UserError: If ``data`` is not JSON; the message names ``uri``.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri}: not JSON ({one_line(error) if data.strip() else 'the file is empty'})") from None


def check_document(document: Any, uri: str, schema: type[Schema]) -> Schema:
    """Validates ``document``, which has been read from ``uri``, and returns it.

    Raises:
        UserError: If it does not fit ``schema``; the message names ``uri`` and the first key that does not fit.
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
