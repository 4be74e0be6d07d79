"""What is read, what is read at once, and the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp
import botocore.exceptions
import pyarrow as pa

from ray_fer.errors import one_line

READING_ERRORS = (OSError, TimeoutError, pa.ArrowException, aiohttp.ClientError, botocore.exceptions.BotoCoreError)
Stat = tuple[str, int]
"""Identity and size in bytes of an image."""
UNKNOWN: Stat = ("", 0)
"""The `Stat` of what cannot be found."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image to read.

    Attributes:
        uri: of a loose object, a member of a tar shard or a row of a table.
        identity: as listed; empty where it does not matter or is not known.
        size: as listed, in bytes; 0 where it is not known.
    """

    uri: str
    identity: str
    size: int


@dataclass(frozen=True, slots=True)
class Read:
    """The result of reading an `Item`: the bytes, or a status and the reason.

    The statuses are ``missing``, ``unreadable``, ``too_large`` and, of a row that holds null, ``undecodable``.
    """

    item: Item
    identity: str
    data: bytes | None
    status: str = "ok"
    error: str = ""


class ReadBatch(ABC):
    """Items that are read at once, such as neighbours in one file. Subclasses say how.

    Args:
        file: URI of the file that the items are, or are in.
        item: the first of them.

    Attributes:
        items: in the order in which they were given.
    """

    def __init__(self, file: str, item: Item) -> None:
        self.file, self.items = file, [item]

    @property
    def size(self) -> int:
        """About how many bytes the batch holds in memory once it is read."""
        return sum(item.size for item in self.items)

    @abstractmethod
    def read(self, max_bytes: int) -> list[Read]:
        """Reads the items, and waits for them. Nothing is raised for an item that cannot be read.

        Args:
            max_bytes: a larger item ends as ``too_large``.

        Returns:
            a `Read` for each item, in their order.
        """

    def request(self, fs: Any, max_bytes: int) -> Coroutine[Any, Any, list[Read]] | None:
        """`read` of a file on S3 as a coroutine for the event loop of ``fs``; None where a thread has to call `read`.

        Args:
            fs: an s3fs file system.
            max_bytes: as of `read`.
        """
        return None


def failed(item: Item, error: Exception) -> Read:
    """The `Read` of an item whose reading raised one of `READING_ERRORS`."""
    if isinstance(error, FileNotFoundError):
        why = "vanished since it was listed" if item.identity else "not there"
        return Read(item, item.identity, None, "missing", f"{why}, or its name is not UTF-8")
    said = one_line(Exception(error.strerror) if isinstance(error, OSError) and error.strerror else error)
    return Read(item, item.identity, None, "unreadable", f"{type(error).__name__}: {said}")


def bounded(item: Item, identity: str, data: bytes, max_bytes: int) -> Read:
    """The `Read` of ``data``; ``too_large`` where they are more than ``max_bytes``."""
    if len(data) > max_bytes:
        return Read(item, identity, None, "too_large", f"{len(data)} bytes")
    return Read(item, identity, data)
