from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ray_fer.errors import UserError
from ray_fer.labeling.progress import (
    CHANCE,
    FEWEST_FOR_SHARE,
    Progress,
    binomial_tail,
    check_failures,
    check_outcome,
    too_many,
)
from ray_fer.labeling.unit import Row
from ray_fer.labeling.work import CONFIDENCE_BINS, SAMPLES_PER_CLASS, joint_stats, unit_stats

CLASSES = ("anger", "fear")


def rows_of(seeds: Sequence[int]) -> list[Row]:
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        digest, confidence = rng.bytes(16), np.float32(0.5 + seed % 50 / 100)
        rows.append(Row(f"/in/{seed}.jpg", "ok", digest=digest, label=CLASSES[seed % 2], confidence=confidence))
    return rows


def progress_of(*units: list[Row]) -> Progress:
    progress = Progress(CLASSES, 0.8, actors=4, device="cuda")
    for rows in units:
        progress.add(unit_stats(rows, CLASSES))
    return progress


def test_the_sums_do_not_depend_on_the_units() -> None:
    rows = [*rows_of(range(101)), Row("/in/bad.jpg", "undecodable", error="…")]
    whole, parts = progress_of(rows), progress_of(rows[70:], rows[:30], rows[30:70])
    assert whole.statuses == parts.statuses == {"ok": 101, "undecodable": 1}
    assert (whole.confidence == parts.confidence).all()
    assert whole.confidence.shape == (2, CONFIDENCE_BINS)
    assert whole.labels() == {"anger": 51, "fear": 50}
    assert whole.samples == parts.samples
    assert [len(found) for found in whole.samples.values()] == [SAMPLES_PER_CLASS] * 2
    assert (whole.done, whole.failed) == (102, 1)
    sure = sum(0.5 + seed % 50 / 100 >= 0.8 for seed in range(101))
    assert whole.sure_share() == pytest.approx(sure / 101)


def test_a_picture_that_lies_there_twice_is_shown_once() -> None:
    rows = rows_of([2, 2, 4])
    assert len(progress_of(rows[:1], rows[1:]).samples["anger"]) == 2


def test_the_line() -> None:
    progress = progress_of(rows_of([31, 33]), [Row("x", "missing")])
    progress.timeline = [(0.0, 0), (10.0, 2), (12.0, 3)]
    line = progress.line(left=None)
    assert line.startswith("3 labelled, 1 missing, 0.5 images/s, 0.00 GPU-hours, ")
    assert "to go" not in line
    line = progress.line(left=100)
    assert "3 of 103 labelled" in line
    assert "3:20 to go" in line
    assert "GPU-hours of 0.22" in line
    assert "100% at 0.8 or more, fear 100%" in line


def test_the_timeline_stays_short() -> None:
    progress = progress_of(*(rows_of([seed]) for seed in range(1500)))
    assert len(progress.timeline) <= 401
    assert progress.timeline[0] == (0.0, 0)
    assert progress.timeline[-1][1] == 1500


def test_of_several_teachers_images_count_once_and_predictions_each_time() -> None:
    bad = Row("/in/bad.jpg", "undecodable", error="…")
    first, second = [*rows_of([0, 1, 2]), bad], [*rows_of([1, 3]), bad]
    parts = [unit_stats(rows, CLASSES) for rows in (first, second)]
    progress = Progress(CLASSES, 0.8, actors=1, device="cpu")
    progress.add(joint_stats({"ok": 4, "undecodable": 1}, parts))
    assert (progress.done, progress.failed) == (5, 1)
    assert progress.labels() == {"anger": 2, "fear": 3}
    assert len(progress.samples["fear"]) == 2  # one picture of two teachers


def test_of_one_teacher_the_joint_description_is_its_own() -> None:
    stats = unit_stats([*rows_of(range(20)), Row("x", "missing")], CLASSES)
    assert joint_stats(stats.statuses, [stats]) == replace(stats, read_otherwise=[])


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


def progress_with(**counts: int) -> Progress:
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
        check_outcome(progress_with(**counts), share, already, failed)
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
    check_failures(progress_with(undecodable=999), 0.5, None)
    with pytest.raises(
        UserError, match=r"^max_failure_share=0.5: 501 of 1000 images failed \(501 missing\), most often"
    ):
        check_failures(progress_with(missing=501, ok=499), 0.5, None)
    with pytest.raises(UserError, match=r"^max_failures=2: 3 of 9 images failed \(3 crashed\)"):
        check_failures(progress_with(crashed=3, ok=6), 0.5, 2)
    check_failures(progress_with(crashed=2, ok=6), 0.5, 2)


def test_the_reason_is_the_most_frequent_of_the_most_frequent_kind() -> None:
    progress = progress_with(undecodable=3, missing=2)
    progress.errors = Counter({("missing", "vanished"): 9, ("undecodable", "cut"): 1, ("undecodable", "no picture"): 2})
    with pytest.raises(UserError, match=r"\(3 undecodable\), most often: no picture$"):
        check_failures(progress, 0.5, 0)
