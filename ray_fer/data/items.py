"""What is read, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
import botocore.exceptions
import pyarrow as pa

from ray_fer.errors import one_line

READING_ERRORS = (OSError, TimeoutError, pa.ArrowException, aiohttp.ClientError, botocore.exceptions.BotoCoreError)


@dataclass(frozen=True, slots=True)
class Item:
    """One image to read: its URI, and its identity and size in bytes as listed.

    Attributes:
        uri: of a loose object, a member of a tar shard or a row of a table.
        identity: empty where it does not matter or is not known.
        size: 0 where it is not known.
    """

    uri: str
    identity: str
    size: int


@dataclass(frozen=True, slots=True)
class Read:
    """What came of reading an `Item`: ``data``, or a status with why.

    The statuses are ``missing``, ``unreadable``, ``too_large`` and, of a row that holds null, ``undecodable``.
    """

    item: Item
    identity: str
    data: bytes | None
    status: str = "ok"
    error: str = ""


def failed(item: Item, error: Exception) -> Read:
    """The `Read` of an item whose reading raised one of `READING_ERRORS`."""
    if isinstance(error, FileNotFoundError):
        why = "vanished since it was listed" if item.identity else "not there"
        return Read(item, item.identity, None, "missing", f"{why}, or its name is not UTF-8")
    said = one_line(Exception(error.strerror) if isinstance(error, OSError) and error.strerror else error)
    return Read(item, item.identity, None, "unreadable", f"{type(error).__name__}: {said}")


def bounded(item: Item, identity: str, data: bytes, max_bytes: int) -> Read:
    """The `Read` of ``data``, or that they are too many."""
    if len(data) > max_bytes:
        return Read(item, identity, None, "too_large", f"{len(data)} bytes")
    return Read(item, identity, data)
