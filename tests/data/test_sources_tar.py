"""Tar shards: their members as images, listed and read in place."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from ray_fer import storage
from ray_fer.data.formats import parse
from ray_fer.data.read import Item, Read, group, read_objects
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import check_sources, list_sources, local_identity, pages, tar_index
from ray_fer.data.sources.parquet import Row
from ray_fer.data.sources.tar import Members
from ray_fer.data.sources.tar_index import Member, locate
from ray_fer.data.uris import Range, parse_range
from ray_fer.errors import UserError
from tests.shards import tar_of

LIMIT = 1 << 20
NAMES = ("a.jpg", "./b.jpg", "d/ä €.png", "new\nline.jpg", "x.tar!/y.jpg", "q#column=a&row=1.jpg", "n" * 300 + ".jpg")


def items_of(*sources: Path | SourceConfig, counts: Counter[str] | None = None) -> list[Item]:
    entries = [source if isinstance(source, SourceConfig) else str(source) for source in sources]
    pages = list(list_sources(entries, Counter() if counts is None else counts))
    rows = pa.concat_tables(pages).to_pylist()
    return [Item(row["uri"], row["identity"], row["size"]) for row in rows]


def read_all(items: list[Item], max_bytes: int = LIMIT) -> list[Read]:
    reads = list(read_objects(items, max_bytes))
    assert [read.item for read in reads] == items
    return reads


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_image_member_is_listed_and_read(tmp_path: Path, kind: int) -> None:
    shard = tmp_path / "shard-0001.tar"
    contents = {name: f"bytes of {i}".encode() * (i + 1) for i, name in enumerate(NAMES)}
    shard.write_bytes(tar_of(contents | {"a.json": b"{}", "empty.jpg": b""}, kind))
    counts: Counter[str] = Counter()
    items = items_of(shard, counts=counts)
    assert [item.uri for item in items] == [f"{shard}!/{name}" for name in [*contents, "empty.jpg"]]
    assert counts == {"listed": len(NAMES) + 1, "skipped": 1}
    assert [read.data for read in read_all(items)] == [*contents.values(), b""]
    assert all(read.identity == read.item.identity for read in read_all(items))


def test_the_uri_alone_is_enough_to_read(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of([("a.jpg", b"old"), ("b.jpg", b"bee"), ("a.jpg", b"new")]))
    listed = items_of(shard)
    reads = read_all([Item(f"{shard}!/{name}", "", 0) for name in ("b.jpg", "a.jpg", "none.jpg")])
    assert [read.data for read in reads] == [b"bee", b"new", None]
    assert [read.identity for read in reads[:2]] == [item.identity for item in listed]
    assert reads[2].status == "missing"
    assert locate(Member(str(shard), "none.jpg")) is None


def test_shards_lie_among_loose_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "s.TAR").write_bytes(tar_of({"in.jpg": b"x"}))
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "old.tar.gz").write_bytes(gzip.compress(tar_of({"in.jpg": b"x"})))
    counts: Counter[str] = Counter()
    assert sorted(Path(item.uri).name for item in items_of(tmp_path, counts=counts)) == ["a.jpg", "in.jpg"]
    assert counts == {"listed": 2, "skipped": 1}
    assert "1 compressed tar files skipped" in caplog.text
    for form, names in (("images", ["a.jpg"]), ("webdataset", ["in.jpg"])):
        found = items_of(SourceConfig(uri=str(tmp_path), format=form))
        assert [Path(item.uri).name for item in found] == names


def test_an_overwritten_shard_is_new_work_and_not_read_at_old_places(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of({"a.jpg": b"one", "b.jpg": b"two"}))
    before = items_of(shard)
    shard.write_bytes(tar_of({"b.jpg": b"TWO", "a.jpg": b"ONE"}))
    os.utime(shard, ns=(1, 1))
    after = items_of(shard)
    assert not {item.identity for item in before} & {item.identity for item in after}
    reads = read_all(before)
    assert {(read.status, read.error) for read in reads} == {
        ("missing", "its shard was overwritten since it was listed")
    }
    assert [read.identity for read in reads] == [item.identity for item in before]
    assert [read.data for read in read_all([Item(item.uri, "", 0) for item in before])] == [b"ONE", b"TWO"]
    shard.unlink()
    assert {read.status for read in read_all(before) + read_all([Item(before[0].uri, "", 0)])} == {"missing"}


def test_a_damaged_shard_is_listed_up_to_the_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = tar_of({f"{i}.jpg": bytes([65 + i]) * 2000 for i in range(4)})
    (tmp_path / "cut.tar").write_bytes(whole[: 2 * 2560 + 700])
    (tmp_path / "noise.tar").write_bytes(whole[:2560] + os.urandom(5000))
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    bomb = tarfile.TarInfo("x")
    bomb.type, bomb.size = tarfile.XHDTYPE, 5 << 30
    (tmp_path / "bomb.tar").write_bytes(bomb.tobuf() + bytes(2048))
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 512
    (tmp_path / "deep.tar").write_bytes((long_name.tobuf(tarfile.GNU_FORMAT) + b"n" * 512) * 2000)
    counts: Counter[str] = Counter()
    reads = read_all(items_of(tmp_path, counts=counts))
    assert sorted((Path(read.item.uri).parent.name, Path(read.item.uri).name, read.status) for read in reads) == [
        ("cut.tar!", "0.jpg", "ok"),
        ("cut.tar!", "1.jpg", "ok"),
        ("cut.tar!", "2.jpg", "unreadable"),
        ("noise.tar!", "0.jpg", "ok"),
    ]
    assert counts["skipped"] == counts["unlisted"] == 5
    assert all(f"{name}.tar: cannot be listed" in caplog.text for name in ("cut", "noise", "none", "bomb", "deep"))
    with pytest.raises(UserError, match="no image there"):
        check_sources([str(tmp_path / "none.tar")])


def test_links_folders_and_devices_in_a_shard_are_no_images(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as shard:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("d.jpg", tarfile.DIRTYPE), ("f.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            shard.addfile(info)
        shard.addfile(tarfile.TarInfo("a.jpg"))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue())
    assert [Path(item.uri).name for item in items_of(tmp_path)] == ["a.jpg"]


def test_the_limit_spares_the_neighbours(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"a" * 10, "b.jpg": b"b" * 2000, "c.jpg": b"c" * 10}))
    reads = read_all(items_of(tmp_path), max_bytes=1999)
    assert [(read.status, read.error) for read in reads] == [("ok", ""), ("too_large", "2000 bytes"), ("ok", "")]


def test_neighbours_are_read_together() -> None:
    def item(offset: int, size: int, identity: str = "v1") -> Item:
        place = Range(identity, offset, size)
        return Item(f"s3://b/s.tar!/{offset}.jpg", place.identity, size)

    near = [item(512 + i * 20_000, 19_000) for i in range(300)]
    runs = list(group(near))
    assert [one for run in runs for one in run.items] == near
    assert len(runs) == 2
    assert all(isinstance(run, Members) for run in runs)
    assert len(list(group([item(0, 10), item(10 + (65 << 10), 10)]))) == 2, "too far away"
    assert len(list(group([item(0, 10), item(0, 10)]))) == 2, "not behind one another"
    assert len(list(group([item(0, 10), item(512, 10, "v2")]))) == 2, "of another content"
    assert len(list(group([item(0, 5 << 20), item(5 << 20, 10)]))) == 2


def test_uris_say_what_they_name() -> None:
    for place in (
        Member("s3://b/s.tar", "a/b.jpg"),
        Member("s3://b/s.tar", "t.tar!/x.jpg"),
        Row("/d/t.parquet", "im/a&g=e#ä", 12),
    ):
        assert parse(place.uri) == place
    for uri in ("s3://b/a.jpg", "/a!/b.jpg", "/a.tar/b.jpg", "/t.parquet#row=1", "/t.parquet#column=a&row=x"):
        assert parse(uri) is None
    assert parse_range(Range("12-34", 5, 6).identity) == Range("12-34", 5, 6)
    assert parse_range("d41d8cd98f00b204") is None


def test_loose_objects_are_never_taken_for_members(tmp_path: Path) -> None:
    for name in ("s.tar!/a.jpg", "b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    counts: Counter[str] = Counter()
    (item,) = items_of(tmp_path, counts=counts)
    assert (item.uri, item.identity) == (str(tmp_path / "b.jpg"), local_identity((tmp_path / "b.jpg").stat()))
    assert counts["skipped"] == 1


def test_of_members_with_one_name_the_last_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 2)
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("./c.jpg", b"3"), ("d.json", b"4"), ("a.jpg", b"5")]))
    with tarfile.open(shard, "a") as longer:
        for name, data in (("c.jpg", b"six"), ("e.jpg", b"7"), ("b.jpg", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            longer.addfile(info, io.BytesIO(data))
    counts: Counter[str] = Counter()
    items = items_of(shard, counts=counts)
    reads = read_all(items)
    assert {read.item.uri.split("!/")[1]: read.data for read in reads} == {
        "a.jpg": b"5",
        "c.jpg": b"six",
        "e.jpg": b"7",
        "b.jpg": b"",
    }
    assert counts == {"listed": 4, "skipped": 1}
    again = read_all([Item(item.uri, "", 0) for item in items])
    assert [(read.data, read.identity) for read in again] == [(read.data, read.identity) for read in reads]
    (replaced,) = read_all([Item(f"{shard}!/./c.jpg", "", 0)])
    assert replaced.status == "missing"


def test_a_long_index_is_kept_and_a_damaged_one_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "LONG_INDEX", 3)
    monkeypatch.setattr(storage, "node_cache", lambda: tmp_path / "cache")
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")]))
    items = items_of(shard)
    (kept,) = (tmp_path / "cache" / "tar").iterdir()
    assert [item.uri.split("!/")[1] for item in items] == ["b.jpg", "a.jpg"]
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert items_of(shard) == items
    kept.write_bytes(b"x")
    assert items_of(shard) == items
    shard.write_bytes(tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"4")]))
    os.utime(shard, ns=(1, 1))
    assert {read.status for read in read_all(items)} == {"missing"}
    assert not kept.exists(), "it has proved wrong"
    items_of(shard)
    (tmp_path / "t.tar").write_bytes(tar_of({"a.jpg": b"1"}))
    items_of(tmp_path / "t.tar")
    assert len(list((tmp_path / "cache" / "tar").iterdir())) == 1, "short ones are not kept"


def test_a_member_of_a_damaged_shard_is_read_as_it_was_listed(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of({f"{i}.jpg": b"x" * 700 for i in range(3)})[: 2 * 1536 + 300])
    items = items_of(shard)
    assert [read.data for read in read_all([Item(item.uri, "", 0) for item in items])] == [b"x" * 700] * 2


def test_a_unit_of_companions_does_not_come_to_be(tmp_path: Path) -> None:
    names = [name for i in range(20) for name in (f"in/._{i}.jpg", f"in/{i}.jpg")]
    (tmp_path / "mac.tar").write_bytes(tar_of({name: name.encode() for name in names}))
    counts: Counter[str] = Counter()
    assert [read.data for read in read_all(items_of(tmp_path, counts=counts))] == [
        f"in/{i}.jpg".encode() for i in range(20)
    ]
    assert counts == {"listed": 20, "skipped": 20}
