from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ray_fer.labeling.commit import Committer
from ray_fer.labeling.key_sets import hash_keys
from ray_fer.labeling.ledger import DONE, GIVEN_UP, PERMANENT, Ledger, claim_missing, sort_out
from ray_fer.labeling.table import KNOWN, MARKERS, create_table, no_keys, scan_keys, write_file
from tests.labeling.test_table import rows


def page(names: list[str], identity: str = "v1") -> pa.Table:
    return pa.table({"uri": names, "identity": [identity] * len(names)})


def claim(ledger: Ledger, listed: pa.Table) -> pa.Table:
    return claim_missing([ledger], listed)[0]


def labelled(
    names: list[str] | None = None,
    identity: str = "v1",
    status: str = "ok",
    minute: int = 0,
    listed: str | None = None,
) -> pl.LazyFrame:
    """As `scan_keys` gives it; what was labelled in the same minute has the same time."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    common = {"identity": identity, "listed_identity": [listed] * len(names or [])}
    columns = {"uri": names or [], **common, "status": status, "labelled_at": at, "source": "s"}
    return pl.LazyFrame(columns, schema=no_keys().collect_schema())


def test_only_unlabelled_keys_are_claimed_and_only_once() -> None:
    ledger = Ledger(labelled(["a", "b", "c"]), max_attempts=3)
    assert ledger.rows == 3
    assert claim(ledger, page(["a", "b", "c", "d", "e"]))["uri"].to_pylist() == ["d", "e"]
    assert claim(ledger, page(["e", "f"]))["uri"].to_pylist() == ["f"]


def test_another_identity_is_new_work() -> None:
    ledger = Ledger(labelled(["a"], "v1"), max_attempts=3)
    assert claim(ledger, page(["a"], "v2"))["uri"].to_pylist() == ["a"]


def test_a_key_twice_in_one_page_is_claimed_once() -> None:
    assert claim(Ledger(labelled(), 3), page(["a", "b", "a", "a"]))["uri"].to_pylist() == ["a", "b"]


def test_the_two_hashes_of_a_key_are_uniform_and_independent() -> None:
    """A collision of two keys' first hashes says nothing of their second ones, also of one identity."""
    numbers, same = [str(number) for number in range(1000)], ["same"] * 1000
    for uris, identities in ((numbers, same), (same, numbers)):
        first, second = hash_keys(pa.array(uris), pa.array(identities))
        for hashes in (first, second, first ^ second):
            assert len(np.unique(hashes)) == 1000
            assert abs(np.bitwise_count(hashes).mean() - 32) < 1  # ones of 64 bits; its deviation is 4 / √1000 = 0.13


def test_uri_and_identity_do_not_run_together() -> None:
    a = hash_keys(pa.array(["ab"]), pa.array(["c"]))
    b = hash_keys(pa.array(["a"]), pa.array(["bc"]))
    assert (a != b).all()
    swapped = hash_keys(pa.array(["c"]), pa.array(["ab"]))
    assert (a != swapped).all()


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_transient_failures_are_tried_a_bounded_number_of_times(attempts: int) -> None:
    ledger = Ledger(labelled(["a"] * attempts, status="missing"), max_attempts=3)
    assert claim(ledger, page(["a"])).num_rows == (1 if attempts < 3 else 0)


def test_a_retry_says_which_try_it_is() -> None:
    held = [labelled(["once"], status="missing"), labelled(["twice"] * 2, status="unreadable"), labelled(["done"])]
    ledger = Ledger(pl.concat(held), max_attempts=5)
    keys = page(["new", "twice", "done", "once"])
    new, attempts = ledger.claim(hash_keys(keys["uri"], keys["identity"]))
    assert (new.tolist(), attempts.tolist()) == ([0, 1, 3], [1, 3, 2])
    overwritten = page(["twice"], "v2")
    assert ledger.claim(hash_keys(overwritten["uri"], overwritten["identity"]))[1].tolist() == [1]


def test_permanent_failures_and_later_successes_are_settled() -> None:
    held = [labelled(["a"], status="undecodable"), labelled(["b"], status="missing"), labelled(["b"])]
    assert claim(Ledger(pl.concat(held), 3), page(["a", "b"])).num_rows == 0


def test_what_any_of_several_lacks_is_claimed_for_those_that_lack_it() -> None:
    ledgers = [Ledger(labelled(["a", "b"]), 3), Ledger(labelled(["a"]), 3), Ledger(labelled(["a", "c"]), 3)]
    new, lacking = claim_missing(ledgers, page(["a", "b", "c", "d"]))
    assert new.to_pydict() == {
        "uri": ["b", "c", "d"],
        "identity": ["v1"] * 3,
        "teachers": [0b110, 0b011, 0b111],
        "attempts": [[1, 1, 1]] * 3,
    }
    assert lacking == [2, 3, 2]
    again, lacking = claim_missing(ledgers, page(["a", "b", "c", "d", "e", "e"]))
    assert again.select(["uri", "teachers"]).to_pydict() == {"uri": ["e"], "teachers": [0b111]}
    assert lacking == [1, 1, 1]


def test_each_of_several_has_its_own_tries() -> None:
    failed = labelled(["a"], status="missing")
    ledgers = [Ledger(pl.concat([failed, failed]), 3), Ledger(labelled(["b"]), 3), Ledger(failed, 3)]
    new, _ = claim_missing(ledgers, page(["a", "b"]))
    assert new["attempts"].to_pylist() == [[3, 1, 2], [1, 1, 1]]
    nothing, _ = claim_missing(ledgers, page(["a", "b"]))
    assert nothing["attempts"].to_pylist() == []


def test_agrees_with_a_set_over_many_random_pages() -> None:
    rng = np.random.default_rng(0)
    ledger, seen = Ledger(labelled(), 3), set()
    for _ in range(60):
        names = [f"s3://bucket/{i}" for i in rng.integers(0, 3000, rng.integers(1, 200))]
        fresh = [name for name in dict.fromkeys(names) if name not in seen]
        assert claim(ledger, page(names))["uri"].to_pylist() == fresh
        seen.update(fresh)


def test_keys_are_sorted_out_by_what_their_rows_say() -> None:
    held = [labelled(["a", "b"]), labelled(["c"], status="too_large"), labelled(["d", "d", "e"], status="unreadable")]
    outcomes = sort_out(pl.concat(held), max_attempts=2)
    assert outcomes.markers == 0
    assert {name: len(keys) for name, keys in outcomes.settled.items()} == {DONE: 2, PERMANENT: 1, GIVEN_UP: 1}
    assert {tries: len(keys) for tries, keys in outcomes.to_retry.items()} == {1: 1}
    wanted = hash_keys(pa.array(list("abcde")), pa.array(["v1"] * 5))
    assert outcomes.settled[GIVEN_UP].contains(wanted).tolist() == [False, False, False, True, False]
    assert outcomes.to_retry[1].contains(wanted).tolist() == [False, False, False, False, True]


def test_a_failure_of_a_key_that_succeeded_is_no_key_of_its_own() -> None:
    held = [labelled(["a"]), labelled(["a", "b", "b"], status="missing"), labelled(["b"], status="too_large")]
    outcomes = sort_out(pl.concat(held), max_attempts=2)
    assert {name: len(keys) for name, keys in outcomes.settled.items()} == {DONE: 1, PERMANENT: 1, GIVEN_UP: 0}
    assert outcomes.to_retry == {}


@pytest.mark.parametrize("mark", MARKERS)
def test_marks_are_neither_attempts_nor_failures(mark: str) -> None:
    held = [labelled(["a"], status="missing"), *[labelled(["a", "b"], status=mark)] * 3]
    ledger = Ledger(pl.concat(held), max_attempts=2)
    assert (ledger.rows, ledger.markers) == (1, 0 if mark == KNOWN else 6)
    assert claim(ledger, page(["a", "b"])).num_rows == 2


def test_what_a_listing_has_met() -> None:
    held = [labelled(["done", "unmet"]), labelled(["bad"], status="too_large"), labelled(["retry"], status="missing")]
    ledger = Ledger(pl.concat(held), 3)
    claim(ledger, page(["done", "retry", "bad", "new"]))
    assert not ledger.all_seen()
    keys = page(["done", "unmet", "bad", "retry", "new", "other"])
    known, seen = ledger.look_up(hash_keys(keys["uri"], keys["identity"]))
    assert known.tolist() == [True, True, True, True, False, False]
    assert seen.tolist() == [True, False, True, True, False, False]
    claim(ledger, page(["unmet"]))
    assert ledger.all_seen()


def test_a_key_with_several_rows_has_to_be_met_once() -> None:
    held = [labelled(["photo", "photo", "photo", "other"]), labelled(["other"], status="missing")]
    ledger = Ledger(pl.concat(held), 3)
    claim(ledger, page(["photo"]))
    assert not ledger.all_seen()
    claim(ledger, page(["other"]))
    assert ledger.all_seen()


def test_the_next_listing_has_to_meet_what_the_last_one_claimed() -> None:
    ledger = Ledger(labelled(["a"]), 3)
    claim(ledger, page(["a", "b", "c"]))
    ledger.start_listing()
    assert not ledger.all_seen()
    assert claim(ledger, page(["a", "b", "d"]))["uri"].to_pylist() == ["d"]
    keys = page(["a", "b", "c", "d"])
    known, seen = ledger.look_up(hash_keys(keys["uri"], keys["identity"]))
    assert (known.tolist(), seen.tolist()) == ([True, True, True, False], [True, True, False, False])
    ledger.start_listing()
    assert claim(ledger, page(["a", "b", "c", "d"])).num_rows == 0
    assert ledger.all_seen()


def test_agrees_with_a_set_about_what_was_met() -> None:
    rng = np.random.default_rng(0)
    names = [f"s3://bucket/{i}" for i in range(5000)]
    ledger, seen = Ledger(labelled(names), 3), set()
    everything = hash_keys(pa.array(names), pa.array(["v1"] * len(names)))
    for _ in range(20):
        chosen = [names[i] for i in rng.integers(0, 4990, 300)]
        claim(ledger, page(chosen))
        seen.update(chosen)
        assert ledger.look_up(everything)[1].tolist() == [name in seen for name in names]
    assert not ledger.all_seen()
    claim(ledger, page(names))
    assert ledger.all_seen()


def test_what_is_read_from_a_table_is_what_it_says(tmp_path: Path) -> None:
    # Neither a pattern nor a partition.
    uri = str(tmp_path / "run=[1] *? é" / "t")
    table = create_table(uri, ("neutral", "anger"))
    assert Ledger(scan_keys(table, "m"), 3).rows == 0
    files = [write_file(uri, "m", rows(f"{i}.jpg"), "x") for i in range(20)]
    files.append(write_file(uri, "m", rows("bad.jpg", status="undecodable"), "x"))
    Committer(table, "m", "r").commit(files)
    Committer(table, "n", "r").commit([write_file(uri, "n", rows("of another model.jpg"), "x")])
    ledger = Ledger(scan_keys(table, "m"), 3)
    assert ledger.rows == 21
    listed = [*(f"{i}.jpg" for i in range(30)), "bad.jpg", "of another model.jpg"]
    assert claim(ledger, page(listed))["uri"].to_pylist() == [
        *(f"{i}.jpg" for i in range(20, 30)),
        "of another model.jpg",
    ]


def test_a_row_is_known_by_the_identity_it_was_listed_with_too() -> None:
    held = [
        labelled(["a", "b"], "read", listed="listed"),
        labelled(["bad"], "read", "undecodable", listed="listed"),
        labelled(["lost"], "read", "known", listed="listed"),
        labelled(["seen"], "v1"),
        labelled(["seen"], "v1", "known", listed="listed"),
        labelled(["failed"], "v1", "missing", listed="listed"),
        labelled(["seen"], "v1", "missing", listed="not read"),
    ]
    ledger = Ledger(pl.concat(held), 3)
    assert (ledger.rows, ledger.markers) == (5, 0)
    assert not ledger.all_seen()
    # What a mark calls known has a row, or it is new; a failure to read says nothing of a content.
    names = ["a", "b", "bad", "lost", "seen", "failed", "other"]
    assert claim(ledger, page(names, "listed"))["uri"].to_pylist() == ["lost", "failed", "other"]
    keys = page(["a", "b", "bad", "seen"], "read")
    assert ledger.look_up(hash_keys(keys["uri"], keys["identity"]))[1].tolist() == [True, True, True, False]
    assert not ledger.all_seen()
    assert claim(ledger, page(["seen"], "not read")).num_rows == 1
    assert not ledger.all_seen()
    assert claim(ledger, page(["seen", "failed"]))["uri"].to_pylist() == ["failed"]
    assert ledger.all_seen()
    assert claim(ledger, page(["a", "b", "bad"], "read")).num_rows == 0


def test_contents_that_were_read_otherwise_are_claimed_once() -> None:
    held = [labelled(["done"], "r"), labelled(["bad"], "r", "too_large"), labelled(["tried"] * 3, "r", "missing")]
    ledger = Ledger(pl.concat(held), 3)
    listed = page(["done", "bad", "tried", "new", "new", "listed too"], "l1")
    listed = listed.set_column(1, "identity", pa.array(["l1", "l1", "l1", "l1", "l2", "l1"]))
    claim(ledger, listed)
    claim(ledger, page(["listed too"], "r"))
    read = pa.array(["r"] * 6)
    assert ledger.claim_read(listed, read, remember=False).tolist() == [False, False, True, True, False, False]
    assert ledger.claim_read(listed, read, remember=False).tolist() == [False] * 6
    assert claim(ledger, page(["new", "tried"], "r")).num_rows == 0
    assert ledger.all_seen()  # they were read, so they are there


def test_the_next_listing_meets_what_was_read_otherwise_by_either_identity() -> None:
    ledger = Ledger(labelled(), 3)
    listed = page(["same", "overwritten"], "l")
    claim(ledger, listed)
    assert ledger.claim_read(listed, pa.array(["r", "r"]), remember=True).all()
    for _ in range(2):
        ledger.start_listing()
        assert claim(ledger, page(["same"], "l")).num_rows == 0
        assert not ledger.all_seen()
        assert claim(ledger, page(["overwritten"], "r")).num_rows == 0
        assert ledger.all_seen()
        assert len(ledger._aliases) == 4  # two, either way round; they do not grow from listing to listing


def test_what_need_not_be_remembered_is_no_alias() -> None:
    """Memory does not grow where no other listing follows."""
    ledger = Ledger(labelled(), 3)
    claim(ledger, page(["a"], "l"))
    assert ledger.claim_read(page(["a"], "l"), pa.array(["r"]), remember=False).all()
    ledger.start_listing()
    assert len(ledger._aliases) == 0
