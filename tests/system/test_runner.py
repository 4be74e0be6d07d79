"""The runner alone, with a recipe that costs nothing, on a real cluster."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_fer import cluster
from ray_fer.errors import UserError
from ray_fer.training.finite import OnBadLoss
from ray_fer.training.runner import Run, fit
from tests.training.counting import ROWS, make_counting


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    cluster.connect()
    yield
    ray.shutdown()


def counting(folder: Path, epochs: int, workers: int, on_bad_loss: OnBadLoss = "stop", **options: Any) -> Run:
    make = functools.partial(make_counting, epochs, options)
    return Run(folder=str(folder), make=make, workers=workers, on_bad_loss=on_bad_loss)


@pytest.mark.slow
def test_tensors_of_a_recipe_survive(tmp_path: Path) -> None:
    """Also where the number of workers changes: they are the same on every rank."""
    first = fit(counting(tmp_path, 2, workers=2))
    assert [row["sightings"] for row in first.history] == [ROWS, 2 * ROWS]
    resumed = fit(counting(tmp_path, 4, workers=1))
    assert resumed.resumed == [2]
    assert [row["sightings"] for row in resumed.history] == [n * ROWS for n in (1, 2, 3, 4)]
    assert [row["score"] for row in resumed.history] == [1.0] * 4


@pytest.mark.slow
def test_a_bad_picture_stops_or_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On the second rank alone; the stopped run goes on from its last checkpoint when told to leave such steps out."""
    with pytest.raises(UserError, match=r"^the loss became nan in epoch 1, step \d: .*\brow-5\b") as error:
        fit(counting(tmp_path, 3, workers=2, bad=5))
    assert str(error.value).count("row-") == 3, "the first rank's pictures are not named"
    caplog.set_level("WARNING")
    outcome = fit(counting(tmp_path, 3, workers=2, bad=5, on_bad_loss="skip"))
    assert [row["skipped"] for row in outcome.history] == [1, 1, 1]
    assert [row["sightings"] for row in outcome.history] == [ROWS - 6, 2 * ROWS - 12, 3 * ROWS - 18]
    assert all(math.isfinite(row["loss"]) for row in outcome.history)
    assert all(weights.isfinite().all() for weights in outcome.weights.values())
    left_out = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert len(left_out) == 3
    assert all("row-5" in message for message in left_out)
