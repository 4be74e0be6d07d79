"""Unlabeled pictures as a stream to two ranks, on a real Ray."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from ray_fer import cluster
from ray_fer.data import stream
from ray_fer.data.sampling import PICTURES, shuffled
from ray_fer.data.stream import PictureStream
from ray_fer.jobs import backbone_context as builder
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.methods.online import OnlineMethod
from ray_fer.training.world import World
from tests.system.jobs import processes
from tests.training.epochs import run_epochs
from tests.training.toy import config, write_faces

BATCH, STEPS, RANKS = 5, 4, 2
BAD = 7


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    cluster.connect()
    # Ray Train holds what the ranks compute on, and without a GPU that is every core.
    held = ray.util.placement_group([{"CPU": cluster.cpus()}])
    assert held.wait(60)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Board:
    """Where rank 0 leaves what all read."""

    def __init__(self) -> None:
        self.notes: dict[int, bytes] = {}

    def put(self, number: int, note: bytes) -> None:
        self.notes[number] = note

    def get(self, number: int) -> bytes | None:
        return self.notes.get(number)


@ray.remote(num_cpus=0)
def rank_of(rank: int, uris: list[str], board: Any, epochs: list[int], left: int, kill: bool) -> list[Any]:
    """What one rank sees in each of ``epochs``, in a process of its own; it takes only ``left`` steps of the first.

    Rank 0 can ``kill`` the decoders after its first step, when they are not far ahead.
    """
    shares = iter(range(len(epochs)))

    def share(note: bytes) -> bytes:
        number = next(shares)
        if rank == 0:
            ray.get(board.put.remote(number, note))
        while (found := ray.get(board.get.remote(number))) is None:
            time.sleep(0.05)
        return bytes(found)

    numbers = {"batch": BATCH, "steps": STEPS, "epochs": epochs[-1] + 1, "rank": rank, "ranks": RANKS}
    if kill:
        stream._WAITING = 0
    pictures = PictureStream(uris, 32, **numbers, broadcast=share, seed=3, decoders=2)
    first = []
    for batch in islice(pictures.epoch(epochs[0]), left):
        if kill and not first and rank == 0:
            decoders = processes(os.getsid(0), "MapWorker")
            assert decoders, "no decoder to kill"
            for pid in decoders:
                os.kill(pid, signal.SIGKILL)
        first.append(batch)
    return [first, *(list(pictures.epoch(epoch)) for epoch in epochs[1:])]


def run(uris: list[str], epochs: list[int], left: int = STEPS + 1, kill: bool = False) -> list[list[Any]]:
    """Of every epoch, the batches of both ranks."""
    board = Board.remote()  # type: ignore[attr-defined]
    seen = ray.get([rank_of.remote(rank, uris, board, epochs, left, kill) for rank in range(RANKS)])
    return [[ranks[number] for ranks in seen] for number in range(len(epochs))]


@pytest.mark.slow
def test_every_row_once_and_the_same_again(tmp_path: Path) -> None:
    write_faces(tmp_path, (20, 10, 10))
    uris = sorted(str(path) for path in tmp_path.glob("*.png"))
    Path(uris[BAD]).write_bytes(b"damaged")
    first, second = run(uris, [0, 1])
    for epoch in (first, second):
        assert [len(rank) for rank in epoch] == [STEPS] * RANKS
        rows = np.concatenate([rows for rank in epoch for rows, _, _ in rank])
        assert Counter(rows.tolist()) == dict.fromkeys(range(40), 1)
    for number, epoch in enumerate((first, second)):
        order = shuffled(40, number * 40, 40, 3, PICTURES).reshape(STEPS, RANKS, BATCH)
        for rank in range(RANKS):
            assert [rows.tolist() for rows, _, _ in epoch[rank]] == order[:, rank].tolist()
    [alone], [_, after_one_left] = run(uris, [1]), run(uris, [0, 1], left=2)
    [_, after_a_kill] = run(uris, [0, 1], kill=True)
    for again, rank in product((alone, after_one_left, after_a_kill), range(RANKS)):
        for (rows, pixels, ok), (other_rows, other_pixels, other_ok) in zip(second[rank], again[rank], strict=True):
            assert np.array_equal(rows, other_rows)
            assert np.array_equal(pixels, other_pixels)
            assert np.array_equal(ok, other_ok)
            assert ok.tolist() == [row != BAD for row in rows]
            assert pixels[ok].any(axis=(1, 2, 3)).all()
            assert not pixels[~ok].any()


def test_an_online_recipe_takes_the_stream_where_faces_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "CACHE_BYTES", 1)
    monkeypatch.setattr(stream, "_BLOCKS", 1)  # an execution for every epoch
    for name, counts in (("train", (8, 8, 8)), ("val", (8, 8, 8)), ("more", (20, 10, 10))):
        write_faces(tmp_path / name, counts)
    uris = sorted(str(path) for path in (tmp_path / "more").glob("*.png"))
    more = (f"unlabeled={tmp_path / 'more'}", "method=online", "feedback=none", "batch_size=8", "epochs=2")
    recipe = builder.build_method(open_inputs(config(tmp_path, *more)), World(), uris)
    assert isinstance(recipe, OnlineMethod)
    assert all(np.isfinite(run_epochs(recipe, range(2))))
    # 24 labelled faces are three steps of 16 unlabeled ones: after 96 draws each of 40 was seen.
    assert (recipe.named >= 0).all()
