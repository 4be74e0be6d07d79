"""What is already labelled, as compact sets of hashes: at most 24 bytes an image, whatever the length of its URI.

A key (uri, identity) has two independent 64-bit hashes. A set keeps the first halves of its keys as one sorted array
and the second halves as another: either is sorted in place, with nothing carried along, and a key belongs to the set
when both of its halves are there. A collision would cost one image its label. Among N keys a new one is mistaken for a
known one with a chance of (N / 2⁶⁴)²: at N = 10⁸ that is 3·10⁻²³ per key, and 3·10⁻¹⁵ for a listing of 10⁸ new keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ray_fer.labeling.table import NO_FACE, OK, TRANSIENT

Halves = npt.NDArray[np.uint64]

# What the table's rows make of a key, the strongest first: a success supersedes a failure.
DONE, PERMANENT, GIVEN_UP, TO_RETRY = "done", "failed_permanent", "failed_given_up", "failed_to_retry"
OUTCOMES = (DONE, PERMANENT, GIVEN_UP, TO_RETRY)
SETTLED = (DONE, PERMANENT, GIVEN_UP)

_BATCH_ROWS = 1 << 18
_LAST = np.array([np.iinfo(np.uint64).max], np.uint64)
_HASHES = [
    (pl.col("uri").hash(seed=a) ^ pl.col("identity").hash(seed=b)).alias(name)
    for name, a, b in (("first", 1, 2), ("second", 3, 4))
]
_URI_HASH = pl.col("uri").hash(seed=5).alias("hash")


def hash_keys(uri: pa.Array | pa.ChunkedArray, identity: pa.Array | pa.ChunkedArray) -> Halves:
    """The two 64-bit hashes of (uri, identity).

    Args:
        uri: N strings.
        identity: N strings.

    Returns:
        uint64 (2, N).
    """
    frame = pl.DataFrame({"uri": pl.from_arrow(uri), "identity": pl.from_arrow(identity)}).select(_HASHES)
    return np.stack([frame["first"].to_numpy(), frame["second"].to_numpy()])


def hash_uris(uris: pl.LazyFrame) -> pl.LazyFrame:
    """``uris`` with the 64-bit hashes of its column ``uri`` as the column ``hash``."""
    return uris.with_columns(_URI_HASH)


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
        for start in range(0, len(self), _BATCH_ROWS):
            slots = (self.values()[start : start + _BATCH_ROWS] >> self._shift).astype(np.int64)
            counts = np.bincount(slots - slots[0])
            self._starts[slots[0] + 1 : slots[0] + 1 + len(counts)] += counts.astype(np.uint32)
        np.cumsum(self._starts, dtype=np.uint32, out=self._starts)

    def __len__(self) -> int:
        return len(self._hashes) - 1

    def values(self) -> npt.NDArray[np.uint64]:
        """The hashes in order, uint64 (N,)."""
        return self._hashes[:-1]

    def contains(self, wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of (M,) hashes are there, bool (M,)."""
        place = self._starts[wanted >> self._shift].astype(np.int64)
        left = np.flatnonzero(self._hashes[place] < wanted)
        while len(left):
            place[left] += 1
            left = left[self._hashes[place[left]] < wanted[left]]
        found: npt.NDArray[np.bool_] = self._hashes[place] == wanted
        return found


class KeySet:
    """A growing set of hashed keys, as in a log-structured merge tree: a few sorted runs, those of like size merged."""

    def __init__(self) -> None:
        self._runs: list[list[SortedHashes]] = []

    def __len__(self) -> int:
        return sum(len(first) for first, _ in self._runs)

    def add(self, hashes: Halves) -> None:
        """Adds (2, N) hashes."""
        self.add_parts([hashes[0]], [hashes[1]])

    def add_parts(self, first: list[npt.NDArray[np.uint64]], second: list[npt.NDArray[np.uint64]]) -> None:
        """Adds keys whose halves come in parts of like length; both lists are emptied."""
        if not sum(map(len, first)):
            return
        self._runs.append([SortedHashes(first), SortedHashes(second)])
        # Merging only runs of like size sorts each key a logarithmic number of times.
        while len(self._runs) > 1 and len(self._runs[-1][0]) * 2 > len(self._runs[-2][0]):
            later, earlier = self._runs.pop(), self._runs.pop()
            # Half by half, and the old ones are let go: memory holds one half twice at the most.
            merged = [SortedHashes([later.pop(0).values(), earlier.pop(0).values()]) for _ in range(2)]
            self._runs.append(merged)

    def contains(self, hashes: Halves) -> npt.NDArray[np.bool_]:
        """Which of (2, N) hashes are in the set, bool (N,)."""
        found = np.zeros(hashes.shape[1], bool)
        for first, second in self._runs:
            likely = np.flatnonzero(first.contains(hashes[0]))
            found[likely[second.contains(hashes[1, likely])]] = True
        return found


def sort_out(labelled: pl.LazyFrame, max_attempts: int) -> dict[str, KeySet]:
    """The keys of a table by what its rows say of them, one set for each of `OUTCOMES`.

    A key with several rows may be in several sets; the first of `OUTCOMES` counts.

    Args:
        labelled: (uri, identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is given up.
    """
    transient = pl.col("status").is_in(TRANSIENT)
    outcome = pl.when(transient).then(2).when(pl.col("status").is_in((OK, NO_FACE))).then(0).otherwise(1).cast(pl.UInt8)
    hashed = labelled.select(*_HASHES, outcome.alias("outcome"))
    parts: dict[str, tuple[list[npt.NDArray[np.uint64]], ...]] = {name: ([], []) for name in OUTCOMES}
    failures: list[pl.DataFrame] = [hashed.select("first", "second").clear().collect()]
    for batch in batches(hashed):
        for number, name in enumerate((DONE, PERMANENT)):
            _append(parts[name], batch.filter(pl.col("outcome") == number))
        failures.append(batch.filter(pl.col("outcome") == 2).drop("outcome"))
    attempts = pl.concat(failures).group_by("first", "second").len()
    _append(parts[GIVEN_UP], attempts.filter(pl.col("len") >= max_attempts))
    _append(parts[TO_RETRY], attempts.filter(pl.col("len") < max_attempts))
    sets = {name: KeySet() for name in OUTCOMES}
    for name, halves in parts.items():
        sets[name].add_parts(*halves)
    return sets


def batches(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """The rows of ``frame`` in no particular order, never all of them in memory."""
    yield from frame.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=False)


def _append(halves: tuple[list[npt.NDArray[np.uint64]], ...], rows: pl.DataFrame) -> None:
    for half, name in zip(halves, ("first", "second"), strict=True):
        half.append(rows[name].to_numpy())


class Ledger:
    """The keys that need no work, and those that this run has claimed.

    Args:
        labelled: (uri, identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is left alone.
    """

    def __init__(self, labelled: pl.LazyFrame, max_attempts: int) -> None:
        outcomes = sort_out(labelled, max_attempts)
        self.rows = sum(map(len, outcomes.values()))
        self._settled = [outcomes[name] for name in SETTLED]
        self._claimed = KeySet()

    def claim(self, page: pa.Table) -> pa.Table:
        """The rows of ``page`` that are new work; they are remembered, so that no later page gets them again."""
        return page.take(pa.array(self.claim_hashes(hash_keys(page["uri"], page["identity"]))))

    def claim_hashes(self, hashes: Halves) -> npt.NDArray[np.int64]:
        """Which of (2, N) hashed keys are new work, as ascending indices (M,); remembered as by `claim`."""
        new = np.arange(hashes.shape[1])
        for keys in (*self._settled, self._claimed):
            new = new[~keys.contains(hashes[:, new])]
        # Once in a million runs two keys of a page share a first half: one of them waits for the next run.
        new = new[np.sort(np.unique(hashes[0, new], return_index=True)[1])]
        self._claimed.add(hashes[:, new])
        return new


def claim_for_each(ledgers: Sequence[Ledger], page: pa.Table) -> tuple[pa.Table, list[int]]:
    """The rows of ``page`` that are new work by any of the ledgers, one per teacher; claimed in all that lack them.

    Returns:
        The rows, with the column ``teachers``: bit t tells that ledger t lacks the key. And for every ledger how
        many it lacks.
    """
    hashes = hash_keys(page["uri"], page["identity"])
    teachers = np.zeros(page.num_rows, np.uint32)
    lacking = []
    for number, ledger in enumerate(ledgers):
        new = ledger.claim_hashes(hashes)
        teachers[new] |= np.uint32(1 << number)
        lacking.append(len(new))
    rows = np.flatnonzero(teachers)
    return page.take(pa.array(rows)).append_column("teachers", pa.array(teachers[rows])), lacking
