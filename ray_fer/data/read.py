"""Reading objects in order, with many requests in flight where the store is remote.

Each object ends as its bytes with the identity that those bytes have (an object overwritten since it was listed is
recorded as what was really read), or as a status. Nothing here raises for one bad object.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import aiohttp
import botocore.exceptions

from ray_fer import storage
from ray_fer.data.sources import local_identity
from ray_fer.errors import one_line

IN_FLIGHT = 64
IN_FLIGHT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """One object to read: its URI, and its identity and size in bytes as listed."""

    uri: str
    identity: str
    size: int


@dataclass(frozen=True, slots=True)
class Read:
    """What came of reading an `Item`: ``data``, or a status (``missing``, ``unreadable``, ``too_large``) with why."""

    item: Item
    identity: str
    data: bytes | None
    status: str = "ok"
    error: str = ""


def read_objects(items: Iterable[Item], max_bytes: int) -> Iterator[Read]:
    """Reads ``items``; the results come in their order.

    Args:
        items: local files and objects on S3 in any mixture.
        max_bytes: larger objects are not read and end as ``too_large``.
    """
    waiting: deque[tuple[Item, Future[Read]]] = deque()
    in_flight = 0
    for item in items:
        if not storage.is_remote(item.uri):
            while waiting:
                in_flight -= waiting[0][0].size
                yield waiting.popleft()[1].result()
            yield _read_local(item, max_bytes)
            continue
        waiting.append((item, _start_s3(item, max_bytes)))
        in_flight += item.size
        while len(waiting) >= IN_FLIGHT or (in_flight > IN_FLIGHT_BYTES and waiting):
            done, future = waiting.popleft()
            in_flight -= done.size
            yield future.result()
    for _, future in waiting:
        yield future.result()


def _read_local(item: Item, max_bytes: int) -> Read:
    try:
        # Without O_NONBLOCK, a pipe that has taken the file's place would be waited for for ever.
        with open(os.open(item.uri, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            identity = local_identity(status)
            if not stat.S_ISREG(status.st_mode):
                return Read(item, item.identity, None, "unreadable", "no longer a regular file")
            if status.st_size > max_bytes:
                return Read(item, identity, None, "too_large", f"{status.st_size} bytes")
            return Read(item, identity, file.read())
    except FileNotFoundError:
        return Read(item, item.identity, None, "missing", "vanished since it was listed, or its name is not UTF-8")
    except OSError as error:
        return Read(item, item.identity, None, "unreadable", f"{type(error).__name__}: {error.strerror}")


def _start_s3(item: Item, max_bytes: int) -> Future[Read]:
    fs, _ = storage.filesystem(item.uri)
    return asyncio.run_coroutine_threadsafe(_read_s3(fs, item, max_bytes), fs.loop)


async def _read_s3(fs: Any, item: Item, max_bytes: int) -> Read:
    bucket, _, key = item.uri.removeprefix("s3://").partition("/")
    try:
        # Not fs.cat_file: it does not tell the ETag of what it read.
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            identity = answer["ETag"].strip('"')
            if answer["ContentLength"] > max_bytes:
                return Read(item, identity, None, "too_large", f"{answer['ContentLength']} bytes")
            return Read(item, identity, await body.read())
    except FileNotFoundError:
        return Read(item, item.identity, None, "missing", "vanished since it was listed")
    except (OSError, TimeoutError, aiohttp.ClientError, botocore.exceptions.BotoCoreError) as error:
        return Read(item, item.identity, None, "unreadable", f"{type(error).__name__}: {one_line(error)}")
