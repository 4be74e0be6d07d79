"""Reading: order, limits, and what becomes of an object that changed between listing and reading."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ray_fer import storage
from ray_fer.data import read
from ray_fer.data.read import Item, Read, ReadBatch, read_objects, stat_objects
from ray_fer.data.sources import local_identity, s3_requests
from ray_fer.data.sources.s3_requests import get_object
from ray_fer.data.uris import Face
from tests.images import picture
from tests.shards import hugging_face, parquet_of, tar_of

LIMIT = 1 << 20


def item(path: Path) -> Item:
    status = path.stat()
    return Item(str(path), local_identity(status), status.st_size)


def only(read: Item, max_bytes: int = LIMIT) -> Read:
    (result,) = read_objects([read], max_bytes)
    return result


def test_bytes_and_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    result = only(item(path))
    assert (result.data, result.identity, result.status) == (b"abc", item(path).identity, "ok")


def test_the_limit_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    assert only(item(path), 3).status == "ok"
    result = only(item(path), 2)
    assert (result.data, result.status, result.error) == (None, "too_large", "3 bytes")


def test_changed_since_it_was_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    listed = item(path)
    path.write_bytes(b"another")
    assert only(listed).identity == item(path).identity != listed.identity
    path.unlink()
    assert (only(listed).status, only(listed).identity) == ("missing", listed.identity)
    path.mkdir()
    assert only(listed).status == "unreadable"


@pytest.mark.timeout(10)
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    listed = item(path)
    path.unlink()
    os.mkfifo(path)
    assert (only(listed).status, only(listed).error) == ("unreadable", "no longer a regular file")


class Breaking:
    """The part of a file system that is asked for objects: answers break off, the first ``breaks`` times."""

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks

    async def _call_s3(self, *_: object, **__: object) -> dict[str, Any]:
        return {"Body": self, "ContentLength": 5, "ETag": '"v1"'}

    async def __aenter__(self) -> Breaking:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self) -> bytes:
        self.breaks -= 1
        if self.breaks >= 0:
            raise aiohttp.ClientPayloadError("broke off")
        return b"whole"


def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "_PAUSE_SECONDS", 0)
    assert asyncio.run(get_object(Breaking(3), "s3://b/a.jpg", 5)) == ("v1", 5, b"whole")
    assert asyncio.run(get_object(Breaking(3), "s3://b/a.jpg", 4)) == ("v1", 5, None)
    with pytest.raises(aiohttp.ClientPayloadError):
        asyncio.run(get_object(Breaking(4), "s3://b/a.jpg", 5))


def test_a_mixture_of_stores_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(batch: ReadBatch, *_: object) -> Future[list[Read]] | None:
        if not storage.is_remote(batch.file):
            return None
        done: Future[list[Read]] = Future()
        done.set_result([Read(item, item.identity, b"far") for item in batch.items])
        return done

    monkeypatch.setattr(read, "_start", start)
    (tmp_path / "a.jpg").write_bytes(b"near")
    far, near = [Item(f"s3://bucket/{n}.jpg", "v1", 3) for n in range(3)], item(tmp_path / "a.jpg")
    items = [far[0], near, far[1], far[2], near]
    results = list(read_objects(items, LIMIT))
    assert [result.item for result in results] == items
    assert [result.data for result in results] == [b"far", b"near", b"far", b"far", b"near"]


def test_of_a_face_its_picture_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "b.tar").write_bytes(tar_of({"x/c.jpg": picture(2), "d.jpg": picture(3)}))
    (tmp_path / "e.parquet").write_bytes(parquet_of({"image": hugging_face([picture(4), picture(5)])}))
    pictures = [f"{tmp_path}/a.jpg", f"{tmp_path}/b.tar!/x/c.jpg", f"{tmp_path}/e.parquet#column=image&row=1"]
    face = Face(20.0, 20.5, 12.3, -4.0)
    uris = [uri for place in pictures for uri in (place, face.uri_in(place), face.uri_in(place))]
    reads = list(read_objects([Item(uri, "", 0) for uri in uris], 1 << 20))
    assert [read.item.uri for read in reads] == uris
    assert [read.data for read in reads] == [picture(seed) for seed in (1, 2, 5) for _ in range(3)]
    assert stat_objects(uris)[::3] == stat_objects(uris)[1::3]
    assert all(identity for identity, _ in stat_objects(uris))
