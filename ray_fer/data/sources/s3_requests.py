"""Requests for single objects on S3, with the identity of what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp
import botocore.exceptions

from ray_fer import storage
from ray_fer.data.read import UNKNOWN, Stat
from ray_fer.data.sources.etags import object_identity, plain_etag

HEADS_IN_FLIGHT = 64
# A name that no bucket or key may have; what is not there, or the reader will say why.
_HEAD_ERRORS = (botocore.exceptions.ParamValidationError, OSError, TimeoutError, aiohttp.ClientError)
_TRIES = 4
_PAUSE_SECONDS = 0.2


class Answer(NamedTuple):
    """What S3 answered: the object's identity, the length in bytes, and the body unless it is too long.

    The identity is empty where no ETag came with the answer.
    """

    identity: str
    length: int
    body: bytes | None


async def get_object(fs: Any, uri: str, max_bytes: int, **arguments: Any) -> Answer:
    """Gets an object or a range of it, on the event loop of ``fs``.

    Args:
        fs: an s3fs file system. It repeats requests that fail itself, but not those whose answer breaks off.
        uri: ``s3://bucket/key``.
        max_bytes: a longer body is not read.
        arguments: further ones of S3's GetObject, like ``Range``.

    Raises:
        OSError, TimeoutError, aiohttp.ClientError, botocore.exceptions.BotoCoreError: when the object cannot be read.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    for attempt in range(_TRIES):
        try:
            # fs.cat_file would not return the ETag of what it read.
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **arguments)
            async with answer["Body"] as body:
                length = answer["ContentLength"]
                data = await body.read() if length <= max_bytes else None
                return Answer(plain_etag(answer.get("ETag") or ""), length, data)
        except (TimeoutError, aiohttp.ClientError):
            if attempt == _TRIES - 1:
                raise
        await asyncio.sleep(_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("the last try returns or raises")


def head_objects(uris: Sequence[str]) -> list[Stat]:
    """Identity and size of each object, many requests in flight; an empty identity for what cannot be found.

    Raises:
        botocore.exceptions.BotoCoreError: when the store cannot be asked at all.
    """
    if not uris:
        return []
    fs, _ = storage.filesystem(uris[0])

    async def head_all() -> list[Stat]:
        free = asyncio.Semaphore(HEADS_IN_FLIGHT)
        return await asyncio.gather(*(_head(fs, free, uri) for uri in uris))

    return asyncio.run_coroutine_threadsafe(head_all(), fs.loop).result()


async def _head(fs: Any, free: asyncio.Semaphore, uri: str) -> Stat:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    async with free:
        try:
            answer = await fs._call_s3("head_object", Bucket=bucket, Key=key)
        except _HEAD_ERRORS:
            return UNKNOWN
    return object_identity(answer, answer["ContentLength"]), answer["ContentLength"]
