"""Embeddings in the table: who lacks one, what is refused, and what the reader gives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from ray_fer.errors import UserError
from ray_fer.labeling import embeddings as module
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.embeddings import Embeddings
from ray_fer.labeling.exclusions import Exclusions
from ray_fer.labeling.ledger import Ledger, claim_missing
from ray_fer.labeling.maintenance import FEWEST_FILES, compact
from ray_fer.labeling.table import (
    FILE_SCHEMA,
    TABLE_SCHEMA,
    create_table,
    open_table,
    scan_keys,
    table_embedding,
    write_file,
)
from ray_fer.labeling.unit import Row
from ray_fer.labeling.worker import infer, to_table
from ray_fer.models.model_id import model_id
from tests.labeling.test_ledger import page
from tests.labeling.test_table import CLASSES, held

FACTS = {"depths": [3, 4], "dimension": 2, "dtype": "float16"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def rows(*names: str, first: float | None = None, size: int = 2, status: str = "ok", minute: int = 0) -> pa.Table:
    """Rows with the embeddings [first, 1], [first + 1, 1] …, or without."""
    found = []
    for number, name in enumerate(names):
        row = {"uri": name, "identity": "v1", "digest": name.encode(), "status": status, "run": "r"}
        row |= {"labelled_at": NOW + timedelta(minutes=minute), "probs": [0.25, 0.75], "label": "anger"}
        if first is not None:
            vector = np.array([first + number, *[1] * (size - 1)], "<f2")
            row |= {"embedding": vector.tobytes(), "embedding_size": size}
        found.append(row)
    return pa.Table.from_pylist(found, schema=FILE_SCHEMA)


def commit(table: DeltaTable, *parts: pa.Table, embed: bool = False, model: str = "m") -> int:
    uri = str(Path(table.table_uri.removeprefix("file://")))
    return Committer(table, model, "r", embed).commit([write_file(uri, model, part, "x") for part in parts])


def test_features_that_float16_cannot_hold_cost_the_embedding_and_not_the_row() -> None:
    features = np.array([[1.5, -2], [np.nan, 0], [0, 7e4], [3, 4]], np.float32)
    logits = np.array([[0, 1], [0, 1], [0, 1], [np.nan, 1]], np.float32)
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    found = infer([Row(name, "ok", digest=b"") for name in "abcd"], pixels, lambda _: (logits, features), CLASSES, 4)
    table = to_table(found, "r").to_pylist()
    assert [row["status"] for row in table] == ["ok", "ok", "ok", "not_finite"]
    assert [row["embedding_size"] for row in table] == [2, 0, 0, 0]
    assert np.frombuffer(table[0]["embedding"], "<f2").tolist() == [1.5, -2]
    assert [row["embedding"] for row in table[1:]] == [None] * 3
    assert table[0]["error"] is None
    assert table[1]["error"] == table[2]["error"] == "no embedding: the model's features are not finite in float16"
    assert [row["probs"] is None for row in table] == [False, False, False, True]


def test_what_lacks_an_embedding_is_claimed_by_a_run_with_embeddings_alone(tmp_path: Path) -> None:
    table = create_table(str(tmp_path / "t"), CLASSES)
    failed = rows("tried", status="missing")
    commit(table, rows("plain", "both"), rows("with", first=0.0), rows("bad", status="undecodable"), failed)
    commit(table, rows("both", first=9.0), failed, embed=True)
    seen = page(["plain", "both", "with", "bad", "tried", "new"])
    assert claim_missing([Ledger(scan_keys(table, "m"), 3)], seen)[0]["uri"].to_pylist() == ["tried", "new"]
    ledger = Ledger(scan_keys(table, "m", embed=True), 3)
    assert ledger.rows == 5
    assert claim_missing([ledger], seen)[0]["uri"].to_pylist() == ["plain", "tried", "new"]
    assert claim_missing([ledger], seen)[0].num_rows == 0
    assert ledger.all_seen()
    assert claim_missing([Ledger(scan_keys(table, "m", embed=True), 2)], seen)[0]["uri"].to_pylist() == ["plain", "new"]


def test_a_face_without_logits_does_not_hide_that_the_others_lack_embeddings(tmp_path: Path) -> None:
    model = model_id("0" * 16, "float32", False, True)
    faces = [f"a#face=5.0,{number}.0,4.0,0.0" for number in range(2)]
    table = create_table(str(tmp_path / "t"), CLASSES)
    commit(table, rows(faces[0]), rows(faces[1], status="not_finite"), model=model)
    claimed = claim_missing([Ledger(scan_keys(table, model, embed=True), 3)], page(["a"]))[0]
    assert claimed["uri"].to_pylist() == ["a"]


def test_of_two_runs_at_once_the_one_with_embeddings_yields_only_to_embeddings(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    plain, ours = (Committer(create_table(uri, CLASSES), "m", run, embed=run == "ours") for run in ("plain", "ours"))
    plain.commit([write_file(uri, "m", rows("a"), "x")])
    assert ours.commit([write_file(uri, "m", rows("a", "b", first=0.0), "x")]) == 0
    assert plain.commit([write_file(uri, "m", rows("b", "c"), "x")]) == 1
    theirs = Committer(create_table(uri, CLASSES), "m", "theirs", embed=True)
    theirs.commit([write_file(uri, "m", rows("c", first=5.0), "x")])
    assert ours.commit([write_file(uri, "m", rows("c", first=5.0), "x")]) == 1
    assert held(uri) == {"a": 2, "b": 1, "c": 2}


def test_an_older_table_gets_the_columns_and_is_read_with_and_without(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    new = ("listed_identity", "embedding", "embedding_size")
    DeltaTable.create(
        uri,
        schema=pa.schema([field for field in TABLE_SCHEMA if field.name not in new]),
        partition_by=["model"],
        configuration={"ray_fer.classes": '["neutral", "anger"]'},
        raise_if_key_not_exists=False,
    )
    opened = open_table(uri, CLASSES, {"m": FACTS})
    assert opened
    commit(opened, rows("old").drop_columns(list(new)))
    assert len(scan_keys(opened, "m", embed=True).collect()) == 1
    commit(create_table(uri, CLASSES), rows("plain"))
    commit(create_table(uri, CLASSES, {"m": FACTS}), rows("old", first=0.0, minute=1), embed=True)
    assert pl.read_delta(uri).sort("uri", "labelled_at")["embedding_size"].to_list() == [None, 2, None]
    assert [block.uris for block in Embeddings(DeltaTable(uri), "m")] == [["old"]]


def test_embeddings_of_another_depth_or_dimension_are_refused(tmp_path: Path) -> None:
    uri, model = str(tmp_path / "t"), model_id("0" * 16, "float32", True, False)
    facts = {"0" * 16: FACTS}
    create_table(uri, CLASSES, facts)
    table = create_table(uri, CLASSES, facts | {"1" * 16: FACTS | {"dimension": 9}})
    assert table_embedding(table, model) == FACTS
    assert table_embedding(table, "2" * 16) is None
    version = table.version()
    for change in ({"dimension": 3}, {"depths": [2]}):
        message = rf"^table={uri}: its embeddings of model 0{{16}} are {{.*'dimension': 2.*}}; they would now be {{"
        with pytest.raises(UserError, match=message):
            create_table(uri, CLASSES, {"0" * 16: FACTS | change})
    assert DeltaTable(uri).version() == version


def test_the_reader_gives_the_newest_usable_rows_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a machine whose clock is behind has embedded what an earlier run labelled."""
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES, {"m": FACTS})
    names = [f"{number:02}" for number in range(FEWEST_FILES)]
    commit(table, *(rows(name, first=float(name)) for name in names))
    commit(table, rows("01", "plain", minute=5), rows("02", status="gone", minute=5), rows("bad", status="missing"))
    commit(table, rows("03", first=33.0, minute=5))
    nothing = rows("04", minute=5)
    place = FILE_SCHEMA.get_field_index("embedding_size")
    commit(table, nothing.set_column(place, FILE_SCHEMA.field(place), pa.array([0], pa.int32())))
    compact(table, "m")
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    found = Embeddings(table, "m", Exclusions(uris=frozenset(["05"]), digests=frozenset([b"06"])))
    blocks = list(found)
    assert found.dimension == 2
    assert len(blocks) > 2
    assert max(len(block.uris) for block in blocks) <= 4
    by_uri = {
        uri: vector.tolist() for block in blocks for uri, vector in zip(block.uris, block.embeddings, strict=True)
    }
    usable = set(names) - {"02", "05", "06"}
    assert by_uri == {name: [33.0 if name == "03" else float(name), 1.0] for name in usable}
    assert len(found) == sum(len(block.uris) for block in blocks) == len(usable)
    assert found.left_out["without_embedding"] == 1
    assert (found.left_out["gone"], found.left_out["excluded"], found.left_out["failed"]) == (1, 2, 1)
    assert blocks[0].probs.dtype == np.float32
    assert blocks[0].probs.tolist() == [[0.25, 0.75]] * len(blocks[0].uris)
    assert blocks[0].embeddings.dtype == np.float16


def test_the_reader_refuses_what_it_cannot_give(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES)
    commit(table, rows("a"))
    with pytest.raises(UserError, match=f"^table={uri}: no embeddings of model m; pseudo_label embed=true makes them$"):
        Embeddings(table, "m")
    table = create_table(uri, CLASSES, {"m": FACTS})
    commit(table, rows("b", first=0.0), rows("c", first=0.0, size=3))
    with pytest.raises(UserError, match=f"^table={uri}: embeddings of 3 and of 2 numbers of model m$"):
        Embeddings(table, "m")


def test_embeddings_of_several_models_lie_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows lie in other orders, and only pictures that all of them have count."""
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES, {"m": FACTS, "n": FACTS | {"dimension": 3}})
    commit(table, rows("a", "b", "c", first=0.0), rows("plain"))
    commit(table, rows("c", "gone", "a", "plain", "b", first=10.0, size=3), model="n")
    commit(table, rows("b", "a", "c"), model="also")
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    found = Embeddings(table, ["m", "n"], also=["also"])
    assert (found.dimensions, found.dimension, len(found)) == ([2, 3], 5, 3)
    by_uri = dict(zip(found.uris(), found.write(tmp_path / "kept").tolist(), strict=True))
    assert by_uri == {"a": [0, 1, 12, 1, 1], "b": [1, 1, 14, 1, 1], "c": [2, 1, 10, 1, 1]}
    assert found.probs(2).tolist() == [[0.25, 0.75]] * 3
    assert found.left_out["without_embedding"] == 0
    assert Embeddings(table, ["m", "n"]).left_out["without_embedding"] == 1, "plain has none of m"
    with pytest.raises(ValueError, match="blocks are of one model"):
        next(iter(found))


def test_copies_count_where_pictures_are_looked_up(tmp_path: Path) -> None:
    table = create_table(str(tmp_path / "t"), CLASSES, {"m": FACTS})
    twice = rows("a", "b", first=0.0)
    digests = pa.array([b"same"] * 2, pa.binary())
    commit(table, twice.set_column(twice.schema.get_field_index("digest"), "digest", digests))
    assert Embeddings(table, "m").uris().to_list() == ["a"]
    assert Embeddings(table, "m", copies=True).uris().to_list() == ["a", "b"]


def test_what_is_written_is_finite_and_not_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES, {"m": FACTS})
    commit(table, rows("a", first=0.0), rows("b", first=float("nan")))
    with pytest.raises(UserError, match=f"^table={uri}: the embedding of b is not finite$"):
        Embeddings(table, "m").write(tmp_path / "kept")
    nothing = Embeddings(table, "m", Exclusions(uris=frozenset(["a", "b"])))
    with pytest.raises(UserError, match=f"^table={uri}: no picture has an embedding of every model; left out: .*'excl"):
        nothing.write(tmp_path / "kept")
