"""What fits where, and what is said of what does not."""

from __future__ import annotations

import pytest

from ray_fer.errors import UserError
from ray_fer.room import Demand, Patience, check_room, describe, places, waiting_line

TWO_CORES = [{"CPU": 2.0, "memory": 8e9}]
HEAD_AND_GPUS = [{"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 32.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("nodes", "share", "most"),
    [
        (TWO_CORES, {"CPU": 1}, 2),
        (TWO_CORES, {"CPU": 2}, 1),
        (TWO_CORES, {"CPU": 3}, 0),
        (TWO_CORES, {"CPU": 1, "GPU": 1}, 0),
        (TWO_CORES, {"CPU": 1, "GPU": 0}, 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 2}, 2),  # 6 CPUs, but a worker is on one node
        (HEAD_AND_GPUS, {"CPU": 8, "GPU": 1}, 5),
        (HEAD_AND_GPUS, {"CPU": 16, "GPU": 1}, 2),
        (HEAD_AND_GPUS, {"CPU": 1, "GPU": 0.125}, 40),
        ([{"GPU": 0.3}], {"GPU": 0.1}, 3),
        ([], {"CPU": 1}, 0),
    ],
)
def test_places(nodes: list[dict[str, float]], share: dict[str, float], most: int) -> None:
    assert places(nodes, share) == most


def test_words() -> None:
    assert describe({"CPU": 1}) == "1 CPU"
    assert describe({"CPU": 4, "GPU": 2, "memory": 1}) == "4 CPUs and 2 GPUs"
    assert describe({"GPU": 1, "CPU": 0}) == "1 GPU"
    assert describe({"GPU": 1}, ["CPU"]) == "0 CPUs and 1 GPU"
    assert describe({}) == "nothing"
    assert describe({"CPU": 1, "GPU": 0.125}) == "1 CPU and 0.125 GPUs"


def test_what_a_machine_can_never_run_is_refused() -> None:
    check_room(Demand("workers", 2, {"CPU": 1}), TWO_CORES)
    with pytest.raises(UserError) as refused:
        check_room(Demand("workers", 3, {"CPU": 1}), TWO_CORES)
    assert str(refused.value) == (
        "workers=3: there is no room for 3 workers with 1 CPU each, this machine has 2 CPUs; workers=2 is the most"
    )
    with pytest.raises(UserError, match=r"no room for 1 worker with 1 CPU and 1 GPU, this machine has 2 CPUs$"):
        check_room(Demand("actors", 1, {"CPU": 1, "GPU": 1}), TWO_CORES)


def test_the_line_names_what_is_asked_for_and_what_is_there() -> None:
    assert waiting_line(Demand("workers", 3, {"CPU": 1}), TWO_CORES, {"CPU": 1}) == (
        "waiting for 3 workers with 1 CPU each: there is 1 node with 2 CPUs, free of it 1 CPU; "
        "empty, it would have room for 2"
    )
    assert waiting_line(Demand("actors", 1, {"GPU": 1, "CPU": 1}), [{"CPU": 0}], {}) == (
        "waiting for 1 worker with 1 CPU and 1 GPU: there is 1 node with 0 CPUs and 0 GPUs, free of it "
        "0 CPUs and 0 GPUs; empty, it would have room for 0"
    )


def test_patience_says_so_every_half_minute_and_ends() -> None:
    now = [0.0]
    patience = Patience(Demand("workers", 3, {"CPU": 1}), minutes=2, clock=lambda: now[0])

    def said(second: float) -> bool:
        now[0] = second
        return patience.look(lambda: (TWO_CORES, {"CPU": 2})) is not None

    assert [said(second) for second in (0, 29.9, 30, 31, 59, 60)] == [False, False, True, False, False, True]
    patience.note(False)  # asked for once more: it has waited all the same
    patience.note(True)
    assert not said(1000)
    patience.note(False)
    assert [said(second) for second in (1029, 1030, 1119)] == [False, True, True]
    now[0] = 1120
    with pytest.raises(UserError, match=r"^wait_minutes=2: given up waiting for 3 workers with 1 CPU each: .* 1 node"):
        patience.look(lambda: (TWO_CORES, {"CPU": 2}))


def test_without_a_limit_it_waits_for_ever() -> None:
    now = [0.0]
    patience = Patience(Demand("workers", 3, {"CPU": 1}), minutes=None, clock=lambda: now[0])
    now[0] = 1e7
    assert patience.look(lambda: (TWO_CORES, {})) is not None
