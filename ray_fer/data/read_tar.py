"""Reading members of tar shards by their ranges."""

from __future__ import annotations

import os
from typing import Any

from ray_fer.data.items import READING_ERRORS, Item, Read, bounded, failed
from ray_fer.data.read_s3 import get_object
from ray_fer.data.runs import Members
from ray_fer.data.sources import local_identity
from ray_fer.data.sources.tar import forget_index
from ray_fer.data.sources.uris import Range

_OVERWRITTEN = "its shard was overwritten since it was listed"


def read_members(run: Members, max_bytes: int) -> list[Read]:
    """Reads members of a local shard."""
    start, end = _stretch(run, max_bytes)
    try:
        file = os.open(run.place, os.O_RDONLY | os.O_NONBLOCK)
        try:
            data = os.pread(file, end - start, start)
            # Afterwards: where it is still what was listed, it was so while it was read.
            return _cut(run, max_bytes, local_identity(os.fstat(file)), start, data)
        finally:
            os.close(file)
    except OSError as error:
        return [failed(item, error) for item in run.items]


async def read_members_s3(fs: Any, run: Members, max_bytes: int) -> list[Read]:
    """Reads members of a shard on S3 by one ranged request."""
    start, end = _stretch(run, max_bytes)
    if start == end:  # nothing to ask for
        return _cut(run, max_bytes, _shard_identity(run), start, b"")
    try:
        answer = await get_object(fs, run.place, end - start, Range=f"bytes={start}-{end - 1}")
    except READING_ERRORS as error:
        return [failed(item, error) for item in run.items]
    return _cut(run, max_bytes, answer.identity or _shard_identity(run), start, answer.body or b"")


def _stretch(run: Members, max_bytes: int) -> tuple[int, int]:
    """The bytes from ``start`` to ``end`` that hold all members that are not too large."""
    wanted = [found for found in run.ranges if found and found.size <= max_bytes]
    return (wanted[0].offset, wanted[-1].offset + wanted[-1].size) if wanted else (0, 0)


def _shard_identity(run: Members) -> str:
    return next((found.shard_identity for found in run.ranges if found), "")


def _cut(run: Members, max_bytes: int, identity: str, start: int, data: bytes) -> list[Read]:
    """The results of a run from the bytes of its stretch, whose shard has the identity ``identity``."""
    return [
        _member(run.place, item, found, max_bytes, identity, start, data)
        for item, found in zip(run.items, run.ranges, strict=True)
    ]


def _member(
    shard: str, item: Item, found: Range | None, max_bytes: int, identity: str, start: int, data: bytes
) -> Read:
    if found is None:
        return Read(item, item.identity, None, "missing", "no such member, or its shard cannot be read")
    if identity != found.shard_identity:
        # For items without a range, which the shard's index of before has located; and for the next listing.
        forget_index(shard, found.shard_identity)
        return Read(item, item.identity, None, "missing", _OVERWRITTEN)
    if found.size > max_bytes:
        return Read(item, found.identity, None, "too_large", f"{found.size} bytes")
    content = data[found.offset - start : found.offset - start + found.size]
    if len(content) < found.size:
        return Read(item, found.identity, None, "unreadable", "its shard ends before it does")
    return bounded(item, found.identity, content, max_bytes)
