"""Tables of others in folders of Parquet files: only what they hold now, or refused by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from ray_fer.data.read import Item, read_objects
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import check_sources, list_sources
from ray_fer.errors import UserError
from tests.shards import parquet_of

PICTURES = [f"picture {i}".encode() for i in range(8)]


def images(uri: Path | str, counts: Counter[str] | None = None, **options: Any) -> list[bytes | None]:
    """What is listed in a source of Parquet files, as it is read."""
    entry = SourceConfig(uri=str(uri), format="parquet", **options)
    rows = [row for page in list_sources([entry], Counter() if counts is None else counts) for row in page.to_pylist()]
    return sorted(read.data or b"" for read in read_objects([Item(row["uri"], "", 0) for row in rows], 1000))


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A table of two commits and a deletion: pictures 1 and 3 are left of 0 to 3."""
    path = tmp_path / "lake 1" / "faces"
    for k in range(2):
        rows = {"image": pa.array(PICTURES[2 * k : 2 * k + 2], pa.binary()), "k": [0, 1], "day": ["a b/%", "c"]}
        write_deltalake(path, pa.table(rows), mode="append", partition_by=["day"])
    DeltaTable(path).delete("k = 0")
    DeltaTable(path).create_checkpoint()
    return path


LEFT = [PICTURES[1], PICTURES[3]]


def test_what_was_deleted_from_a_delta_table_stays_deleted(delta: Path) -> None:
    counts: Counter[str] = Counter()
    assert images(delta, counts) == LEFT
    assert counts["listed"] == 2
    assert counts["unlisted"] == 0
    (delta / "day=c" / "foreign.parquet").write_bytes(parquet_of({"image": [PICTURES[7]]}))
    assert images(delta) == LEFT


def test_a_delta_table_is_found_from_above_from_a_partition_and_by_a_pattern(delta: Path) -> None:
    (delta.parent / "more").mkdir()
    (delta.parent / "more" / "a.parquet").write_bytes(parquet_of({"image": [PICTURES[7]]}))
    assert images(delta.parent) == [*LEFT, PICTURES[7]]
    assert images(delta / "day=c") == LEFT
    assert images(f"{delta}/day=c/*.parquet") == LEFT
    assert images(f"{delta}/**") == LEFT
    assert images(f"{delta.parent}/*/a.parquet") == [PICTURES[7]]
    assert images(delta, include=["day=c/**"]) == LEFT


def test_who_names_a_file_means_it(delta: Path) -> None:
    rows = [images(file) for file in delta.glob("day=*/*.parquet")]
    assert sorted(data for each in rows for data in each) == sorted([*PICTURES[:4]])


def log_of(path: Path) -> tuple[Path, list[dict[str, Any]]]:
    log = path / "_delta_log" / f"{0:020}.json"
    return log, [json.loads(line) for line in log.read_text().splitlines()]


def test_deletion_vectors_are_refused_where_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "t"
    rows = pa.table({"image": pa.array(PICTURES[:2], pa.binary())})
    write_deltalake(path, rows, configuration={"delta.enableDeletionVectors": "true"})
    assert images(path) == PICTURES[:2]
    log, entries = log_of(path)
    vector = {"storageType": "u", "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA", "offset": 1, "sizeInBytes": 36}
    for entry in entries:
        if "add" in entry:
            entry["add"]["deletionVector"] = vector | {"cardinality": 1}
    log.write_text("\n".join(map(json.dumps, entries)))
    refused(path, "a Delta table with deletion vectors")


def test_a_delta_table_that_cannot_be_read_is_refused(delta: Path, tmp_path: Path) -> None:
    log, entries = log_of(delta)
    for entry in entries:
        if "metaData" in entry:
            entry["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
    for checkpoint in delta.glob("_delta_log/*checkpoint*"):
        checkpoint.unlink()
    log.write_text("\n".join(map(json.dumps, entries)))
    refused(delta, "a Delta table with column mapping")
    log.write_text("{")
    refused(delta, r"a Delta table that cannot be opened \(")


@pytest.mark.parametrize(
    ("mark", "kind"), [("metadata/00001-ab.metadata.json", "Iceberg"), (".hoodie/hoodie.properties", "Hudi")]
)
@pytest.mark.parametrize("place", ["", "data", "data/day=1"])
def test_other_tables_are_refused_by_name(mark: str, kind: str, place: str, tmp_path: Path) -> None:
    root = tmp_path / "t"
    for name in ("data/day=1/a.parquet", mark):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(parquet_of({"image": PICTURES}))
    refused(root / place, f"a table of {kind}", root)
    refused(f"{root}/data/**/*.parquet", f"a table of {kind}", root)
    refused(root.parent, f"a table of {kind}", root)
    assert images(root / "data/day=1/a.parquet") == PICTURES


def refused(uri: Path | str, message: str, named: Path | None = None) -> None:
    with pytest.raises(UserError, match=f"^source={named or uri}: {message}") as refused:
        check_sources([SourceConfig(uri=str(uri), format="parquet")])
    assert len(str(refused.value).splitlines()) == 1


def test_unfinished_and_foreign_files_are_not_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names: dict[str, dict[str, Any]] = {
        "part-0.parquet": {"image": PICTURES[:2]},
        "_year=2024/part-1.parquet": {"image": PICTURES[:2]},
        "_temporary/0/part-2.parquet": {"image": PICTURES},
        "._part-0.parquet": {"image": PICTURES},
        "_metadata.parquet": {"image": PICTURES},
        "a.parquet": {"vector": [1.0]},
        "b.parquet": {"digest": [b"x"], "image": PICTURES[2:3]},
        "z.parquet": {"digest": [b"y"]},
        "broken-1.parquet": {},
    }
    for name, columns in names.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(parquet_of(columns) if columns else b"x")
    counts: Counter[str] = Counter()
    assert images(tmp_path, counts, exclude=["broken-*.parquet"]) == sorted([*PICTURES[:2] * 2, PICTURES[2]])
    assert counts == {"listed": 5, "skipped": 6}
    assert caplog.messages == [
        f"{tmp_path}/a.parquet: column=image: no such column, there are vector; it is skipped",
        f"{tmp_path}/z.parquet: column=image: no such column, there are digest; it is skipped",
    ]
    assert images(tmp_path, include=["part-*.parquet"]) == sorted(PICTURES[:2] * 2)


def test_a_folder_in_which_nothing_fits_is_one_line(tmp_path: Path) -> None:
    for name, columns in (("a", {"x": [b"1"]}), ("b", {"y": [b"1"]})):
        (tmp_path / f"{name}.parquet").write_bytes(parquet_of(columns))
    refused(tmp_path, r"several columns of bytes \(x, y\); say which with column=…")
    assert images(tmp_path, column="y") == [b"1"]
    (tmp_path / "a.parquet").write_bytes(parquet_of({"n": [1]}))
    (tmp_path / "b.parquet").write_bytes(parquet_of({"n": [1]}))
    refused(tmp_path, "no column of bytes", tmp_path / "a.parquet")
