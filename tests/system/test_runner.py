"""The runner alone, with a recipe that costs nothing, on a real cluster."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_fer import cluster
from ray_fer.training.runner import Run, fit
from tests.training.counting import ROWS, make_counting


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    cluster.connect()
    yield
    ray.shutdown()


def counting(folder: Path, epochs: int, **others: int) -> Run:
    return Run(folder=str(folder), make=functools.partial(make_counting, epochs), **others)


def test_tensors_of_a_recipe_survive(tmp_path: Path) -> None:
    """Also where the number of workers changes: they are the same on every rank."""
    first = fit(counting(tmp_path, 2, workers=2))
    assert [row["sightings"] for row in first.history] == [ROWS, 2 * ROWS]
    resumed = fit(counting(tmp_path, 4, workers=1))
    assert resumed.resumed == [2]
    assert [row["sightings"] for row in resumed.history] == [n * ROWS for n in (1, 2, 3, 4)]
    assert [row["score"] for row in resumed.history] == [1.0] * 4
