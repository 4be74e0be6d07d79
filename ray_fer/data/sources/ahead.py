"""Draws from several streams at once, so that their waiting overlaps."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
A = TypeVar("A")


def interleaved(streams: Sequence[A], make: Callable[[A], Iterable[T]], width: int) -> Iterator[T]:
    """Yields what ``make`` yields for each of ``streams``, in the order in which it comes.

    Threads draw from ``width`` streams at a time, a few items ahead of the consumer. The first exception of a stream
    ends all. When the consumer stops, the threads end after their current items.
    """
    if len(streams) == 1:
        yield from make(streams[0])
        return
    todo = iter(streams)
    lock = threading.Lock()
    stop = threading.Event()
    ready: queue.Queue[T | Exception | None] = queue.Queue(maxsize=2 * width)

    def put(item: T | Exception | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                break

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    stream = next(todo, None)
                if stream is None:
                    break
                for item in make(stream):
                    put(item)
                    if stop.is_set():
                        return
            put(None)
        except Exception as error:
            put(error)

    running = min(width, len(streams))
    for _ in range(running):
        threading.Thread(target=work, daemon=True).start()
    try:
        while running:
            item = ready.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        stop.set()
