"""The ledger of a table: which images are labelled already, as compact sets of hashed keys (see `key_sets`).

A key is a pair (uri, identity). Some stores list an object under another identity than the one that is read. The ledger
knows such a row by both: the listed key is an alias of the key that was read, so that the object is read only once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ray_fer.labeling.key_sets import (
    KEY_HASHES,
    LISTED_HASHES,
    Aliases,
    Bools,
    KeyHashes,
    KeySet,
    hash_keys,
    key_hashes,
    listed_key_hashes,
    look_up,
)
from ray_fer.labeling.table import KNOWN, MARKERS, SUCCESSES, TRANSIENT, UNEMBEDDED

# Outcomes of a key by the table's rows, the strongest first: a success supersedes a failure.
DONE, PERMANENT, GIVEN_UP, TO_RETRY = "done", "failed_permanent", "failed_given_up", "failed_to_retry"
OUTCOMES = (DONE, PERMANENT, GIVEN_UP, TO_RETRY)
SETTLED = (DONE, PERMANENT, GIVEN_UP)

_BATCH_ROWS = 1 << 18


@dataclass(frozen=True)
class Outcomes:
    """The keys of a table by their outcomes.

    A key with a success and a permanent failure is in both sets, and the first one in the order of `SETTLED` counts.
    Transient failures of such a key are dropped.

    Attributes:
        settled: A set of keys for each name in `SETTLED`.
        to_retry: Keys with the outcome `TO_RETRY` by the number of tries so far, from 1. All of these tries failed.
            Those of 0 tries are labelled, and lack an embedding that is wanted.
        aliases: Listed keys of the keys that are done or have failed permanently.
        markers: Number of rows with the status `table.GONE` or `table.RETURNED`.
    """

    settled: dict[str, KeySet]
    to_retry: dict[int, KeySet]
    aliases: Aliases
    markers: int

    def sets(self) -> list[KeySet]:
        """Returns the sets of all outcomes."""
        return [*self.settled.values(), *self.to_retry.values()]


def sort_out(labelled: pl.LazyFrame, max_attempts: int) -> Outcomes:
    """Sorts the keys of a table by their outcomes.

    Args:
        labelled: Rows (uri, identity, listed_identity, status) from `table.scan_keys`.
        max_attempts: Number of transient failures after which a key is given up.
    """
    status = pl.col("status")
    first = pl.when(status.is_in(SUCCESSES)).then(0).when(status.is_in(TRANSIENT)).then(2)
    marked = first.when(status == KNOWN).then(4).when(status.is_in(MARKERS)).then(3)
    outcome = marked.when(status == UNEMBEDDED).then(5).otherwise(1)
    listed = pl.col("listed_identity").is_not_null().alias("listed")
    hashed = labelled.select(*KEY_HASHES, *LISTED_HASHES, listed, outcome.cast(pl.UInt8).alias("outcome"))
    parts: dict[str, tuple[list[npt.NDArray[np.uint64]], ...]] = {name: ([], []) for name in (DONE, PERMANENT)}
    unembedded = [hashed.select("first", "second").clear().collect()]
    failures: list[pl.DataFrame] = [hashed.select("first", "second").clear().collect()]
    pairs: list[tuple[KeyHashes, KeyHashes]] = []
    markers = 0
    for batch in batches(hashed):
        for number, name in enumerate((DONE, PERMANENT)):
            _append(parts[name], batch.filter(pl.col("outcome") == number))
        failures.append(batch.filter(pl.col("outcome") == 2).select("first", "second"))
        unembedded.append(batch.filter(pl.col("outcome") == 5).select("first", "second"))
        if batch["listed"].any():
            others = batch.filter(pl.col("listed") & (pl.col("outcome") != 2))
            pairs.append((listed_key_hashes(others), key_hashes(others)))
        markers += int((batch["outcome"] == 3).sum())
    settled = {name: KeySet() for name in SETTLED}
    for name, columns in parts.items():
        settled[name].add_parts(*columns)
    # The rows that a marker `KNOWN` refers to may be lost with a run that was killed.
    pairs = [
        (listed[:, held], keys[:, held]) for listed, keys in pairs if (held := look_up(settled.values(), keys)[0]).any()
    ]
    tries = pl.concat(failures).group_by("first", "second").len("tries")
    tries = tries.filter(~look_up(settled.values(), key_hashes(tries))[0])
    settled[GIVEN_UP].add(key_hashes(tries.filter(pl.col("tries") >= max_attempts)))
    to_retry: dict[int, KeySet] = {}
    for count, keys in tries.filter(pl.col("tries") < max_attempts).partition_by("tries", as_dict=True).items():
        to_retry[int(count[0])] = retried = KeySet()
        retried.add(key_hashes(keys))
    lacking = key_hashes(pl.concat(unembedded).unique())
    lacking = lacking[:, ~look_up([*settled.values(), *to_retry.values()], lacking)[0]]
    if lacking.size:
        to_retry[0] = KeySet()
        to_retry[0].add(lacking)
    return Outcomes(settled, to_retry, Aliases(pairs), markers)


def batches(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Yields the rows of ``frame`` in batches and in no particular order, so that memory never holds all of them."""
    yield from frame.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=False)


def _append(columns: tuple[list[npt.NDArray[np.uint64]], ...], rows: pl.DataFrame) -> None:
    for column, name in zip(columns, ("first", "second"), strict=True):
        column.append(rows[name].to_numpy())


class Ledger:
    """The keys that need no work, and those that this run has claimed. The ledger is thread-safe.

    To claim a key means to remember it as the work of this run, so that no later page yields it again.

    Args:
        labelled: Rows (uri, identity, listed_identity, status) from `table.scan_keys`.
        max_attempts: Number of transient failures after which a key is given up.

    Attributes:
        rows: Number of keys in the table.
        successes: Number of these keys whose picture has a prediction or has no face.
        markers: Number of rows with the status `table.GONE` or `table.RETURNED`.
    """

    def __init__(self, labelled: pl.LazyFrame, max_attempts: int) -> None:
        outcomes = sort_out(labelled, max_attempts)
        self.markers = outcomes.markers
        self.rows = sum(map(len, outcomes.sets()))
        self.successes = len(outcomes.settled[DONE])
        self._settled, self._to_retry, self._aliases = outcomes.settled, outcomes.to_retry, outcomes.aliases
        self._claimed_before = KeySet()
        self._claimed = KeySet()
        self._read_otherwise: list[tuple[KeyHashes, KeyHashes]] = []
        self._lock = threading.Lock()

    def claim(self, hashes: KeyHashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Claims those of some hashed keys that are new work.

        Args:
            hashes: Keys, uint64 (2, N).

        Returns:
            The ascending indices of the M keys, int64 (M,), and the number of the coming try of each, from 1, int32
            (M,).
        """
        with self._lock:
            new = np.arange(hashes.shape[1])
            for keys in self._settled.values():
                new = new[~keys.mark_seen(hashes[:, new])]
            attempts = np.ones(hashes.shape[1], np.int32)
            for tries, keys in self._to_retry.items():
                attempts[new[keys.mark_seen(hashes[:, new])]] += tries
            new = new[~self._claimed_before.mark_seen(hashes[:, new])]
            if len(self._aliases):
                rows, held = self._aliases.find(hashes)
                for keys in self._known():
                    keys.mark_seen(held)
                new = np.setdiff1d(new, rows, assume_unique=True)
            new = new[~self._claimed.contains(hashes[:, new])]
            new = new[_first_of_each(hashes[:, new])]
            self._claimed.add(hashes[:, new])
        return new, attempts[new]

    def claim_read(self, listed: pa.Table, identity: pa.Array, remember: bool) -> Bools:
        """Claims contents that were read under other identities than the listed ones.

        Args:
            listed: N rows (uri, identity) that were claimed.
            identity: The N identities that were read.
            remember: Whether a later listing of the same run has to recognise the listed keys.

        Returns:
            Whether each content is new, bool (N,). It is not if it is done, has failed permanently, or was claimed.
        """
        hashes = hash_keys(listed["uri"], identity)
        with self._lock:
            known = self._claimed.contains(hashes)
            for keys in self._known():
                held = keys.mark_seen(hashes)
                if keys in (self._settled[DONE], self._settled[PERMANENT], self._claimed_before):
                    known |= held
            new = np.flatnonzero(~known)
            new = new[_first_of_each(hashes[:, new])]
            self._claimed.add(hashes[:, new])
            if remember:
                self._read_otherwise.append((hash_keys(listed["uri"], listed["identity"]), hashes))
        fresh = np.zeros(hashes.shape[1], bool)
        fresh[new] = True
        return fresh

    def start_listing(self) -> None:
        """Prepares the ledger for another listing, which has not seen any key yet."""
        with self._lock:
            self._claimed_before.take(self._claimed)
            # The pairs stand in both directions, because the next listing may show either identity of the object.
            both = [pair for one, other in self._read_otherwise for pair in ((one, other), (other, one))]
            if both:
                self._aliases = Aliases([self._aliases.pairs(), *both])
                self._read_otherwise = []
            for keys in self._known():
                keys.forget_seen()

    def all_seen(self) -> bool:
        """Returns whether the listing has seen every key that was known when it started."""
        return all(keys.all_seen() for keys in self._known())

    def look_up(self, hashes: KeyHashes) -> tuple[Bools, Bools]:
        """Looks up hashed keys, uint64 (2, N).

        Returns:
            Whether each key was known when the listing started, and whether the listing has seen it, bool (N,) each.
        """
        return look_up(self._known(), hashes)

    def _known(self) -> list[KeySet]:
        return [*self._settled.values(), *self._to_retry.values(), self._claimed_before]


def _first_of_each(hashes: KeyHashes) -> npt.NDArray[np.int64]:
    # About once in a million runs, two keys of a page share their first hash. One of them waits for the next run.
    return np.sort(np.unique(hashes[0], return_index=True)[1])


def claim_missing(ledgers: Sequence[Ledger], page: pa.Table) -> tuple[pa.Table, list[int]]:
    """Claims the rows of ``page`` in every ledger that lacks them.

    Args:
        ledgers: Ledgers of the T teachers of a run, at most 32.
        page: Listed objects with the columns (uri, identity).

    Returns:
        The rows that at least one ledger lacks, and for each ledger the number of keys that it lacks. The rows have two
        more columns. Bit t of ``teachers``, uint32, is set if ledger t lacks the key. ``attempts``, int32 (T,), is the
        number of the coming try of each teacher, from 1.
    """
    hashes = hash_keys(page["uri"], page["identity"])
    teachers = np.zeros(page.num_rows, np.uint32)
    attempts = np.ones((page.num_rows, len(ledgers)), np.int32)
    lacking = []
    for number, ledger in enumerate(ledgers):
        new, tries = ledger.claim(hashes)
        teachers[new] |= np.uint32(1 << number)
        attempts[new, number] = tries
        lacking.append(len(new))
    rows = np.flatnonzero(teachers)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(attempts[rows].ravel()), len(ledgers))
    work = page.take(pa.array(rows)).append_column("teachers", pa.array(teachers[rows]))
    return work.append_column("attempts", lists), lacking
