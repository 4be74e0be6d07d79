"""Looks images up, and reads them in order, with many requests in flight where the store is remote.

Each result is an image's bytes with the identity that those bytes have, or a status. So an object that was overwritten
since it was listed is recorded as what was really read. Nothing here raises for one bad object.

What lies together is read together: each format decides which items form a `ReadBatch` and how it is read. Neighbours
in a tar shard take one ranged request, and rows of a table are read in their order.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
import botocore.exceptions
import pyarrow as pa

from ray_fer import storage
from ray_fer.data.formats import Place, load_format
from ray_fer.data.uris import place_of
from ray_fer.errors import one_line

IN_FLIGHT = 64
IN_FLIGHT_BYTES = 256 << 20
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


def read_objects(items: Iterable[Item], max_bytes: int) -> Iterator[Read]:
    """Reads ``items``; the results come in their order.

    Args:
        items: local and on S3, loose objects, members of shards and rows of tables in any mixture. Of a face, its whole
            picture is read.
        max_bytes: larger ones are not read, or not kept, and end as ``too_large``.
    """
    waiting: deque[tuple[int, Future[list[Read]]]] = deque()
    in_flight = 0
    # One thread, because rows are read in their order; it decodes the next ones while these are looked at.
    tables = ThreadPoolExecutor(1)
    try:
        for batch in group(items):
            future = _start(batch, max_bytes, tables)
            if future is None:
                while waiting:
                    in_flight -= waiting[0][0]
                    yield from waiting.popleft()[1].result()
                yield from batch.read(max_bytes)
                continue
            waiting.append((batch.size, future))
            in_flight += batch.size
            while len(waiting) >= IN_FLIGHT or (in_flight > IN_FLIGHT_BYTES and waiting):
                size, done = waiting.popleft()
                in_flight -= size
                yield from done.result()
        for _, future in waiting:
            yield from future.result()
    finally:
        tables.shutdown(wait=False, cancel_futures=True)


def group(items: Iterable[Item]) -> Iterator[ReadBatch]:
    """Cuts ``items`` into batches, which together are the items in their order."""
    batch: ReadBatch | None = None
    for item in items:
        place = place_of(item.uri)
        following: ReadBatch = load_format(place.format).batch(item, place, batch)
        if batch is not None and following is not batch:
            yield batch
        batch = following
    if batch is not None:
        yield batch


def _start(batch: ReadBatch, max_bytes: int, tables: ThreadPoolExecutor) -> Future[list[Read]] | None:
    """Begins to read what is remote; returns None for what is local."""
    if not storage.is_remote(batch.file):
        return None
    fs, _ = storage.filesystem(batch.file)
    request = batch.request(fs, max_bytes)
    if request is None:
        return tables.submit(batch.read, max_bytes)
    return asyncio.run_coroutine_threadsafe(request, fs.loop)


def stat_objects(uris: Sequence[str]) -> list[Stat]:
    """Identity and size of each image, of members and rows too; an empty identity for what cannot be found.

    A face has those of its picture.

    Raises:
        botocore.exceptions.BotoCoreError: when the store cannot be asked at all.
    """
    places = [place_of(uri) for uri in uris]
    found: dict[Place, Stat] = {}
    for name in {place.format for place in places}:
        theirs = list(dict.fromkeys(place for place in places if place.format == name))
        found |= zip(theirs, load_format(name).stat(theirs), strict=True)
    return [found[place] for place in places]
