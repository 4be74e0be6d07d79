"""Tables of S3 Metadata, read from real Iceberg tables: which object is there now."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.utils.config import Config

from ray_fer.data.read import Stat
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import check_sources, list_sources, lists, pages, s3_metadata
from ray_fer.errors import UserError
from tests.iceberg import MetadataTable, deleted, record


def rows_of(place: str, counts: Counter[str] | None = None, **options: Any) -> list[dict[str, Any]]:
    entry = SourceConfig(uri=place, format="s3_metadata", **options)
    tables = list(list_sources([entry], Counter() if counts is None else counts))
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["uri"]) if tables else []


def found(place: str) -> dict[str, str]:
    rows = rows_of(place)
    named = {row["uri"].removeprefix("s3://b/"): row["identity"] for row in rows}
    assert len(named) == len(rows)
    return named


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that a store which is not there was asked about; it holds ``now`` of all of them."""
    uris: list[str] = []

    def stat(wanted: list[str]) -> list[Stat]:
        uris.extend(wanted)
        return [("now", 7) for _ in wanted]

    monkeypatch.setattr(lists, "stat_objects", stat)
    return uris


def test_a_journal_names_what_is_there_now(tmp_path: Path, asked: list[str]) -> None:
    journal = MetadataTable(tmp_path, "journal")
    events = [
        record("b", "new ä+%.jpg", 1, "v1"),
        record("b", "overwritten.jpg", 2, "v1"),
        record("b", "overwritten.jpg", 9, "v2"),
        record("b", "deleted.jpg", 3, "v1"),
        deleted("b", "deleted.jpg", 4),
        record("b", "back.jpg", 3, "v1"),
        deleted("b", "back.jpg", 4),
        record("b", "back.jpg", 5, "v1"),
        record("b", "older-than-the-journal.jpg", 6, "v1", record_type="UPDATE_METADATA"),
        record("b", "notes.txt", 7, "v1"),
        record("b", "folder.jpg/", 8, "v1"),
        record("b", "no-e-tag.jpg", 10, None),
    ]
    events += random.Random(0).choices(events, k=10)  # some come twice, and in any order
    random.Random(1).shuffle(events)
    journal.append(*events[:9])
    journal.append(*events[9:])
    assert found(journal.uri) == {
        "new ä+%.jpg": "v1",
        "overwritten.jpg": "v2",
        "back.jpg": "v1",
        "older-than-the-journal.jpg": "v1",
        "no-e-tag.jpg": "now",
    }
    assert asked == ["s3://b/no-e-tag.jpg"]
    counts: Counter[str] = Counter()
    rows = rows_of(journal.uri, counts)
    assert {row["source"] for row in rows} == {f"s3_metadata:{journal.uri.removeprefix('file://')}"}
    assert counts == {"listed": 5, "skipped": 22 - 5}
    assert [row["size"] for row in rows if row["identity"] == "v2"] == [10]


def test_versions_are_told_apart(tmp_path: Path) -> None:
    marker = {"record_type": "DELETE", "is_delete_marker": True, "version_id": "m", "size": None}
    stacks = {
        "newest.jpg": [
            record("b", "newest.jpg", 1, "v1", version_id="1"),
            record("b", "newest.jpg", 2, "v2", version_id="2"),
        ],
        "marked.jpg": [record("b", "marked.jpg", 1, "v1", version_id="1"), record("b", "marked.jpg", 2, **marker)],
        "unmarked.jpg": [
            record("b", "unmarked.jpg", 1, "v1", version_id="1"),
            record("b", "unmarked.jpg", 2, **marker),
            deleted("b", "unmarked.jpg", 3, version_id="m"),
        ],
        "old-one-deleted.jpg": [
            record("b", "old-one-deleted.jpg", 1, "v1", version_id="1"),
            record("b", "old-one-deleted.jpg", 2, "v2", version_id="2"),
            deleted("b", "old-one-deleted.jpg", 3, version_id="1"),
        ],
        "old-one-archived.jpg": [
            record("b", "old-one-archived.jpg", 1, "v1", version_id="1"),
            record("b", "old-one-archived.jpg", 2, "v2", version_id="2"),
            record("b", "old-one-archived.jpg", 3, "v1", version_id="1", record_type="UPDATE_METADATA"),
        ],
        "from-before-versions.jpg": [
            record("b", "from-before-versions.jpg", 1, "v0"),
            record("b", "from-before-versions.jpg", 2, "v1", version_id="1"),
        ],
    }
    journal = MetadataTable(tmp_path, "journal")
    journal.append(*(event for stack in stacks.values() for event in reversed(stack)))
    assert found(journal.uri) == {
        "newest.jpg": "v2",
        "unmarked.jpg": "v1",
        "old-one-deleted.jpg": "v2",
        "old-one-archived.jpg": "v2",
        "from-before-versions.jpg": "v1",
    }


def test_an_inventory_names_the_newest_version(tmp_path: Path) -> None:
    inventory = MetadataTable(tmp_path, "inventory")
    inventory.append(
        record("b", "a.jpg", 1, "v1", version_id="1"),
        record("b", "a.jpg", 2, "v2", version_id="2"),
        record("b", "marked.jpg", 1, "v1", version_id="1"),
        record("b", "marked.jpg", 2, version_id="2", is_delete_marker=True, size=None),
        record("b", "plain.jpg", 1, "v1"),
    )
    assert found(inventory.uri) == {"a.jpg": "v2", "plain.jpg": "v1"}


def test_an_inventory_without_versions_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_metadata, "_spread", lambda *_: pytest.fail("spread over files"))
    monkeypatch.setattr(pages, "PAGE_ROWS", 4)
    inventory = MetadataTable(tmp_path, "inventory")
    inventory.append(*(record("b", f"{i}.jpg", i, f"v{i}") for i in range(6)))
    inventory.append(*(record("b", f"{i}.jpg", i, f"v{i}") for i in range(6, 8)))
    entry = SourceConfig(uri=inventory.uri, format="s3_metadata", exclude="s3://b/3.*")
    assert sum(page.num_rows for page in list_sources([entry], Counter())) == 7
    tables = list(list_sources([SourceConfig(uri=inventory.uri, format="s3_metadata")], Counter()))
    assert max(page.num_rows for page in tables) == 4
    assert found(inventory.uri) == {f"{i}.jpg": f"v{i}" for i in range(8)}


def test_a_large_journal_is_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    plain = s3_metadata.last_states

    def counted(records: Any) -> Any:
        held.append(len(records))
        return plain(records)

    monkeypatch.setattr(s3_metadata, "last_states", counted)
    journal = MetadataTable(tmp_path, "journal")
    for start in range(0, 6000, 2000):
        journal.append(*(record("b", f"{i % 4000}.jpg", i, f"v{i}") for i in range(start, start + 2000)))
    assert found(journal.uri) == {f"{i % 4000}.jpg": f"v{i}" for i in range(2000, 6000)}
    assert sum(held) == 6000
    assert max(held) < 6000 / s3_metadata.PARTS * 3


def test_a_table_is_found_through_its_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = MetadataTable(tmp_path, "journal")
    for name, value in journal.settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    assert rows_of(journal.name) == [], "nothing has come yet"
    journal.append(record("b", "a.jpg", 1, "v1"))
    assert [(row["uri"], row["source"]) for row in rows_of(journal.name)] == [
        ("s3://b/a.jpg", f"s3_metadata:{journal.name}")
    ]
    with pytest.raises(
        UserError, match=r"^source=meta\.b_faces\.other: cannot be opened as an Iceberg table \(.*exist"
    ):
        check_sources([SourceConfig(uri="meta.b_faces.other", format="s3_metadata")])


def test_what_is_no_such_table_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = MetadataTable(tmp_path / "other", "inventory", columns=("key", "size"))
    (tmp_path / "x.metadata.json").write_text("{}")
    for place, message in (
        (other.uri, "no table of S3 Metadata: no column bucket, there are key, size"),
        (f"{tmp_path}/x.metadata.json", "cannot be opened as an Iceberg table"),
        (f"{tmp_path}/nowhere", "cannot be opened as an Iceberg table .*; name its ….metadata.json"),
        ("nowhere.b_faces.journal", "cannot be opened as an Iceberg table"),
    ):
        with pytest.raises(UserError, match=f"^source={place.removeprefix('file://')}: {message}") as refused:
            check_sources([SourceConfig(uri=place, format="s3_metadata")])
        assert len(str(refused.value).splitlines()) == 1

    def without(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(s3_metadata, "import_module", without)
    with pytest.raises(UserError, match=r"to read Iceberg tables, pip install 'ray-fer\[iceberg\]'$"):
        check_sources([SourceConfig(uri=other.uri, format="s3_metadata")])
