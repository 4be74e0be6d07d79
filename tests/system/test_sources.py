"""Sources on a real S3 server: shards, tables, lists and feeds, listed, read in place and labelled."""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
import s3fs
import yaml

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import list_sources
from ray_fer.labeling.ledger import Ledger, claim_missing
from ray_fer.labeling.table import open_table, scan_keys
from tests.iceberg import MetadataTable, deleted, record
from tests.images import picture
from tests.shards import hugging_face, parquet_of, tar_of
from tests.system.jobs import run_job
from tests.system.test_pseudo_label import QUICK, rows_of

Entry = str | SourceConfig


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often which request about a single object is made."""
    counts: Counter[str] = Counter()
    plain = s3fs.S3FileSystem._call_s3

    async def counted(self: s3fs.S3FileSystem, method: str, *arguments: Any, **options: Any) -> Any:
        counts[method] += 1
        return await plain(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return counts


def listed(*entries: Entry) -> list[Item]:
    rows = pa.concat_tables(list_sources(entries, Counter())).to_pylist()
    return [Item(row["uri"], row["identity"], row["size"]) for row in rows]


def read_all(items: list[Item]) -> list[Read]:
    reads = list(read_objects(items, 1 << 20))
    assert [read.item for read in reads] == items
    return reads


def etag(uri: str) -> str:
    fs, path = storage.filesystem(uri)
    return str(fs.info(path)["ETag"].strip('"'))


def unlabelled(table: str, model: str, entries: Sequence[Entry]) -> list[str]:
    """What another run over ``entries`` would label."""
    opened = open_table(table)
    assert opened
    ledger = Ledger(scan_keys(opened, model), max_attempts=1)
    return [
        uri for page in list_sources(entries, Counter()) for uri in claim_missing([ledger], page)[0]["uri"].to_pylist()
    ]


def test_members_of_shards_by_ranges(s3: str, calls: Counter[str]) -> None:
    contents = {f"{i:03d}.jpg": picture(i) * 30 for i in range(150)}
    for number in range(3):
        some = dict(list(contents.items())[number * 50 : number * 50 + 50])
        storage.write_bytes(f"{s3}/shards/s-{number}.tar", tar_of(some | {"notes.txt": b"no image"}))
    storage.write_bytes(f"{s3}/shards/old.tar.gz", b"")
    storage.write_bytes(f"{s3}/shards/cut.tar", tar_of(contents)[:700])
    calls.clear()
    items = listed(f"{s3}/shards")
    walking = calls["get_object"]
    assert walking <= 12, "a shard of 1.5 MB is walked in blocks"
    items = [item for item in items if "/cut.tar!" not in item.uri]
    assert sorted(item.uri.rsplit("!/")[1] for item in items) == sorted(contents)
    assert items[0].identity.startswith(etag(items[0].uri.split("!")[0]) + "@")

    calls.clear()
    reads = read_all(items)
    assert all(read.data == contents[read.item.uri.rsplit("!/")[1]] for read in reads)
    assert [read.identity for read in reads] == [item.identity for item in items]
    assert calls["get_object"] <= 6, "150 neighbours are few requests"

    calls.clear()
    assert len(listed(f"{s3}/shards/s-*.tar")) == 150
    assert not calls, "the index of what was walked is kept"

    blind = read_all([Item(item.uri, "", 0) for item in items[::50]])
    assert [read.identity for read in blind] == [item.identity for item in items[::50]]
    shard = items[0].uri.split("!")[0]
    storage.write_bytes(shard, tar_of({items[0].uri.rsplit("!/")[1]: b"new"}))
    assert read_all(items[:1])[0].error == "its shard was overwritten since it was listed"
    assert [read.data for read in read_all([Item(items[0].uri, "", 0)])] == [b"new"]
    storage.delete(shard)
    assert read_all(items[:1])[0].status == "missing"


def test_rows_of_tables(s3: str, calls: Counter[str]) -> None:
    pictures = [picture(i) * 30 for i in range(300)]
    storage.write_bytes(f"{s3}/t/train.parquet", parquet_of({"image": hugging_face(pictures)}, rows_per_group=100))
    storage.write_bytes(f"{s3}/a.jpg", b"loose")
    items = listed(SourceConfig(uri=f"{s3}/t", format="parquet", column="image"))
    calls.clear()
    loose = Item(f"{s3}/a.jpg", "", 5)
    reads = read_all([loose, *items, loose])
    assert [read.data for read in reads] == [b"loose", *pictures, b"loose"]
    assert {read.identity for read in reads[1:-1]} == {etag(f"{s3}/t/train.parquet")}
    assert calls["get_object"] <= 20, "column chunks are read in large pieces"
    storage.write_bytes(
        f"{s3}/t/train.parquet", parquet_of({"image": hugging_face(pictures[::-1])}, rows_per_group=100)
    )
    again = read_all(items)
    assert [read.data for read in again] == pictures[::-1]
    assert {read.identity for read in again} == {etag(f"{s3}/t/train.parquet")}
    assert {read.status for read in read_all([Item(f"{s3}/t/none.parquet#column=image&row=0", "v1", 5)])} == {"missing"}


def test_lists_inventories_and_events(s3: str, calls: Counter[str]) -> None:
    bucket = s3.removeprefix("s3://")
    names = [f"faces/{i:03d} ä+%.jpg" for i in range(120)]
    fs, _ = storage.filesystem(s3)
    fs.pipe({f"{bucket}/{name}": picture(i) for i, name in enumerate(names)})
    want = {f"{s3}/{name}": etag(f"{s3}/{name}") for name in names}
    gone = f"{s3}/faces/gone.jpg"

    storage.write_bytes(f"{s3}/list.txt", "\n".join([*want, gone]).encode())
    calls.clear()
    items = listed(f"{s3}/list.txt")
    assert {item.uri: item.identity for item in items} == want | {gone: ""}
    assert calls["head_object"] >= 121
    assert Counter(read.status for read in read_all(items)) == {"ok": 120, "missing": 1}

    quoted = [name.replace("%", "%25").replace("+", "%2B").replace(" ", "+") for name in names]
    lines = [f'"{bucket}","{key}","9","{want[f"{s3}/{name}"]}"' for key, name in zip(quoted, names, strict=True)]
    storage.write_bytes(f"{s3}/inventory/data/1.csv.gz", gzip.compress("\n".join(lines).encode()))
    manifest = {
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, Size, ETag",
        "files": [{"key": "inventory/data/1.csv.gz"}],
    }
    storage.write_json(f"{s3}/inventory/manifest.json", manifest)
    calls.clear()
    items = listed(SourceConfig(uri=f"{s3}/inventory/manifest.json", format="inventory"))
    assert {item.uri: item.identity for item in items} == want
    assert calls["head_object"] <= 2, "an inventory says what is there"

    storage.write_bytes(f"{s3}/{names[0]}", picture(999))
    (read,) = read_all(items[:1])
    assert (read.data, read.identity) == (picture(999), etag(f"{s3}/{names[0]}"))

    created = [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": quoted[0]}}}] * 2
    storage.write_bytes(f"{s3}/events/1.jsonl", json.dumps({"Records": created}).encode())
    items = listed(SourceConfig(uri=f"{s3}/events", format="events"))
    assert [(item.uri, item.identity) for item in items] == [(f"{s3}/{names[0]}", etag(f"{s3}/{names[0]}"))] * 2


def test_a_file_of_sources_is_labelled_and_a_shard_half_done_goes_on(s3: str, model: str, tmp_path: Path) -> None:
    shard = f"{s3}/shards/s.tar"
    storage.write_bytes(shard, tar_of({f"{i:03d}.jpg": picture(i) for i in range(40)}))
    storage.write_bytes(f"{s3}/train.parquet", parquet_of({"image": hugging_face([picture(i) for i in range(50, 70)])}))
    storage.write_bytes(f"{s3}/loose/2024-01/x-1.jpg", picture(100))
    storage.write_bytes(f"{s3}/loose/2024-01/y-1.jpg", picture(101))
    half = [f"{shard}!/{i:03d}.jpg" for i in range(20)]
    storage.write_bytes(f"{s3}/half.txt", "\n".join([*half, f"{s3}/gone.jpg"]).encode())
    entries = [
        {"uri": f"{s3}/train.parquet", "column": "image", "format": "parquet"},
        {"uri": f"{s3}/loose/**/*.jpg", "exclude": "y-*"},
        f"{s3}/half.txt",
    ]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(entries))
    places = (f"source={tmp_path / 'sources.yaml'}", f"teacher={model}", f"table={s3}/table")
    summary = run_job("pseudo_label", *places, *QUICK)
    assert summary["statuses"] == {"ok": 20 + 1 + 20, "missing": 1}
    sources = Counter(row["source"] for row in rows_of(f"{s3}/table"))
    assert sources == {f"{s3}/train.parquet": 20, f"{s3}/loose/**/*.jpg": 1, f"list:{s3}/half.txt": 21}

    everything = [*load_config("pseudo_label", list(places)).source, f"{s3}/shards"]
    new = unlabelled(f"{s3}/table", summary["model"], everything)
    assert sorted(new) == [f"{shard}!/{i:03d}.jpg" for i in range(20, 40)]


@pytest.mark.slow
def test_a_lance_dataset_is_labelled_once(s3: str, model: str) -> None:
    uri = f"{s3}/faces.lance"
    options = storage.lance_options(uri)

    def write(numbers: range, mode: str) -> None:
        table = pa.table({"n": numbers, "image": hugging_face([picture(i) for i in numbers])})
        lance.write_dataset(table, uri, mode=mode, enable_stable_row_ids=True, storage_options=options)

    write(range(30), "create")
    items = listed(uri)
    assert [item.uri for item in items] == [f"{uri}#column=image&rowid={i}" for i in range(30)]
    assert [read.data for read in read_all(items)] == [picture(i) for i in range(30)]
    places = (f"source={uri}", f"teacher={model}", f"table={s3}/table")
    assert run_job("pseudo_label", *places, *QUICK)["statuses"] == {"ok": 30}
    write(range(30, 35), "append")
    lance.dataset(uri, storage_options=options).optimize.compact_files()
    summary = run_job("pseudo_label", *places, *QUICK)
    assert summary["statuses"] == {"ok": 5}
    assert unlabelled(f"{s3}/table", summary["model"], [uri]) == []
    rows = rows_of(f"{s3}/table")
    assert sorted(row["uri"] for row in rows) == sorted(f"{uri}#column=image&rowid={i}" for i in range(35))
    assert [read.data for read in read_all([Item(f"{uri}#column=image&rowid=33", "", 0)])] == [picture(33)]
    assert {read.status for read in read_all([Item(f"{s3}/no.lance#column=image&rowid=0", "v1", 5)])} == {"missing"}


@pytest.mark.slow
def test_the_journal_of_s3_metadata_is_labelled_once(s3: str, model: str, tmp_path: Path) -> None:
    bucket = s3.removeprefix("s3://")
    journal = MetadataTable(tmp_path / "warehouse", "journal")
    numbers = itertools.count(1)

    def put(*names: str) -> list[dict[str, Any]]:
        for name in names:
            storage.write_bytes(f"{s3}/{name}", picture(next(numbers)))
        return [record(bucket, name, next(numbers), etag(f"{s3}/{name}")) for name in names]

    first = put(*(f"faces/{i:02d} ä+%.jpg" for i in range(20)))
    journal.append(*first, *first[:5], record(bucket, "faces/gone.jpg", 1, "v1"), deleted(bucket, "faces/gone.jpg", 2))
    entry = [{"uri": journal.name, "format": "s3_metadata"}]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(entry))
    places = (f"source={tmp_path / 'sources.yaml'}", f"teacher={model}", f"table={s3}/table")
    assert run_job("pseudo_label", *places, *QUICK, env=journal.settings)["statuses"] == {"ok": 20}
    overwritten, added = put(str(first[0]["key"])), put("faces/new.jpg")
    journal.append(*overwritten, *added, deleted(bucket, str(first[1]["key"]), 99))
    summary = run_job("pseudo_label", *places, *QUICK, env=journal.settings)
    assert summary["statuses"] == {"ok": 2}
    assert unlabelled(f"{s3}/table", summary["model"], [SourceConfig(uri=journal.uri, format="s3_metadata")]) == []
    rows = rows_of(f"{s3}/table")
    want = Counter(f"{s3}/{event['key']}" for event in first) + Counter(
        [f"{s3}/{first[0]['key']}", f"{s3}/faces/new.jpg"]
    )
    assert Counter(row["uri"] for row in rows) == want
    assert {row["source"] for row in rows} == {f"s3_metadata:{journal.name}"}


def test_a_table_of_s3_metadata_on_s3(s3: str, tmp_path: Path) -> None:
    """As a job finds it that knows the place of the metadata alone: no catalog, credentials from the environment."""
    inventory = MetadataTable(tmp_path / "warehouse", "inventory", place=f"{s3}/warehouse")
    storage.write_bytes(f"{s3}/a.jpg", picture(0))
    inventory.append(record(s3.removeprefix("s3://"), "a.jpg", 1, etag(f"{s3}/a.jpg")))
    items = listed(SourceConfig(uri=inventory.uri, format="s3_metadata"))
    assert [(item.uri, item.identity) for item in items] == [(f"{s3}/a.jpg", etag(f"{s3}/a.jpg"))]
    assert [read.data for read in read_all(items)] == [picture(0)]
