"""The runner alone, with a recipe that costs nothing, on a real cluster."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from ray_fer import cluster
from ray_fer.errors import UserError
from ray_fer.training.rank import TrainSpec
from ray_fer.training.runner import Outcome, fit
from tests.training.counting import ROWS, make_counting


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    cluster.connect()
    yield
    ray.shutdown()


def counting(folder: Path, epochs: int, options: dict[str, Any] | None = None, **run: Any) -> TrainSpec:
    return TrainSpec(folder=str(folder), make=functools.partial(make_counting, epochs, options or {}), **run)


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in outcome.history]


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
        fit(counting(tmp_path, 3, {"bad": 5}, workers=2))
    assert str(error.value).count("row-") == 3, "the first rank's pictures are not named"
    caplog.set_level("WARNING")
    outcome = fit(counting(tmp_path, 3, {"bad": 5}, workers=2, on_bad_loss="skip"))
    assert [row["skipped"] for row in outcome.history] == [1, 1, 1]
    assert [row["sightings"] for row in outcome.history] == [ROWS - 6, 2 * ROWS - 12, 3 * ROWS - 18]
    assert all(math.isfinite(row["loss"]) for row in outcome.history)
    assert all(weights.isfinite().all() for weights in outcome.weights.values())
    left_out = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert len(left_out) == 3
    assert all("row-5" in message for message in left_out)
    with pytest.raises(UserError, match=r"and 4 more, all of them in .*/not_finite/epoch-1-step-1.json$"):
        fit(counting(tmp_path / "larger", 1, {"bad": 5, "steps": 1}, workers=2))
    pictures = json.loads((tmp_path / "larger" / "not_finite" / "epoch-1-step-1.json").read_text())["pictures"]
    assert len(set(pictures)) == 12
    assert "row-5" in pictures


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_a_worker_dies_in_an_epoch(tmp_path: Path, stage: int) -> None:
    """With accumulation, so in the middle of an optimiser step; the end is that of the undisturbed run to the bit."""
    grave = tmp_path / "disturbed" / "grave"
    options = {"accumulate": 2, "norm": True}
    undisturbed = fit(counting(tmp_path / "undisturbed", 4, options, workers=2, zero_stage=stage))
    disturbed = fit(counting(tmp_path / "disturbed", 4, options | {"grave": grave}, workers=2, zero_stage=stage))
    assert grave.exists()
    assert (undisturbed.resumed, disturbed.resumed) == ([], [1])
    assert rows(disturbed) == rows(undisturbed)
    assert [row["score"] for row in rows(disturbed)] == [1.0] * 4, "every row seen once per epoch"
    for name, weights in undisturbed.weights.items():
        assert torch.equal(disturbed.weights[name], weights), name


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "later"), [(0, 0), (3, 2)])
def test_fewer_workers_after_the_death_of_one(tmp_path: Path, stage: int, later: int) -> None:
    """The same steps: all that differs is the order in which floats are summed, about 1e-7 of what a weight moves.

    A BatchNorm would add that its statistics are those of one rank's part of a batch.
    """
    undisturbed = fit(counting(tmp_path / "undisturbed", 4, workers=2, zero_stage=stage))
    dying = {"grave": tmp_path / "disturbed" / "grave"}
    with pytest.raises(RuntimeError, match="max_failures=0"):
        fit(counting(tmp_path / "disturbed", 4, dying, workers=2, zero_stage=stage, max_failures=0))
    disturbed = fit(counting(tmp_path / "disturbed", 4, dying, workers=1, zero_stage=later, max_failures=0))
    assert disturbed.resumed == [1]
    for one, other in zip(rows(disturbed), rows(undisturbed), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for name, weights in undisturbed.weights.items():
        torch.testing.assert_close(disturbed.weights[name], weights, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version(tmp_path: Path) -> None:
    fit(counting(tmp_path, 1))
    (moments,) = tmp_path.glob("ray/*/moments.safetensors")
    moments.unlink()
    with pytest.raises(UserError, match=rf"^{tmp_path} holds a run of an earlier version"):
        fit(counting(tmp_path, 2))
