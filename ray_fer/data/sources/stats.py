"""Identity and size of single objects, many requests in flight."""

from __future__ import annotations

import asyncio
import os
import tarfile
from collections.abc import Sequence
from typing import Any

import aiohttp
import botocore.exceptions

from ray_fer import storage
from ray_fer.data.sources.etags import object_identity
from ray_fer.data.sources.lance import stat_lance_rows
from ray_fer.data.sources.objects import local_identity
from ray_fer.data.sources.tar import locate
from ray_fer.data.sources.uris import LanceRow, Member, Row, parse, split_face

IN_FLIGHT = 64
Stat = tuple[str, int]
_UNKNOWN: Stat = ("", 0)


def stat_objects(uris: Sequence[str]) -> list[Stat]:
    """Identity and size of each object, of members and rows too; an empty identity for what cannot be found.

    A face has those of its picture.

    Raises:
        botocore.exceptions.BotoCoreError: when the store cannot be asked at all.
    """
    uris = [split_face(uri)[0] for uri in uris]
    inside = {uri: parse(uri) for uri in uris}
    rows = {uri: place for uri, place in inside.items() if isinstance(place, LanceRow)}
    lance = dict(zip(rows, stat_lance_rows(list(rows.values())), strict=True))
    outer = {uri: _outer(uri, place) for uri, place in inside.items() if uri not in lance}
    files = sorted(set(outer.values()))
    remote = [uri for uri in files if storage.is_remote(uri)]
    found = {uri: _stat_local(uri) for uri in files if not storage.is_remote(uri)}
    found |= dict(zip(remote, _stat_s3(remote), strict=True))
    stats = ((uri, lance[uri] if uri in lance else found[outer[uri]]) for uri in uris)
    return [_stat_member(uri, *stat) if isinstance(inside[uri], Member) else stat for uri, stat in stats]


def _outer(uri: str, place: Member | Row | None) -> str:
    match place:
        case Member(shard, _):
            return shard
        case Row(file, _, _):
            return file
    return uri


def _stat_local(path: str) -> Stat:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # the reader will say why
        return _UNKNOWN
    return local_identity(status), status.st_size


def _stat_s3(uris: Sequence[str]) -> list[Stat]:
    if not uris:
        return []
    fs, _ = storage.filesystem(uris[0])

    async def stat_all() -> list[Stat]:
        free = asyncio.Semaphore(IN_FLIGHT)
        return await asyncio.gather(*(_head(fs, free, uri) for uri in uris))

    return asyncio.run_coroutine_threadsafe(stat_all(), fs.loop).result()


async def _head(fs: Any, free: asyncio.Semaphore, uri: str) -> Stat:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    async with free:
        try:
            answer = await fs._call_s3("head_object", Bucket=bucket, Key=key)
        except botocore.exceptions.ParamValidationError:  # no name that a bucket or key may have
            return _UNKNOWN
        except (OSError, TimeoutError, aiohttp.ClientError):  # not there, or the reader will say why
            return _UNKNOWN
    return object_identity(answer, answer["ContentLength"]), answer["ContentLength"]


def _stat_member(uri: str, shard_identity: str, _: int) -> Stat:
    if not shard_identity:
        return _UNKNOWN
    try:
        found = locate(uri, shard_identity)
    except (OSError, tarfile.TarError):
        return _UNKNOWN
    return found[1:] if found else _UNKNOWN
