from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ray_fer.labeling.progress import CONFIDENCE_BINS, SAMPLES_PER_CLASS, Progress, unit_stats

CLASSES = ("anger", "fear")


def rows_of(seeds: Sequence[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        row = {"uri": f"/in/{seed}.jpg", "digest": rng.bytes(16), "status": "ok"}
        rows.append(row | {"label": CLASSES[seed % 2], "confidence": np.float32(0.5 + seed % 50 / 100)})
    return rows


def progress_of(*units: list[dict[str, Any]]) -> Progress:
    progress = Progress(CLASSES, 0.8, actors=4, device="cuda")
    for rows in units:
        progress.add(unit_stats(rows, CLASSES))
    return progress


def test_the_sums_do_not_depend_on_the_units() -> None:
    rows = [*rows_of(range(101)), {"uri": "/in/bad.jpg", "status": "undecodable", "error": "…"}]
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
    progress = progress_of(rows_of([31, 33]), [{"uri": "x", "status": "missing"}])
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
