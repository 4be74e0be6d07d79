"""One GET of an object on S3, or of a range of it."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import aiohttp

from ray_fer.data.sources.etags import plain_etag

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
    """Gets an object, on the event loop of ``fs``.

    Args:
        fs: an s3fs file system. It repeats requests that fail itself, but not those whose answer breaks off.
        uri: ``s3://bucket/key``.
        max_bytes: a longer body is not read.
        arguments: further ones of S3's GetObject, like ``Range``.

    Raises:
        OSError, TimeoutError, aiohttp.ClientError, botocore.exceptions.BotoCoreError: when it cannot be had.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    for attempt in range(_TRIES):
        try:
            # Not fs.cat_file: it does not tell the ETag of what it read.
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
