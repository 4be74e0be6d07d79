"""Sets of hashed keys: at most 24 bytes and a bit a key.

A key has two independent 64-bit hashes. A set keeps the first halves of its keys as one sorted array and the second
halves as another: either is sorted in place, with nothing carried along, and a key belongs to the set when both of its
halves are there. A collision would cost one image its label. Among N keys a new one is mistaken for a known one with a
chance of (N / 2⁶⁴)²: at N = 10⁸ that is 3·10⁻²³ per key, and 3·10⁻¹⁵ for a listing of 10⁸ new keys.

The bit says whether a listing has seen the key: what it has not seen may be gone from the sources (see `tombstones`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

KeyHashes = npt.NDArray[np.uint64]
"""Hashed keys, (2, N)."""
Bools = npt.NDArray[np.bool_]

_SLICE = 1 << 18
_LAST = np.array([np.iinfo(np.uint64).max], np.uint64)


def _hashes_with(identity: str, *names: str) -> list[pl.Expr]:
    seeds = ((1, 2), (3, 4))
    return [
        (pl.col("uri").hash(seed=a) ^ pl.col(identity).hash(seed=b)).alias(name)
        for name, (a, b) in zip(names, seeds, strict=True)
    ]


KEY_HASHES = _hashes_with("identity", "first", "second")
# Of no use where the listed identity is null.
LISTED_HASHES = _hashes_with("listed_identity", "listed_first", "listed_second")
URI_HASH = pl.col("uri").hash(seed=5).alias("hash")


def hash_keys(uri: pa.Array | pa.ChunkedArray, identity: pa.Array | pa.ChunkedArray) -> KeyHashes:
    """The two 64-bit hashes of (uri, identity).

    Args:
        uri: N strings.
        identity: N strings.

    Returns:
        uint64 (2, N).
    """
    return key_hashes(pl.DataFrame({"uri": pl.from_arrow(uri), "identity": pl.from_arrow(identity)}).select(KEY_HASHES))


def key_hashes(hashed: pl.DataFrame) -> KeyHashes:
    """The columns that `KEY_HASHES` makes, as uint64 (2, N)."""
    return np.stack([hashed["first"].to_numpy(), hashed["second"].to_numpy()])


def listed_key_hashes(hashed: pl.DataFrame) -> KeyHashes:
    """The columns that `LISTED_HASHES` makes, as uint64 (2, N)."""
    return np.stack([hashed["listed_first"].to_numpy(), hashed["listed_second"].to_numpy()])


def hash_uris(uris: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The 64-bit hashes of N URIs, uint64 (N,)."""
    return pl.DataFrame({"uri": pl.from_arrow(uris)}).select(URI_HASH)["hash"].to_numpy()


class SortedHashes:
    """Uniform 64-bit hashes, sorted. Their top bits tell where they lie, so that a search takes a step or two.

    An index has an entry of 4 bytes for one or two hashes.

    Args:
        parts: arrays of uint64 (N,), in any order; the list is emptied, so that memory need not hold them twice.
    """

    def __init__(self, parts: list[npt.NDArray[np.uint64]]) -> None:
        # The highest hash there is, at the end, stops every search.
        self._hashes = np.concatenate([*parts, _LAST])
        parts.clear()
        self._hashes.sort()
        bits = max(1, len(self).bit_length() - 1)
        self._shift = np.uint64(64 - bits)
        # Where the hashes with these top bits start: as many as there are below.
        self._starts = np.zeros((1 << bits) + 1, np.uint32)
        for start in range(0, len(self), _SLICE):
            slots = (self.values()[start : start + _SLICE] >> self._shift).astype(np.int64)
            counts = np.bincount(slots - slots[0])
            self._starts[slots[0] + 1 : slots[0] + 1 + len(counts)] += counts.astype(np.uint32)
        np.cumsum(self._starts, dtype=np.uint32, out=self._starts)

    def __len__(self) -> int:
        return len(self._hashes) - 1

    def values(self) -> npt.NDArray[np.uint64]:
        """The hashes in order, uint64 (N,)."""
        return self._hashes[:-1]

    def find(self, wanted: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], Bools]:
        """Where each of (M,) hashes is first, or would be, and whether it is there; int64 and bool (M,)."""
        place = self._starts[wanted >> self._shift].astype(np.int64)
        left = np.flatnonzero(self._hashes[place] < wanted)
        while len(left):
            place[left] += 1
            left = left[self._hashes[place[left]] < wanted[left]]
        return place, self._hashes[place] == wanted

    def contains(self, wanted: npt.NDArray[np.uint64]) -> Bools:
        """Which of (M,) hashes are there, bool (M,)."""
        return self.find(wanted)[1]


class _SortedRun:
    """Keys in the order of their first halves, with a bit for each that was seen."""

    def __init__(self, first: SortedHashes, second: SortedHashes) -> None:
        self.halves = [first, second]
        self.seen = np.zeros(len(first) // 8 + 1, np.uint8)

    def __len__(self) -> int:
        return len(self.halves[0])

    def find(self, hashes: KeyHashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which of (2, N) hashes are there, and the places of these; int64 (M,) each."""
        places, likely = self.halves[0].find(hashes[0])
        rows = np.flatnonzero(likely)
        rows = rows[self.halves[1].contains(hashes[1, rows])]
        return rows, places[rows]

    def all_seen(self) -> bool:
        """Whether every key was seen."""
        seen = int(np.bitwise_count(self.seen).sum())
        if seen == len(self):
            return True
        # Of a key that is there several times, as a picture with several faces, only the first place is ever seen.
        values = self.halves[0].values()
        return seen == len(self) - int(np.count_nonzero(values[1:] == values[:-1]))


class KeySet:
    """A growing set of hashed keys, as in a log-structured merge tree: a few sorted runs, those of like size merged.

    What was seen is forgotten where keys are added.
    """

    def __init__(self) -> None:
        self._runs: list[_SortedRun] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: KeyHashes) -> None:
        """Adds (2, N) hashes."""
        self.add_parts([hashes[0]], [hashes[1]])

    def add_parts(self, first: list[npt.NDArray[np.uint64]], second: list[npt.NDArray[np.uint64]]) -> None:
        """Adds keys whose halves come in parts of like length; both lists are emptied."""
        if not sum(map(len, first)):
            return
        self._push(_SortedRun(SortedHashes(first), SortedHashes(second)))

    def take(self, other: KeySet) -> None:
        """Moves the keys of ``other`` here."""
        for run in other._runs:
            self._push(run)
        other._runs = []

    def _push(self, run: _SortedRun) -> None:
        self._runs.append(run)
        # Merging only runs of like size sorts each key a logarithmic number of times.
        while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
            later, earlier = self._runs.pop().halves, self._runs.pop().halves
            # Half by half, and the old ones are let go: memory holds one half twice at the most.
            merged = [SortedHashes([later.pop(0).values(), earlier.pop(0).values()]) for _ in range(2)]
            self._runs.append(_SortedRun(*merged))

    def contains(self, hashes: KeyHashes) -> Bools:
        """Which of (2, N) hashes are in the set, bool (N,)."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            found[run.find(hashes)[0]] = True
        return found

    def mark_seen(self, hashes: KeyHashes) -> Bools:
        """As `contains`, and remembers those that are."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            rows, places = run.find(hashes)
            np.bitwise_or.at(run.seen, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))
            found[rows] = True
        return found

    def seen(self, hashes: KeyHashes) -> Bools:
        """Which of (2, N) hashes are in the set and were seen, bool (N,)."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            rows, places = run.find(hashes)
            found[rows] = run.seen[places >> 3] >> (places & 7).astype(np.uint8) & 1
        return found

    def all_seen(self) -> bool:
        """Whether every key was seen."""
        return all(run.all_seen() for run in self._runs)

    def forget_seen(self) -> None:
        """As if no key had been seen."""
        for run in self._runs:
            run.seen[:] = 0


def look_up(sets: Iterable[KeySet], hashes: KeyHashes) -> tuple[Bools, Bools]:
    """Which of (2, N) hashes are in one of ``sets``, and which were seen there; bool (N,) each."""
    known, seen = np.zeros(hashes.shape[1], bool), np.zeros(hashes.shape[1], bool)
    for keys in sets:
        known |= keys.contains(hashes)
        seen |= keys.seen(hashes)
    return known, seen


class Aliases:
    """Keys that stand for others, 32 bytes for each pair.

    Args:
        pairs: (aliases, keys) as (2, N) hashes each, in any number of parts; an alias may stand for several keys.
    """

    def __init__(self, pairs: Iterable[tuple[KeyHashes, KeyHashes]] = ()) -> None:
        parts = [np.concatenate(pair) for pair in pairs]
        self._pairs = np.concatenate([np.empty((4, 0), np.uint64), *parts], axis=1)
        self._pairs = self._pairs[:, np.argsort(self._pairs[0], kind="stable")]

    def __len__(self) -> int:
        return int(self._pairs.shape[1])

    def pairs(self) -> tuple[KeyHashes, KeyHashes]:
        """The aliases and their keys, (2, N) each."""
        return self._pairs[:2], self._pairs[2:]

    def find(self, hashes: KeyHashes) -> tuple[npt.NDArray[np.int64], KeyHashes]:
        """Which of (2, N) hashes are aliases, int64 (M,), once for each of their keys, and these, uint64 (2, M)."""
        start, end = (np.searchsorted(self._pairs[0], hashes[0], side) for side in ("left", "right"))
        counts = end - start
        rows = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(rows)) + np.repeat(start - np.cumsum(counts) + counts, counts)
        same = self._pairs[1, places] == hashes[1, rows]
        return rows[same], self._pairs[2:, places[same]]
