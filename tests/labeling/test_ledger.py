import numpy as np
import pyarrow as pa
import pytest

from ray_fer.labeling.ledger import Ledger, hash_keys


def page(names: list[str], identity: str = "v1") -> pa.Table:
    return pa.table({"uri": names, "identity": [identity] * len(names)})


def labelled(names: list[str], identity: str = "v1", status: str = "ok") -> pa.RecordBatch:
    return pa.record_batch({"uri": names, "identity": [identity] * len(names), "status": [status] * len(names)})


def test_only_unlabelled_keys_are_claimed_and_only_once() -> None:
    ledger = Ledger([labelled(["a", "b"]), labelled(["c"])], max_attempts=3)
    assert ledger.rows == 3
    assert ledger.claim(page(["a", "b", "c", "d", "e"]))["uri"].to_pylist() == ["d", "e"]
    assert ledger.claim(page(["e", "f"]))["uri"].to_pylist() == ["f"]


def test_another_identity_is_new_work() -> None:
    ledger = Ledger([labelled(["a"], "v1")], max_attempts=3)
    assert ledger.claim(page(["a"], "v2"))["uri"].to_pylist() == ["a"]


def test_a_key_twice_in_one_page_is_claimed_once() -> None:
    assert Ledger([], 3).claim(page(["a", "b", "a", "a"]))["uri"].to_pylist() == ["a", "b"]


def test_uri_and_identity_do_not_run_together() -> None:
    a = hash_keys(pa.array(["ab"]), pa.array(["c"]))
    b = hash_keys(pa.array(["a"]), pa.array(["bc"]))
    assert (a != b).all()
    swapped = hash_keys(pa.array(["c"]), pa.array(["ab"]))
    assert (a != swapped).all()


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_transient_failures_are_tried_a_bounded_number_of_times(attempts: int) -> None:
    ledger = Ledger([labelled(["a"], status="missing")] * attempts, max_attempts=3)
    assert ledger.claim(page(["a"])).num_rows == (1 if attempts < 3 else 0)


def test_permanent_failures_and_later_successes_are_settled() -> None:
    ledger = Ledger([labelled(["a"], status="undecodable"), labelled(["b"], status="missing"), labelled(["b"])], 3)
    assert ledger.claim(page(["a", "b"])).num_rows == 0


def test_agrees_with_a_set_over_many_random_pages() -> None:
    rng = np.random.default_rng(0)
    ledger, seen = Ledger([], 3), set()
    for _ in range(60):
        names = [f"s3://bucket/{i}" for i in rng.integers(0, 3000, rng.integers(1, 200))]
        fresh = [name for name in dict.fromkeys(names) if name not in seen]
        assert ledger.claim(page(names))["uri"].to_pylist() == fresh
        seen.update(fresh)
