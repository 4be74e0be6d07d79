"""Labelled pictures by index: read, decoded once, and kept as pixels.

A labelled set is small (thousands to a few hundred thousand crops) and is seen dozens of times, so the cheapest loader
is memory: at 48 px a million pictures are 7 GB. A set that fits the budget is decoded once into one uint8 array; any
other is read anew, with many requests in flight where the store is remote. There are no worker processes: the decoders
release the GIL, so a few threads are enough, and nothing is pickled.

A picture that cannot be read or decoded is marked in its row, and raises nothing until there are too many of them.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_fer.data.crop import decode_uri_into
from ray_fer.data.decode import DecodeError, Pixels
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.errors import UserError

log = logging.getLogger(__name__)

CACHE_BYTES = 4 << 30
MAX_BAD_SHARE = 0.05
MAX_PICTURE_BYTES = 64 << 20
_LOGGED = 10
_MAX_THREADS = 8

Indices = NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R")


class ImageLoader:
    """Pixels of ``uris`` by index. Only one thread at a time may use it.

    Args:
        uris: all local paths, or all ``s3://`` URIs.
        image_size: side S of the square pictures.
        cache_bytes: keep decoded pixels if all of them fit into this many bytes, else keep none.
        name: what messages call the set, for example ``labeled``.

    Attributes:
        bad: the reason for each unreadable picture so far, by URI.
    """

    def __init__(
        self,
        uris: Sequence[str],
        image_size: int,
        *,
        cache_bytes: int = CACHE_BYTES,
        name: str = "images",
    ) -> None:
        self.uris = uris
        self.image_size = image_size
        self.name = name
        self.bad: dict[str, str] = {}
        shape = (len(uris), image_size, image_size, 3)
        # Pages of np.empty are only taken from the system when they are written.
        self._cache = np.empty(shape, np.uint8) if np.prod(shape, dtype=np.int64) <= cache_bytes else None
        self._known = np.zeros(len(uris), bool)
        self._ok = np.zeros(len(uris), bool)
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS), "decode")

    def batch(self, indices: Indices) -> tuple[Pixels, NDArray[np.bool_]]:
        """The pictures at ``indices`` int64 (B,), in their order; an index may repeat.

        Returns:
            pixels uint8 (B, S, S, 3), zero where unreadable, and ok bool (B,).

        Raises:
            UserError: once more than 5 % of all pictures have turned out to be unreadable.
        """
        if self._cache is not None:
            missing = np.unique(indices[~self._known[indices]])
            self._read(missing, self._cache, missing)
            return self._cache[indices], self._ok[indices]
        unique, positions = np.unique(indices, return_inverse=True)
        pixels = np.empty((len(unique), self.image_size, self.image_size, 3), np.uint8)
        self._read(unique, pixels, np.arange(len(unique)))
        return pixels[positions], self._ok[indices]

    def _read(self, indices: Indices, out: Pixels, rows: Indices) -> None:
        """Puts the picture at ``indices[i]`` into ``out[rows[i]]``."""
        reads = read_objects((Item(self.uris[index], "", 0) for index in indices), MAX_PICTURE_BYTES)
        decoding = [self._pool.submit(decode_read, read, out[row]) for read, row in zip(reads, rows, strict=True)]
        for index, future in zip(indices, decoding, strict=True):
            problem = future.result()
            self._known[index], self._ok[index] = True, problem is None
            if problem is not None:
                self._report(self.uris[index], problem)

    def _report(self, uri: str, problem: str) -> None:
        if uri in self.bad:
            return
        self.bad[uri] = problem
        report_bad(self.name, uri, problem, len(self.bad), len(self.uris))


def report_bad(name: str, uri: str, problem: str, bad: int, total: int) -> None:
    """Logs an unreadable picture, if it is among the first.

    Args:
        name: what messages call the set.
        uri: of the picture.
        problem: why it is unreadable.
        bad: how many are unreadable so far.
        total: of how many.

    Raises:
        UserError: when more than 5 % are.
    """
    if bad <= _LOGGED:
        log.warning("%s: %s is left out: %s", name, uri, problem)
    if bad > MAX_BAD_SHARE * total:
        raise UserError(
            f"{name}: {bad} of {total} pictures cannot be read, more than {MAX_BAD_SHARE:.0%}; "
            f"the last: {uri} ({problem})"
        )


def decode_read(read: Read, out: Pixels) -> str | None:
    """Decodes a picture into ``out`` uint8 (S, S, 3); returns what is wrong with it, where ``out`` is zero, or None."""
    problem: str | None = f"{read.status}: {read.error}"
    if read.data is not None:
        try:
            decode_uri_into(read.item.uri, read.data, out)
            return None
        except DecodeError as error:
            problem = str(error)
    out[...] = 0
    return problem


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
