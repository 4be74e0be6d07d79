from collections import Counter
from typing import Any

import pytest

from ray_fer.errors import UserError
from ray_fer.labeling.failures import CHANCE, FEWEST_FOR_SHARE, binomial_tail, check, check_outcome, too_many
from ray_fer.labeling.progress import Progress, unit_stats
from ray_fer.labeling.unit import Row


def test_the_tail_of_a_binomial_distribution() -> None:
    assert binomial_tail(3, 3, 0.5) == pytest.approx(1 / 8)
    assert binomial_tail(9, 10, 0.5) == pytest.approx(11 / 1024)
    assert binomial_tail(2, 3, 0.2) == pytest.approx(3 * 0.04 * 0.8 + 0.008)
    assert binomial_tail(0, 7, 0.3) == 1
    assert binomial_tail(999, 999, 0.01) == 0
    assert binomial_tail(1, 5, 0) == 0
    assert binomial_tail(5, 5, 1) == 1
    assert sum(binomial_tail(k, 60, 0.3) - binomial_tail(k + 1, 60, 0.3) for k in range(61)) == pytest.approx(1)


def test_of_few_images_so_many_have_to_fail_that_it_is_no_chance() -> None:
    assert CHANCE == 1e-9
    assert not too_many(29, 29, 0.5)  # 1.9e-9
    assert too_many(30, 30, 0.5)  # 0.9e-9
    assert too_many(400, 400, 0.5)
    assert not too_many(34, 35, 0.5)  # 36 in 2**35
    assert too_many(35, 36, 0.5)  # 37 in 2**36
    assert not too_many(60, 100, 0.5)
    assert not too_many(400, 400, 1)
    assert too_many(1, 1, 0)
    assert not too_many(0, 0, 0)


def test_of_many_images_the_share_is_compared() -> None:
    assert not too_many(500, FEWEST_FOR_SHARE, 0.5)
    assert too_many(501, FEWEST_FOR_SHARE, 0.5)
    assert not too_many(500, FEWEST_FOR_SHARE - 1, 0.5)


def progress_of(**counts: int) -> Progress:
    """Of images per status; ``again`` before one tells that they had been tried before."""
    rows = []
    for name, count in counts.items():
        status = name.removeprefix("again_")
        facts: dict[str, Any] = {"status": status, "attempt": 2 if status != name else 1}
        if status != "ok":
            facts["error"] = f"{status} for a reason"
        rows += [Row(f"/{name}/{i}", digest=bytes(16), label="x", confidence=1.0, **facts) for i in range(count)]
    progress = Progress(["x"], 0.8, actors=1, device="cpu")
    progress.add(unit_stats(rows, ["x"]))
    return progress


def outcome(already: int = 0, share: float = 0.5, failed: int = 0, **counts: int) -> str:
    try:
        check_outcome(progress_of(**counts), share, already, failed)
    except UserError as error:
        return str(error)
    return ""


def test_a_run_in_which_nothing_could_be_labelled_has_failed() -> None:
    assert outcome(undecodable=400) == (
        "nothing could be labelled: 400 of 400 images failed (400 undecodable), most often: undecodable for a reason"
    )
    assert outcome(undecodable=2, missing=1) == (
        "nothing could be labelled: 3 of 3 images failed (2 undecodable), most often: undecodable for a reason"
    )
    assert outcome(undecodable=1, ok=1) == ""
    assert outcome(undecodable=3, no_face=1) == ""
    assert outcome(undecodable=3, already=1) == ""
    assert outcome(again_missing=3).startswith("nothing could be labelled: 3 of 3")
    assert outcome(share=1, undecodable=400) == outcome(share=1, failed=400) == ""
    assert outcome(undecodable=10, failed=400).startswith("nothing could be labelled: 10 of 10")
    again = "nothing could be labelled: earlier runs failed on all 400 images, as their rows say"
    assert outcome(failed=400) == again, "the same command again has not mended it"
    assert outcome(ok=5) == outcome() == outcome(already=7) == ""


def test_beside_what_is_labelled_already_many_new_failures_are_one() -> None:
    failure = "max_failure_share=0.5: 40 of 40 images failed (40 undecodable), most often: undecodable for a reason"
    assert outcome(undecodable=40, already=10**6) == failure
    assert outcome(undecodable=40, again_unreadable=3, already=10**6) == failure
    assert outcome(undecodable=12, already=10**6) == ""
    assert outcome(again_unreadable=900, already=10**6) == ""
    assert outcome(again_unreadable=900, undecodable=1, ok=1, already=10**6) == ""


def test_while_a_run_goes_on_only_what_is_certain_stops_it() -> None:
    check(progress_of(undecodable=999), 0.5, None)
    with pytest.raises(
        UserError, match=r"^max_failure_share=0.5: 501 of 1000 images failed \(501 missing\), most often"
    ):
        check(progress_of(missing=501, ok=499), 0.5, None)
    with pytest.raises(UserError, match=r"^max_failures=2: 3 of 9 images failed \(3 crashed\)"):
        check(progress_of(crashed=3, ok=6), 0.5, 2)
    check(progress_of(crashed=2, ok=6), 0.5, 2)


def test_the_reason_is_the_most_frequent_of_the_most_frequent_kind() -> None:
    progress = progress_of(undecodable=3, missing=2)
    progress.errors = Counter({("missing", "vanished"): 9, ("undecodable", "cut"): 1, ("undecodable", "no picture"): 2})
    with pytest.raises(UserError, match=r"\(3 undecodable\), most often: no picture$"):
        check(progress, 0.5, 0)
