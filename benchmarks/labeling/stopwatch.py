"""CPU time of the parts of a running program, each without the parts that it calls."""

from __future__ import annotations

import functools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
T = TypeVar("T")


class Stopwatch:
    """Adds up the CPU time that the calling thread spends in named parts.

    A part that is called inside another counts for itself alone, so that parts can be added.

    Attributes:
        seconds: of each part so far.
        calls: of all parts together, each of which costs two looks at the clock.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls = 0
        self._inner: list[float] = []

    def timed(self, name: str, function: Callable[..., R]) -> Callable[..., R]:
        """``function``, whose time goes to the part ``name``."""

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> R:
            self._inner.append(0.0)
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - started
                self.seconds[name] += spent - self._inner.pop()
                self.calls += 1
                if self._inner:
                    self._inner[-1] += spent

        return measured

    def timed_iterator(self, name: str, function: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
        """``function``, which answers with an iterator whose steps go to the part ``name``."""

        def measured(*args: Any, **kwargs: Any) -> Iterator[T]:
            step = self.timed(name, functools.partial(next, function(*args, **kwargs), None))
            while (item := step()) is not None:
                yield item

        return measured

    def save(self, folder: Path) -> None:
        """Writes what there is so far to a file of this process in ``folder``."""
        target = folder / f"{os.getpid()}.json"
        partial = target.with_suffix(".tmp")
        partial.write_text(json.dumps({"seconds": self.seconds, "calls": self.calls}))
        partial.replace(target)


def saved(folder: Path) -> tuple[Counter[str], int]:
    """Seconds by part and calls of all processes that have saved theirs in ``folder``."""
    seconds: Counter[str] = Counter()
    calls = 0
    for file in folder.glob("*.json"):
        one = json.loads(file.read_text())
        seconds.update(one["seconds"])
        calls += one["calls"]
    return seconds, calls


def seconds_a_call() -> float:
    """CPU time that timing a call takes by itself."""
    watch = Stopwatch()
    nothing, count = watch.timed("nothing", lambda: None), 100_000
    started = time.process_time()
    for _ in range(count):
        nothing()
    return (time.process_time() - started) / count
