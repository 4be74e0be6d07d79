"""Reading images in order, with many requests in flight where the store is remote.

Each ends as its bytes with the identity that those bytes have (an object overwritten since it was listed is recorded as
what was really read), or as a status. Nothing here raises for one bad object.

What lies together is read together: neighbours in a tar shard by one ranged request, rows of a table in their order.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ray_fer import storage
from ray_fer.data.items import READING_ERRORS, Item, Read, failed
from ray_fer.data.read_lance import read_lance_rows
from ray_fer.data.read_parquet import read_rows
from ray_fer.data.read_s3 import get_object
from ray_fer.data.read_tar import read_members, read_members_s3
from ray_fer.data.runs import Members, Rows, Run, group
from ray_fer.data.sources import local_identity

__all__ = ["Item", "Read", "read_objects"]

IN_FLIGHT = 64
IN_FLIGHT_BYTES = 256 << 20


def read_objects(items: Iterable[Item], max_bytes: int) -> Iterator[Read]:
    """Reads ``items``; the results come in their order.

    Args:
        items: local and on S3, loose objects, members of shards and rows of tables in any mixture; of a face, its whole
            picture is read.
        max_bytes: larger ones are not read, or not kept, and end as ``too_large``.
    """
    waiting: deque[tuple[int, Future[list[Read]]]] = deque()
    in_flight = 0
    # One thread, because rows are read in their order; it decodes the next ones while these are looked at.
    tables = ThreadPoolExecutor(1)
    try:
        for run in group(items):
            future = _start(run, max_bytes, tables)
            if future is None:
                while waiting:
                    in_flight -= waiting[0][0]
                    yield from waiting.popleft()[1].result()
                yield from _read_local(run, max_bytes)
                continue
            waiting.append((run.size, future))
            in_flight += run.size
            while len(waiting) >= IN_FLIGHT or (in_flight > IN_FLIGHT_BYTES and waiting):
                size, done = waiting.popleft()
                in_flight -= size
                yield from done.result()
        for _, future in waiting:
            yield from future.result()
    finally:
        tables.shutdown(wait=False, cancel_futures=True)


def _start(run: Run, max_bytes: int, tables: ThreadPoolExecutor) -> Future[list[Read]] | None:
    """Begins to read what is remote; None for what is local."""
    if not storage.is_remote(run.place):
        return None
    if isinstance(run, Rows):
        return tables.submit(_read_table, run, max_bytes)
    fs, _ = storage.filesystem(run.place)
    reading = read_members_s3(fs, run, max_bytes) if isinstance(run, Members) else _read_s3(fs, run, max_bytes)
    return asyncio.run_coroutine_threadsafe(reading, fs.loop)


def _read_local(run: Run, max_bytes: int) -> list[Read]:
    match run:
        case Members():
            return read_members(run, max_bytes)
        case Rows():
            return _read_table(run, max_bytes)
    return [_read_file(run.place, run.items[0], max_bytes)]


def _read_table(run: Rows, max_bytes: int) -> list[Read]:
    return read_lance_rows(run, max_bytes) if run.lance else read_rows(run, max_bytes)


def _read_file(path: str, item: Item, max_bytes: int) -> Read:
    try:
        # Without O_NONBLOCK, a pipe that has taken the file's place would be waited for for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            identity = local_identity(status)
            if not stat.S_ISREG(status.st_mode):
                return Read(item, item.identity, None, "unreadable", "no longer a regular file")
            if status.st_size > max_bytes:
                return Read(item, identity, None, "too_large", f"{status.st_size} bytes")
            return Read(item, identity, file.read())
    except OSError as error:
        return failed(item, error)


async def _read_s3(fs: Any, run: Run, max_bytes: int) -> list[Read]:
    item = run.items[0]
    try:
        answer = await get_object(fs, run.place, max_bytes)
    except READING_ERRORS as error:
        return [failed(item, error)]
    identity = answer.identity or item.identity
    if answer.body is None:
        return [Read(item, identity, None, "too_large", f"{answer.length} bytes")]
    return [Read(item, identity, answer.body)]
