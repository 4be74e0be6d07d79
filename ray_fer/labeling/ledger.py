"""What is already labelled, as compact sets of hashes: at most 24 bytes and a bit an image, whatever its URI's length.

A key (uri, identity) has two independent 64-bit hashes. A set keeps the first halves of its keys as one sorted array
and the second halves as another: either is sorted in place, with nothing carried along, and a key belongs to the set
when both of its halves are there. A collision would cost one image its label. Among N keys a new one is mistaken for a
known one with a chance of (N / 2⁶⁴)²: at N = 10⁸ that is 3·10⁻²³ per key, and 3·10⁻¹⁵ for a listing of 10⁸ new keys.

The bit says whether a listing has met the key: what it has not met may be gone from the sources (see `gone`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ray_fer.labeling.table import MARKS, SUCCESSES, TRANSIENT

Halves = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

# What the table's rows make of a key, the strongest first: a success supersedes a failure.
DONE, PERMANENT, GIVEN_UP, TO_RETRY = "done", "failed_permanent", "failed_given_up", "failed_to_retry"
OUTCOMES = (DONE, PERMANENT, GIVEN_UP, TO_RETRY)
SETTLED = (DONE, PERMANENT, GIVEN_UP)

_BATCH_ROWS = 1 << 18
_LAST = np.array([np.iinfo(np.uint64).max], np.uint64)
KEY_HASHES = [
    (pl.col("uri").hash(seed=a) ^ pl.col("identity").hash(seed=b)).alias(name)
    for name, a, b in (("first", 1, 2), ("second", 3, 4))
]
URI_HASH = pl.col("uri").hash(seed=5).alias("hash")


def hash_keys(uri: pa.Array | pa.ChunkedArray, identity: pa.Array | pa.ChunkedArray) -> Halves:
    """The two 64-bit hashes of (uri, identity).

    Args:
        uri: N strings.
        identity: N strings.

    Returns:
        uint64 (2, N).
    """
    return halves_of(pl.DataFrame({"uri": pl.from_arrow(uri), "identity": pl.from_arrow(identity)}).select(KEY_HASHES))


def halves_of(hashed: pl.DataFrame) -> Halves:
    """The columns that `KEY_HASHES` makes, as uint64 (2, N)."""
    return np.stack([hashed["first"].to_numpy(), hashed["second"].to_numpy()])


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


class _Run:
    """Keys in the order of their first halves, with a bit for each that was met."""

    def __init__(self, first: SortedHashes, second: SortedHashes) -> None:
        self.halves = [first, second]
        self.met = np.zeros(len(first) // 8 + 1, np.uint8)

    def __len__(self) -> int:
        return len(self.halves[0])

    def find(self, hashes: Halves) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which of (2, N) hashes are there, and the places of these; int64 (M,) each."""
        places, likely = self.halves[0].find(hashes[0])
        rows = np.flatnonzero(likely)
        rows = rows[self.halves[1].contains(hashes[1, rows])]
        return rows, places[rows]

    def all_met(self) -> bool:
        """Whether every key was met."""
        met = int(np.bitwise_count(self.met).sum())
        if met == len(self):
            return True
        # Of a key that is there several times, as a picture with several faces, only the first place is ever met.
        values = self.halves[0].values()
        return met == len(self) - int(np.count_nonzero(values[1:] == values[:-1]))


class KeySet:
    """A growing set of hashed keys, as in a log-structured merge tree: a few sorted runs, those of like size merged.

    What was met is forgotten where keys are added.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: Halves) -> None:
        """Adds (2, N) hashes."""
        self.add_parts([hashes[0]], [hashes[1]])

    def add_parts(self, first: list[npt.NDArray[np.uint64]], second: list[npt.NDArray[np.uint64]]) -> None:
        """Adds keys whose halves come in parts of like length; both lists are emptied."""
        if not sum(map(len, first)):
            return
        self._push(_Run(SortedHashes(first), SortedHashes(second)))

    def take(self, other: KeySet) -> None:
        """Moves the keys of ``other`` here."""
        for run in other._runs:
            self._push(run)
        other._runs = []

    def _push(self, run: _Run) -> None:
        self._runs.append(run)
        # Merging only runs of like size sorts each key a logarithmic number of times.
        while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
            later, earlier = self._runs.pop().halves, self._runs.pop().halves
            # Half by half, and the old ones are let go: memory holds one half twice at the most.
            merged = [SortedHashes([later.pop(0).values(), earlier.pop(0).values()]) for _ in range(2)]
            self._runs.append(_Run(*merged))

    def contains(self, hashes: Halves) -> Bools:
        """Which of (2, N) hashes are in the set, bool (N,)."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            found[run.find(hashes)[0]] = True
        return found

    def meet(self, hashes: Halves) -> Bools:
        """As `contains`, and remembers those that are."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            rows, places = run.find(hashes)
            np.bitwise_or.at(run.met, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))
            found[rows] = True
        return found

    def met(self, hashes: Halves) -> Bools:
        """Which of (2, N) hashes are in the set and were met, bool (N,)."""
        found = np.zeros(hashes.shape[1], bool)
        for run in self._runs:
            rows, places = run.find(hashes)
            found[rows] = run.met[places >> 3] >> (places & 7).astype(np.uint8) & 1
        return found

    def all_met(self) -> bool:
        """Whether every key was met."""
        return all(run.all_met() for run in self._runs)

    def forget_met(self) -> None:
        """As if no key had been met."""
        for run in self._runs:
            run.met[:] = 0


def look_up(sets: Iterable[KeySet], hashes: Halves) -> tuple[Bools, Bools]:
    """Which of (2, N) hashes are in one of ``sets``, and which were met there; bool (N,) each."""
    known, met = np.zeros(hashes.shape[1], bool), np.zeros(hashes.shape[1], bool)
    for keys in sets:
        known |= keys.contains(hashes)
        met |= keys.met(hashes)
    return known, met


def sort_out(labelled: pl.LazyFrame, max_attempts: int) -> tuple[dict[str, KeySet], int]:
    """The keys of a table by what its rows say of them, one set for each of `OUTCOMES`.

    A success and a permanent failure of one key are both there, and the first of `OUTCOMES` counts; transient failures
    of such a key are not.

    Args:
        labelled: (uri, identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is given up.

    Returns:
        The sets, and the number of rows that say nothing of a key because they are `table.MARKS`.
    """
    status = pl.col("status")
    done, transient = status.is_in(SUCCESSES), status.is_in(TRANSIENT)
    outcome = pl.when(done).then(0).when(transient).then(2).when(status.is_in(MARKS)).then(3)
    hashed = labelled.select(*KEY_HASHES, outcome.otherwise(1).cast(pl.UInt8).alias("outcome"))
    parts: dict[str, tuple[list[npt.NDArray[np.uint64]], ...]] = {name: ([], []) for name in OUTCOMES}
    failures: list[pl.DataFrame] = [hashed.select("first", "second").clear().collect()]
    marks = 0
    for batch in batches(hashed):
        for number, name in enumerate((DONE, PERMANENT)):
            _append(parts[name], batch.filter(pl.col("outcome") == number))
        failures.append(batch.filter(pl.col("outcome") == 2).drop("outcome"))
        marks += int((batch["outcome"] == 3).sum())
    sets = {name: KeySet() for name in OUTCOMES}
    for name in (DONE, PERMANENT):
        sets[name].add_parts(*parts[name])
    attempts = pl.concat(failures).group_by("first", "second").len()
    attempts = attempts.filter(~look_up((sets[DONE], sets[PERMANENT]), halves_of(attempts))[0])
    _append(parts[GIVEN_UP], attempts.filter(pl.col("len") >= max_attempts))
    _append(parts[TO_RETRY], attempts.filter(pl.col("len") < max_attempts))
    for name in (GIVEN_UP, TO_RETRY):
        sets[name].add_parts(*parts[name])
    return sets, marks


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

    Attributes:
        rows: keys in the table.
        marks: rows of the table that are `table.MARKS`.
    """

    def __init__(self, labelled: pl.LazyFrame, max_attempts: int) -> None:
        outcomes, self.marks = sort_out(labelled, max_attempts)
        self.rows = sum(map(len, outcomes.values()))
        self._settled = [outcomes[name] for name in SETTLED]
        self._to_retry = outcomes[TO_RETRY]
        self._claimed_before = KeySet()
        self._claimed = KeySet()

    def claim(self, page: pa.Table) -> pa.Table:
        """The rows of ``page`` that are new work; they are remembered, so that no later page gets them again."""
        return page.take(pa.array(self.claim_hashes(hash_keys(page["uri"], page["identity"]))))

    def claim_hashes(self, hashes: Halves) -> npt.NDArray[np.int64]:
        """Which of (2, N) hashed keys are new work, as ascending indices (M,); remembered as by `claim`."""
        new = np.arange(hashes.shape[1])
        for keys in self._settled:
            new = new[~keys.meet(hashes[:, new])]
        self._to_retry.meet(hashes[:, new])
        new = new[~self._claimed_before.meet(hashes[:, new])]
        new = new[~self._claimed.contains(hashes[:, new])]
        # Once in a million runs two keys of a page share a first half: one of them waits for the next run.
        new = new[np.sort(np.unique(hashes[0, new], return_index=True)[1])]
        self._claimed.add(hashes[:, new])
        return new

    def start_listing(self) -> None:
        """To be called before another listing: no key was met by it yet."""
        self._claimed_before.take(self._claimed)
        for keys in self._known():
            keys.forget_met()

    def all_met(self) -> bool:
        """Whether the listing has met every key that was known when it started."""
        return all(keys.all_met() for keys in self._known())

    def look_up(self, hashes: Halves) -> tuple[Bools, Bools]:
        """Which of (2, N) hashes were known when the listing started, and which of these it has met; bool (N,) each."""
        return look_up(self._known(), hashes)

    def _known(self) -> list[KeySet]:
        return [*self._settled, self._to_retry, self._claimed_before]


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
