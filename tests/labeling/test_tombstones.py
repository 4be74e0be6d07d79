from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ray_fer.data.source_config import SourceConfig
from ray_fer.labeling import tombstones
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.table import FILE_SCHEMA, create_table, open_table, scan_keys, write_file
from tests.labeling.test_ledger import claim, labelled, page
from tests.labeling.test_table import CLASSES, rows

NOW = datetime(2026, 1, 2, tzinfo=UTC)
Found = set[tuple[str, str, str]]


def missing(
    held: list[pl.LazyFrame],
    *listed: tuple[str, str],
    sources: tuple[str, ...] = ("/in",),
    since: list[pl.LazyFrame] | None = None,
) -> Found:
    """The (uri, identity, status) of the markers after a listing; ``since`` was written while it went on."""
    ledger = Ledger(pl.concat(held), 3)
    for uri, identity in listed:
        claim(ledger, page([uri], identity))
    found = tombstones.find_objects(pl.concat([*held, *(since or [])]), list(sources), ledger.look_up)
    markers = [tombstones.missing_markers(some, NOW).select("uri", "identity", "status").rows() for some in found]
    assert all(len(set(some)) == len(some) for some in markers)
    return {marker for some in markers for marker in some}


A, B = "/in/a.jpg", "/in/b.jpg"


def test_what_a_listing_did_not_meet_is_gone() -> None:
    assert missing([labelled([A, B])], (A, "v1")) == {(B, "v1", "gone")}
    assert missing([labelled([A, B])], (A, "v1"), (B, "v1")) == set()


def test_nothing_is_marked_twice_by_runs_one_after_the_other() -> None:
    held = [labelled([A, B]), labelled([B], status="gone", minute=1)]
    assert missing(held, (A, "v1")) == set()


def test_an_overwritten_object_is_not_gone_whether_or_not_its_row_is_there() -> None:
    held = [labelled([A, B])]
    new = labelled([B], "v2", minute=5)
    assert missing(held, (A, "v1"), (B, "v2"), since=[new]) == set()
    assert missing([*held, new], (A, "v1"), (B, "v2")) == set()


def test_an_object_that_was_overwritten_between_listing_and_reading_is_not_gone() -> None:
    """Listed as v2, read as v3: v2 is in no row."""
    assert missing([labelled([A, B])], (A, "v1"), (B, "v2"), since=[labelled([B], "v3", minute=5)]) == set()


def test_the_mark_carries_the_identity_of_the_last_row() -> None:
    held = [labelled([A], "v2", minute=2), labelled([A], "v1", minute=1), labelled([A], "v1", "missing", minute=3)]
    assert missing([*held, labelled([B])], (B, "v1")) == {(A, "v1", "gone")}


@pytest.mark.parametrize("status", ["missing", "unreadable", "undecodable", "crashed"])
def test_failures_are_gone_like_successes(status: str) -> None:
    held = [labelled([A], status=status), labelled([B])]
    assert missing(held, (B, "v1")) == {(A, "v1", "gone")}
    assert missing(held, (A, "v1"), (B, "v1")) == set()


def test_what_is_met_again_has_returned() -> None:
    held = [labelled([A, B]), labelled([A, B], status="gone", minute=1)]
    assert missing(held, (A, "v1")) == {(A, "v1", "returned")}
    assert missing([*held, labelled([A], status="returned", minute=2)], (A, "v1")) == set()


def test_what_has_returned_may_go_again() -> None:
    held = [labelled([A]), labelled([A], status="gone", minute=1), labelled([A], status="returned", minute=2)]
    assert missing([*held, labelled([B])], (B, "v1")) == {(A, "v1", "gone")}


def test_an_earlier_content_that_came_back_has_returned() -> None:
    held = [labelled([A], "v1"), labelled([A], "v2", minute=1), labelled([A], "v2", "gone", minute=2)]
    assert missing(held, (A, "v1")) == {(A, "v1", "returned")}


def test_another_content_that_came_back_needs_no_mark_and_may_go_again() -> None:
    held = [labelled([A, B]), labelled([A], status="gone", minute=1)]
    new = labelled([A], "v2", minute=2)
    assert missing(held, (A, "v2"), (B, "v1"), since=[new]) == set()
    assert missing([*held, new], (A, "v2"), (B, "v1")) == set()
    assert missing([*held, new], (B, "v1")) == {(A, "v2", "gone")}


def test_a_transient_failure_that_is_tried_again_is_no_return() -> None:
    held = [labelled([A], status="missing"), labelled([A], status="gone", minute=1)]
    assert missing(held, (A, "v1"), since=[labelled([A], minute=24 * 60 + 1)]) == set()


def test_only_what_lies_in_a_listed_source_is_gone() -> None:
    """A source that was taken from the config was not listed, nor was a folder whose name begins alike."""
    others = ["/other/a.jpg", "/in2/a.jpg", "/in", "s3://in/a.jpg"]
    held = [labelled([A, *others]), labelled(["/other/b.jpg"], status="gone", minute=1)]
    assert missing(held) == {(A, "v1", "gone")}
    assert missing(held, sources=("/in", "/other")) == {(A, "v1", "gone"), ("/other/a.jpg", "v1", "gone")}
    assert missing(held, sources=()) == set()


def test_what_came_back_and_whose_source_was_then_taken_away_is_not_gone() -> None:
    held = [labelled([A], status="gone", minute=1), labelled([A], "v2", minute=2)]
    assert missing(held, sources=("/other",)) == set()


def test_members_of_a_shard_go_and_rows_of_other_lists_do_not() -> None:
    member, row, named = "/in/s.tar!/x.jpg", "/in/t.parquet#column=image&row=1", "/in/no-extension"
    held = [labelled([member, row, named])]
    assert missing(held) == {(member, "v1", "gone")}
    assert missing(held, sources=("/in/s.tar",)) == {(member, "v1", "gone")}
    assert missing(held, sources=(A,)) == set()


def test_what_others_have_written_since_the_listing_began_is_left_alone() -> None:
    late = 24 * 60 + 1
    assert missing([labelled([A])], since=[labelled([A], minute=late)]) == set()
    assert missing([labelled([A])], since=[labelled([A], "v2", minute=late)]) == set()
    held = [labelled([A]), labelled([A], status="gone", minute=1)]
    assert missing(held, (A, "v1"), since=[labelled([A], status="returned", minute=late)]) == set()
    assert missing([labelled([A])], (A, "v1"), since=[labelled([A], status="gone", minute=late)]) == set()


def test_more_objects_than_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "OBJECTS_AT_ONCE", 7)
    names = [f"/in/{i}.jpg" for i in range(100)]
    held = [labelled(names), labelled(names[:10], "v2", minute=1), labelled(names[-10:], status="gone", minute=1)]
    expected = {(name, "v2" if name in names[:10] else "v1", "gone") for name in names[:40] + names[50:90]}
    assert missing(held, *((name, "v1") for name in names[40:50])) == expected


def test_sources_that_are_listed_whole() -> None:
    entries = ["/in", "/x/*.jpg", "/list.txt", SourceConfig(uri="/y", include=["*.png"]), SourceConfig(uri="/z")]
    assert tombstones.complete_sources(entries) == ["/in", "/z"]


def write(uri: str, *names: str) -> Callable[[str, Ledger], dict[str, int]]:
    """A table that holds ``names``; what a listing's ledger leads to."""
    Committer(create_table(uri, CLASSES), "m", "r").commit([write_file(uri, "m", rows(*names), "x")])

    def mark(run: str, ledger: Ledger) -> dict[str, int]:
        table = open_table(uri)
        assert table
        soon = datetime.now(UTC) + timedelta(seconds=1)
        counts = tombstones.write_markers(Committer(table, "m", run), ["/in"], ledger.look_up, soon)
        return {name: count for name, count in counts.items() if count}

    return mark


def test_marks_are_rows_without_a_prediction(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    mark = write(uri, A, B)
    table = create_table(uri, CLASSES)
    # Both have read the table and listed before either writes.
    ledgers = [Ledger(scan_keys(table, "m"), 3) for _ in range(2)]
    for ledger in ledgers:
        claim(ledger, page([A]))
    assert mark("one", ledgers[0]) == {"gone": 1}
    assert mark("two", ledgers[1]) == {}
    held = create_table(uri, CLASSES).to_pyarrow_table()
    assert held.schema.names[: len(FILE_SCHEMA)] == FILE_SCHEMA.names
    (row,) = (row | {"labelled_at": None} for row in held.to_pylist() if row["status"] != "ok")
    filled = {"uri": B, "identity": "v1", "status": "gone", "run": "one", "model": "m"}
    assert row == dict.fromkeys(row, None) | filled

    later = Ledger(scan_keys(create_table(uri, CLASSES), "m"), 3)
    assert (later.rows, later.markers) == (2, 1)
    assert claim(later, page([A, B])).num_rows == 0
    assert later.all_seen()
    assert mark("three", later) == {"returned": 1}
    assert mark("four", later) == {}


def test_marks_that_two_runs_write_at_once_do_no_harm(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    mark = write(uri, A, B)
    for run in "xy":
        Committer(create_table(uri, CLASSES), "m", run).commit([write_file(uri, "m", rows(B, status="gone"), run)])
    ledger = Ledger(scan_keys(create_table(uri, CLASSES), "m"), 3)
    claim(ledger, page([A, B]))
    assert mark("one", ledger) == {"returned": 1}
    assert mark("two", ledger) == {}
