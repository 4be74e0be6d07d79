"""Makes results ahead in the background, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(make: Callable[[T], R], items: Iterable[T], depth: int = 2) -> Iterator[R]:
    """Yields ``make(item)`` of every item in order, up to ``depth`` of them made ahead by one background thread."""
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
