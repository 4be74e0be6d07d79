"""Sets of hashed keys, which take at most 24 bytes and one bit per key.

A key has two independent 64-bit hashes. A set keeps the first hashes of its keys as one sorted array and the second
hashes as another. Each array is sorted in place and without the other. A key belongs to the set if both of its hashes
are found. A collision would cost one image its label. Among N keys, a new one is mistaken for a known one with a
probability of (N / 2⁶⁴)². At N = 10⁸ that is 3·10⁻²³ per key, and 3·10⁻¹⁵ for a listing of 10⁸ new keys.

The bit tells whether a listing has seen the key. An object with a key that was not seen may no longer exist in the
sources (see `tombstones`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

KeyHashes = npt.NDArray[np.uint64]
"""Hashed keys, uint64 (2, N)."""
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
# These are meaningless where the listed identity is null.
LISTED_HASHES = _hashes_with("listed_identity", "listed_first", "listed_second")
URI_HASH = pl.col("uri").hash(seed=5).alias("hash")


def hash_keys(uri: pa.Array | pa.ChunkedArray, identity: pa.Array | pa.ChunkedArray) -> KeyHashes:
    """Hashes N keys.

    Args:
        uri: N strings.
        identity: N strings.

    Returns:
        The two hashes of each key, uint64 (2, N).
    """
    return key_hashes(pl.DataFrame({"uri": pl.from_arrow(uri), "identity": pl.from_arrow(identity)}).select(KEY_HASHES))


def key_hashes(hashed: pl.DataFrame) -> KeyHashes:
    """Returns the columns that `KEY_HASHES` makes, as uint64 (2, N)."""
    return np.stack([hashed["first"].to_numpy(), hashed["second"].to_numpy()])


def listed_key_hashes(hashed: pl.DataFrame) -> KeyHashes:
    """Returns the columns that `LISTED_HASHES` makes, as uint64 (2, N)."""
    return np.stack([hashed["listed_first"].to_numpy(), hashed["listed_second"].to_numpy()])


def hash_uris(uris: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Returns the hashes of N URIs, uint64 (N,)."""
    return pl.DataFrame({"uri": pl.from_arrow(uris)}).select(URI_HASH)["hash"].to_numpy()


class SortedHashes:
    """Sorted 64-bit hashes with a uniform distribution, so that the top bits of a hash tell about where it is.

    An index has an entry of 4 bytes for one or two hashes, and a search takes one or two steps.

    Args:
        parts: Arrays uint64 (N,) in any order. The list is emptied, so that memory need not hold the hashes twice.
    """

    def __init__(self, parts: list[npt.NDArray[np.uint64]]) -> None:
        # The greatest possible hash at the end stops every search.
        self._hashes = np.concatenate([*parts, _LAST])
        parts.clear()
        self._hashes.sort()
        bits = max(1, len(self).bit_length() - 1)
        self._shift = np.uint64(64 - bits)
        # Start of the hashes with given top bits, which is the number of smaller hashes.
        self._starts = np.zeros((1 << bits) + 1, np.uint32)
        for start in range(0, len(self), _SLICE):
            slots = (self.values()[start : start + _SLICE] >> self._shift).astype(np.int64)
            counts = np.bincount(slots - slots[0])
            self._starts[slots[0] + 1 : slots[0] + 1 + len(counts)] += counts.astype(np.uint32)
        np.cumsum(self._starts, dtype=np.uint32, out=self._starts)

    def __len__(self) -> int:
        return len(self._hashes) - 1

    def values(self) -> npt.NDArray[np.uint64]:
        """Returns the hashes in ascending order, uint64 (N,)."""
        return self._hashes[:-1]

    def find(self, wanted: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], Bools]:
        """Searches for hashes, uint64 (M,).

        Returns:
            The place of the first hash that is not smaller, int64 (M,), and whether it is equal, bool (M,).
        """
        place = self._starts[wanted >> self._shift].astype(np.int64)
        left = np.flatnonzero(self._hashes[place] < wanted)
        while len(left):
            place[left] += 1
            left = left[self._hashes[place[left]] < wanted[left]]
        return place, self._hashes[place] == wanted

    def contains(self, wanted: npt.NDArray[np.uint64]) -> Bools:
        """Returns whether each of some hashes, uint64 (M,), is among these, bool (M,)."""
        return self.find(wanted)[1]


class _SortedRun:
    """Keys in the order of their first hashes, with a bit for each that was seen."""

    def __init__(self, first: SortedHashes, second: SortedHashes) -> None:
        self.hashes = [first, second]
        self.seen = np.zeros(len(first) // 8 + 1, np.uint8)

    def __len__(self) -> int:
        return len(self.hashes[0])

    def find(self, hashes: KeyHashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns the indices of those of (2, N) hashed keys that are in the run, and their places, int64 (M,) each."""
        places, likely = self.hashes[0].find(hashes[0])
        rows = np.flatnonzero(likely)
        rows = rows[self.hashes[1].contains(hashes[1, rows])]
        return rows, places[rows]

    def all_seen(self) -> bool:
        """Returns whether every key was seen."""
        seen = int(np.bitwise_count(self.seen).sum())
        if seen == len(self):
            return True
        # A picture with several faces has a key several times, of which only the first is ever marked as seen.
        values = self.hashes[0].values()
        return seen == len(self) - int(np.count_nonzero(values[1:] == values[:-1]))


class KeySet:
    """A growing set of hashed keys, which consists of a few sorted runs like a log-structured merge tree.

    Runs of similar size are merged. Adding keys may forget which keys were seen.
    """

    def __init__(self) -> None:
        self._runs: list[_SortedRun] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: KeyHashes) -> None:
        """Adds hashed keys, uint64 (2, N)."""
        self.add_parts([hashes[0]], [hashes[1]])

    def add_parts(self, first: list[npt.NDArray[np.uint64]], second: list[npt.NDArray[np.uint64]]) -> None:
        """Adds keys whose first and second hashes come in parts of equal lengths. Both lists are emptied."""
        if not sum(map(len, first)):
            return
        self._push(_SortedRun(SortedHashes(first), SortedHashes(second)))

    def take(self, other: KeySet) -> None:
        """Moves the keys of ``other`` into this set."""
        for run in other._runs:
            self._push(run)
        other._runs = []

    def _push(self, run: _SortedRun) -> None:
        self._runs.append(run)
        # Since only runs of similar size are merged, each key is sorted a logarithmic number of times.
        while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
            later, earlier = self._runs.pop().hashes, self._runs.pop().hashes
            # The first hashes are merged and the old arrays freed before the second, so memory holds one array twice.
            merged = [SortedHashes([later.pop(0).values(), earlier.pop(0).values()]) for _ in range(2)]
            self._runs.append(_SortedRun(*merged))

    def contains(self, hashes: KeyHashes) -> Bools:
        """Returns whether each of some hashed keys, uint64 (2, N), is in the set, bool (N,)."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            found[run.find(hashes)[0]] = True
        return found

    def mark_seen(self, hashes: KeyHashes) -> Bools:
        """Marks those of some hashed keys that are in the set as seen, and returns the same as `contains`."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            rows, places = run.find(hashes)
            np.bitwise_or.at(run.seen, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))
            found[rows] = True
        return found

    def seen(self, hashes: KeyHashes) -> Bools:
        """Returns whether each of some hashed keys, uint64 (2, N), is in the set and was seen, bool (N,)."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            rows, places = run.find(hashes)
            found[rows] = run.seen[places >> 3] >> (places & 7).astype(np.uint8) & 1
        return found

    def all_seen(self) -> bool:
        """Returns whether every key was seen."""
        return all(run.all_seen() for run in self._runs)

    def forget_seen(self) -> None:
        """Forgets which keys were seen."""
        for run in self._runs:
            run.seen[:] = 0


def look_up(sets: Iterable[KeySet], hashes: KeyHashes) -> tuple[Bools, Bools]:
    """Looks up hashed keys, uint64 (2, N), in several sets.

    Returns:
        Whether each key is in one of the sets, and whether it was seen there, bool (N,) each.
    """
    known, seen = np.zeros(hashes.shape[1], bool), np.zeros(hashes.shape[1], bool)
    for keys in sets:
        known |= keys.contains(hashes)
        seen |= keys.seen(hashes)
    return known, seen


class Aliases:
    """Hashed keys that stand for other keys, with 32 bytes per pair.

    Args:
        pairs: Parts (aliases, keys) of uint64 (2, N) each. An alias may stand for several keys.
    """

    def __init__(self, pairs: Iterable[tuple[KeyHashes, KeyHashes]] = ()) -> None:
        parts = [np.concatenate(pair) for pair in pairs]
        self._pairs = np.concatenate([np.empty((4, 0), np.uint64), *parts], axis=1)
        self._pairs = self._pairs[:, np.argsort(self._pairs[0], kind="stable")]

    def __len__(self) -> int:
        return int(self._pairs.shape[1])

    def pairs(self) -> tuple[KeyHashes, KeyHashes]:
        """Returns the aliases and their keys, uint64 (2, N) each."""
        return self._pairs[:2], self._pairs[2:]

    def find(self, hashes: KeyHashes) -> tuple[npt.NDArray[np.int64], KeyHashes]:
        """Finds the aliases among hashed keys, uint64 (2, N).

        Returns:
            The index of each alias, repeated for each key that it stands for, int64 (M,), and these keys, uint64
            (2, M).
        """
        start, end = (np.searchsorted(self._pairs[0], hashes[0], side) for side in ("left", "right"))
        counts = end - start
        rows = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(rows)) + np.repeat(start - np.cumsum(counts) + counts, counts)
        same = self._pairs[1, places] == hashes[1, rows]
        return rows[same], self._pairs[2:, places[same]]
