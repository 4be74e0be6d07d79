"""Reading: order, limits, and what becomes of an object that changed between listing and reading."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path

import pytest

from ray_fer import storage
from ray_fer.data import read
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.data.runs import Run
from ray_fer.data.sources import local_identity

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


def test_a_mixture_of_stores_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(run: Run, *_: object) -> Future[list[Read]] | None:
        if not storage.is_remote(run.place):
            return None
        done: Future[list[Read]] = Future()
        done.set_result([Read(item, item.identity, b"far") for item in run.items])
        return done

    monkeypatch.setattr(read, "_start", start)
    (tmp_path / "a.jpg").write_bytes(b"near")
    far, near = [Item(f"s3://bucket/{n}.jpg", "v1", 3) for n in range(3)], item(tmp_path / "a.jpg")
    items = [far[0], near, far[1], far[2], near]
    results = list(read_objects(items, LIMIT))
    assert [result.item for result in results] == items
    assert [result.data for result in results] == [b"far", b"near", b"far", b"far", b"near"]
