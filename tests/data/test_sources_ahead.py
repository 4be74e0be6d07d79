"""Several streams at once: all of what they yield, an error passed on, and nothing left running."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from ray_fer.data.sources.ahead import interleaved


def numbers(start: int) -> Iterator[int]:
    yield from range(start, start + 50)


@pytest.mark.parametrize("width", [1, 3, 20])
@pytest.mark.parametrize("streams", [1, 2, 7])
def test_everything_comes_once_and_each_stream_in_its_order(streams: int, width: int) -> None:
    found = list(interleaved([100 * n for n in range(streams)], numbers, width))
    assert sorted(found) == [100 * n + i for n in range(streams) for i in range(50)]
    for n in range(streams):
        assert [x for x in found if x // 100 == n] == list(numbers(100 * n))


@pytest.mark.parametrize("streams", [1, 5])
def test_an_error_is_passed_on(streams: int) -> None:
    def failing(start: int) -> Iterator[int]:
        yield start
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        list(interleaved(range(streams), failing, 2))


@pytest.mark.timeout(30)
def test_threads_end_with_the_consumer() -> None:
    before = threading.active_count()
    drawn = interleaved(range(4), lambda _: itertools.count(), 4)
    assert next(drawn) == 0
    drawn.close()
    while threading.active_count() > before:
        time.sleep(0.01)
