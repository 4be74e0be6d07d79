from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.sources import local_identity
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.dry_run import EXAMPLES, KINDS, TableKeys, compare_listing, images_per_second
from ray_fer.labeling.table import create_table, open_table, write_file
from ray_fer.models.artifact import open_artifact
from tests.images import CLASSES, tiny_model, write_pictures
from tests.labeling.test_ledger import labelled, page
from tests.labeling.test_table import rows


def test_every_key_has_one_reason() -> None:
    known = TableKeys(
        pl.concat(
            [
                labelled(["done", "changed", "failed, then done", "done, then failed"]),
                labelled(["failed, then done", "done, then failed", "to retry"], status="missing"),
                labelled(["bad"], status="undecodable"),
                labelled(["given up", "given up"], status="unreadable"),
                labelled(["restored"]),
                labelled(["restored"], "v2"),
            ]
        ),
        max_attempts=2,
    )
    expected = {
        "new": "new",
        "done": "done",
        "failed, then done": "done",
        "done, then failed": "done",
        "to retry": "failed_to_retry",
        "bad": "failed_permanent",
        "given up": "failed_given_up",
        "restored": "done",
    }
    kinds = known.classify(page(list(expected)))
    assert [KINDS[kind] for kind in kinds] == list(expected.values())
    assert [KINDS[kind] for kind in known.classify(page(["changed", "bad", "new"], "v3"))] == [
        "changed",
        "changed",
        "new",
    ]


def test_a_listing_against_a_table() -> None:
    held = [
        labelled([f"/a/{i}.jpg" for i in range(10)]),
        labelled(["/a/9.jpg", "/a/8.jpg"], "v0"),
        labelled(["/ab/x.jpg", "/b/y.jpg", "/c.jpg"]),
        labelled(["/a/7.jpg"], status="gone", minute=1),
    ]
    pages = [page(["/a/0.jpg", "/a/1.jpg"]), page(["/a/2.jpg"], "v2"), page([f"/a/new{i}.jpg" for i in range(5)])]
    (tally,), to_label = compare_listing(pages, [pl.concat(held)], 3, ["/a", "/c.jpg"])
    assert to_label == 6
    assert {kind: count for kind, count in tally.counts.items() if count} == {
        "new": 5,
        "changed": 1,
        "done": 2,
        "gone": 8,
    }
    assert tally.examples["new"] == [f"/a/new{i}.jpg" for i in range(EXAMPLES)]
    assert tally.examples["changed"] == ["/a/2.jpg"]
    assert len(tally.examples["gone"]) == EXAMPLES
    assert set(tally.examples["gone"]) < {f"/a/{i}.jpg" for i in range(3, 10)} | {"/c.jpg"}
    assert "failed_permanent" not in tally.examples


def test_each_of_several_models_has_its_own_tally() -> None:
    pages = [page(["/a/0.jpg", "/a/1.jpg"]), page(["/a/2.jpg"])]
    held = [labelled(["/a/0.jpg", "/a/9.jpg"]), labelled(["/a/0.jpg", "/a/1.jpg"])]
    tallies, to_label = compare_listing(pages, held, 3, ["/a"])
    assert to_label == 2
    counts = [{kind: count for kind, count in tally.counts.items() if count} for tally in tallies]
    assert counts == [{"new": 2, "done": 1, "gone": 1}, {"new": 1, "done": 2}]


def test_an_empty_table_and_pages_of_chunks() -> None:
    whole = pa.concat_tables([page(["/a/0"]), page(["/a/1"])])
    (tally,), _ = compare_listing([whole], [labelled()], 3, ["/a"])
    assert tally.counts["new"] == 2


def test_the_rate_is_that_of_the_last_runs_that_labelled(tmp_path: Path) -> None:
    assert images_per_second(str(tmp_path), ["m"]) is None
    summaries: dict[str, dict[str, Any]] = {
        "20260101T000000-a": {"model": "m", "labelled": 10**6, "images_per_second": 1e6},
        **{f"2026020{i}T000000-b": {"model": "m", "labelled": 100, "images_per_second": 10.0} for i in range(1, 6)},
        "20260301T000000-c": {"model": "other", "labelled": 10**6, "images_per_second": 1e6},
        "20260302T000000-d": {"model": "m", "labelled": 0, "images_per_second": 0.0},
        "20260303T000000-e": {"model": "m", "labelled": 7},
        "20260303T000001-e": {"models": {"m": {}, "n": {}}, "labelled": 7, "images_per_second": 2.0},
    }
    for name, summary in summaries.items():
        storage.write_json(str(tmp_path / "_runs" / name / "summary.json"), summary)
    storage.write_json(str(tmp_path / "_runs" / "20260304T000000-f" / "config.json"), {})
    assert images_per_second(str(tmp_path), ["m"]) == pytest.approx(10)
    assert images_per_second(str(tmp_path), ["n", "m"]) == pytest.approx(2)


def test_a_dry_run_writes_nothing_and_agrees_with_the_run(tmp_path: Path) -> None:
    teacher = tiny_model(str(tmp_path / "model")).uri
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(6))
    arguments = [f"source={source}", f"teacher={teacher}", f"table={table}", "dry_run=true"]
    first = pseudo_label(load_config("pseudo_label", arguments))
    assert (first["counts"]["new"], first["to_label"], first["seconds_to_label"]) == (6, 6, None)
    assert open_table(table) is None
    assert not os.path.exists(table)

    paths = sorted(source.rglob("*.jpg"))
    opened = create_table(table, CLASSES)
    model = open_artifact(teacher).model_id("bfloat16")  # as a run on GPUs leaves it
    files = [
        write_file(table, model, rows(str(path), identity=local_identity(path.stat()), status=status), "x")
        for path, status in zip(paths[:4], ("ok", "ok", "undecodable", "missing"), strict=True)
    ]
    Committer(opened, model, "r").commit(files)
    storage.write_json(
        f"{table}/_runs/20260101T000000-a/summary.json", {"model": model, "labelled": 8, "images_per_second": 4.0}
    )
    paths[0].write_bytes(b"overwritten")
    paths[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in Path(table).rglob("*")}
    second = pseudo_label(load_config("pseudo_label", arguments))
    assert {kind: count for kind, count in second["counts"].items() if count} == {
        "new": 2,
        "changed": 1,
        "failed_permanent": 1,
        "failed_to_retry": 1,
        "gone": 1,
    }
    assert second["examples"]["gone"] == [str(paths[1])]
    assert (second["to_label"], second["images_per_second"], second["seconds_to_label"]) == (4, 4.0, 1.0)
    assert {path: path.stat().st_mtime_ns for path in Path(table).rglob("*")} == before
