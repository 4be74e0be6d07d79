"""Reads images in order, with many requests in flight where the store is remote.

Each result is an image's bytes with the identity that those bytes have, or a status. So an object that was overwritten
since it was listed is recorded as what was really read. Nothing here raises for one bad object.

What lies together is read together: each format decides which items form a `ReadBatch` and how it is read. Neighbours
in a tar shard take one ranged request, and rows of a table are read in their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ray_fer import storage
from ray_fer.data.formats import load_format
from ray_fer.data.items import Item, Read, ReadBatch
from ray_fer.data.sources.uris import Place, parse, split_face

__all__ = ["Item", "Read", "read_objects"]

IN_FLIGHT = 64
IN_FLIGHT_BYTES = 256 << 20


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
        picture, _ = split_face(item.uri)
        place = parse(picture) or Place(picture)
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
