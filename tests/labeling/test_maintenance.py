from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.maintenance import FEWEST_FILES, compact, vacuum
from ray_fer.labeling.table import create_table, files_of, scan_keys, table_classes, write_file
from tests.labeling.test_table import CLASSES, held, rows

MANY = FEWEST_FILES


def write(uri: str, names: list[str], model: str = "m") -> DeltaTable:
    """A table with one committed file per name."""
    table = create_table(uri, CLASSES)
    Committer(table, model, "r").commit([write_file(uri, model, rows(name), "x") for name in names])
    return table


def run_vacuum(uri: str, *arguments: str) -> dict[str, Any]:
    return vacuum(load_config("vacuum", [f"table={uri}", *arguments]))


def files_in(uri: str) -> set[str]:
    return {path.relative_to(uri).as_posix() for path in Path(uri).rglob("*") if path.is_file()}


def test_compaction_keeps_every_row_and_the_classes(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = write(uri, [str(i) for i in range(MANY)])
    write(uri, ["other"], model="n")
    before = pl.read_delta(uri).sort("uri")
    assert compact(table, "m") == {"joined": MANY, "files": 1}
    assert len(files_of(table, "m")) == 1
    assert pl.read_delta(uri).sort("uri").equals(before)
    assert table_classes(DeltaTable(uri)) == CLASSES
    assert Ledger(scan_keys(table, "m"), 3).rows == MANY
    assert compact(table, "m") == {"joined": 0, "files": 0}


def test_few_files_are_left_alone(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = write(uri, [str(i) for i in range(MANY - 1)])
    write(uri, ["of another model"], model="n")
    assert compact(table, "m") == {"joined": 0, "files": 0}
    assert len(files_of(table, "m")) == MANY - 1


def test_a_run_goes_on_while_another_compacts(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    ours = Committer(create_table(uri, CLASSES), "m", "ours")
    ours.commit([write_file(uri, "m", rows(str(i)), "x") for i in range(MANY)])
    assert compact(create_table(uri, CLASSES), "m")["joined"] == MANY
    assert ours.commit([write_file(uri, "m", rows("new"), "x")]) == 0
    assert held(uri) == Counter([*(str(i) for i in range(MANY)), "new"])


def test_vacuum_removes_orphans_and_replaced_files_and_nothing_else(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = write(uri, [str(i) for i in range(MANY)])
    replaced = {f.removeprefix(f"{uri}/") for f in files_of(table, "m")}
    compact(table, "m")
    orphan = write_file(uri, "m", rows("0", "lost"), "x").path
    half_written = "model=m/.x-0123456789ab.parquet.01234567.tmp"
    Path(uri, half_written).write_bytes(b"PAR1")
    strangers = ["_runs/r/summary.json", "selection.parquet", "model=m/notes.txt"]
    for name in strangers:
        storage.write_bytes(f"{uri}/{name}", b"mine")
    expected = {*replaced, orphan, half_written}
    size = sum(Path(uri, name).stat().st_size for name in expected)
    before, rows_before = files_in(uri), pl.read_delta(uri).sort("uri")

    dry = run_vacuum(uri, "retain_hours=0", "dry_run=true")
    assert (dry["removed"], dry["bytes"]) == (len(expected), size)
    assert set(dry["examples"]) < expected
    assert dry["left_alone"] == ["model=m/notes.txt", "selection.parquet"]
    assert files_in(uri) == before

    assert run_vacuum(uri, "retain_hours=0")["removed"] == len(expected)
    assert files_in(uri) == before - expected
    assert pl.read_delta(uri).sort("uri").equals(rows_before)
    assert run_vacuum(uri, "retain_hours=0")["removed"] == 0


def test_what_a_run_has_just_written_can_still_be_committed(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = write(uri, ["a"])
    young = write_file(uri, "m", rows("b"), "x")
    old = write_file(uri, "m", rows("c"), "x")
    yesterday = time.time() - 25 * 3600
    os.utime(Path(uri, old.path), (yesterday, yesterday))
    assert run_vacuum(uri)["examples"] == [old.path]
    assert Committer(table, "m", "r").commit([young]) == 0
    assert held(uri) == {"a": 1, "b": 1}


def test_nothing_to_vacuum(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"table={tmp_path}/none: no predictions table there"):
        run_vacuum(str(tmp_path / "none"))
