"""After `vacuum forget=…` no Parquet file in the table's folder, of whatever version, holds a row of the pictures."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from ray_fer.errors import UserError
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.maintenance import FEWEST_FILES, compact
from ray_fer.labeling.table import create_table, table_classes, write_file
from tests.labeling.test_embeddings import FACTS, commit, rows
from tests.labeling.test_maintenance import files_in, run_vacuum
from tests.labeling.test_table import CLASSES

FACE = "/in/b.jpg#face=5.0,5.0,4.0,0.0"


def named_in(uri: str) -> set[str]:
    """What any Parquet file in the folder names, committed or not."""
    found: set[str] = set()
    for path in Path(uri).rglob("*.parquet"):
        if "uri" in pq.read_schema(path).names:
            found.update(pq.ParquetFile(path).read(["uri"])["uri"].to_pylist())
    return found


def test_forgotten_pictures_are_in_no_file_of_any_version(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES, {"m": FACTS})
    commit(table, *(rows(f"/in/{number}.jpg", f"/in/k{number}.jpg", first=0.0) for number in range(FEWEST_FILES)))
    compact(table, "m")
    commit(table, rows("/in/0.jpg", status="gone"), rows(FACE, "/in/b.jpgx", first=0.0), rows("/in/c.jpg", "/in/d.jpg"))
    commit(table, rows("/in/0.jpg", first=0.0), model="n")
    orphan = write_file(uri, "m", rows("/in/1.jpg", first=0.0), "lost").path
    young = write_file(uri, "m", rows("/in/k1.jpg", first=0.0), "young").path
    (tmp_path / "t" / "model=m" / ".x.parquet.01234567.tmp").write_bytes(b"PAR1 cut")
    (tmp_path / "t" / "_runs" / "r").mkdir(parents=True)
    (tmp_path / "t" / "_runs" / "r" / "report.html").write_text("faces")
    (tmp_path / "t" / "_runs" / "r" / "summary.json").write_text("{}")
    listed = tmp_path / "in" / "forget.txt"
    listed.parent.mkdir()
    listed.write_text("/in/0.jpg\n/in/1.jpg\n/in/b.jpg\n")
    forgotten = {"/in/0.jpg", "/in/1.jpg", FACE, "/in/c.jpg"}
    arguments = (f"forget=[{listed},/in/c.jpg]", "retain_hours=24")
    before, kept = files_in(uri), pl.read_delta(uri).filter(~pl.col("uri").is_in(forgotten)).sort("uri")

    dry = run_vacuum(uri, *arguments, "dry_run=true")
    assert dry["forgotten"] == 6
    assert files_in(uri) == before
    done = run_vacuum(uri, *arguments)
    assert done["forgotten"] == 6
    assert named_in(uri) == set(kept["uri"]) | {"/in/k1.jpg"}
    assert pl.read_delta(uri).sort("uri").equals(kept)
    assert table_classes(DeltaTable(uri)) == CLASSES
    left = files_in(uri)
    assert young in left
    assert "_runs/r/summary.json" in left
    assert not {orphan, "_runs/r/report.html", "model=m/.x.parquet.01234567.tmp"} & left
    for path in (tmp_path / "t" / "_delta_log").glob("*.json"):
        assert not any(name in path.read_text() for name in forgotten)
    assert run_vacuum(uri, *arguments)["forgotten"] == 0


def test_who_has_only_rows_that_are_forgotten_leaves_an_empty_table(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    commit(create_table(uri, CLASSES), rows("/in/a.jpg", first=0.0))
    assert run_vacuum(uri, "forget=/in/a.jpg")["forgotten"] == 1
    assert (len(pl.read_delta(uri)), named_in(uri)) == (0, set())


def test_a_run_goes_on_after_a_picture_is_forgotten(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    ours = Committer(create_table(uri, CLASSES), "m", "ours")
    ours.commit([write_file(uri, "m", rows("/in/a.jpg", "/in/b.jpg"), "x")])
    run_vacuum(uri, "forget=/in/a.jpg")
    assert ours.commit([write_file(uri, "m", rows("/in/c.jpg"), "x")]) == 0
    assert named_in(uri) == {"/in/b.jpg", "/in/c.jpg"}


def test_a_list_that_is_not_there_forgets_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    commit(create_table(uri, CLASSES), rows("/in/a.jpg"))
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        run_vacuum(uri, f"forget=[/in/a.jpg,{tmp_path}/nowhere.txt]")
    assert named_in(uri) == {"/in/a.jpg"}
