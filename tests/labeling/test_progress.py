from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ray_fer.labeling.progress import CONFIDENCE_BINS, SAMPLES_PER_CLASS, Progress, joint_stats, unit_stats
from ray_fer.labeling.unit import Row

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
