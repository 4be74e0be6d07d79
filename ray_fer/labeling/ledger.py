"""What is already labelled, as compact sets of hashed keys (`key_sets`), whatever the length of their URIs.

A key is (uri, identity). A row whose listed identity is another than the one that was read is known by both: the former
is an alias of the latter, so that an object that is always listed otherwise than it is read is read once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ray_fer.labeling.key_sets import Aliases, Bools, KeyHashes, KeySet, look_up
from ray_fer.labeling.table import KNOWN, MARKERS, SUCCESSES, TRANSIENT, UNEMBEDDED

# What the table's rows make of a key, the strongest first: a success supersedes a failure.
DONE, PERMANENT, GIVEN_UP, TO_RETRY = "done", "failed_permanent", "failed_given_up", "failed_to_retry"
OUTCOMES = (DONE, PERMANENT, GIVEN_UP, TO_RETRY)
SETTLED = (DONE, PERMANENT, GIVEN_UP)

_BATCH_ROWS = 1 << 18


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


@dataclass(frozen=True)
class Outcomes:
    """The keys of a table by what its rows say of them.

    A success and a permanent failure of one key are both there, and the first of `SETTLED` counts; transient failures
    of such a key are not.

    Attributes:
        settled: a set for each of `SETTLED`.
        to_retry: the keys of `TO_RETRY` by the number of their tries, all of which failed; and as 0 those that are
            labelled and lack a wanted embedding.
        aliases: of keys that are done or have failed permanently, by the identities that they were listed with.
        markers: rows that say that an object is gone, or has returned.
    """

    settled: dict[str, KeySet]
    to_retry: dict[int, KeySet]
    aliases: Aliases
    markers: int

    def sets(self) -> list[KeySet]:
        """All sets."""
        return [*self.settled.values(), *self.to_retry.values()]


def sort_out(labelled: pl.LazyFrame, max_attempts: int) -> Outcomes:
    """What the rows of a table say of its keys.

    Args:
        labelled: (uri, identity, listed_identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is given up.
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
    # What a mark calls known may have been lost with a run that was killed.
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
    """The rows of ``frame`` in no particular order, never all of them in memory."""
    yield from frame.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=False)


def _append(columns: tuple[list[npt.NDArray[np.uint64]], ...], rows: pl.DataFrame) -> None:
    for column, name in zip(columns, ("first", "second"), strict=True):
        column.append(rows[name].to_numpy())


class Ledger:
    """The keys that need no work, and those that this run has claimed. Several threads may use it.

    Args:
        labelled: (uri, identity, listed_identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is left alone.

    Attributes:
        rows: keys in the table.
        successes: those of them that a model has predictions for, or no face to make any of.
        markers: rows of the table that say that an object is gone, or has returned.
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

    def claim(self, page: pa.Table) -> pa.Table:
        """The rows of ``page`` that are new work; they are remembered, so that no later page gets them again."""
        return page.take(pa.array(self.claim_hashes(hash_keys(page["uri"], page["identity"]))[0]))

    def claim_hashes(self, hashes: KeyHashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Which of (2, N) hashed keys are new work, remembered as by `claim`, and which try of it that will be.

        Returns:
            Ascending indices int64 (M,), and of each the number of the try, from 1, int32 (M,).
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
            listed: N rows (uri, identity), which were claimed.
            identity: what was read.
            remember: whether the next listing counts what is listed so as seen.

        Returns:
            Which of them are new, bool (N,): neither done nor failed for good, nor claimed, nor read before.
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
        """To be called before another listing: no key was seen by it yet."""
        with self._lock:
            self._claimed_before.take(self._claimed)
            # Either way round: whichever of the two the next listing shows, the object is there.
            both = [pair for one, other in self._read_otherwise for pair in ((one, other), (other, one))]
            if both:
                self._aliases = Aliases([self._aliases.pairs(), *both])
                self._read_otherwise = []
            for keys in self._known():
                keys.forget_seen()

    def all_seen(self) -> bool:
        """Whether the listing has seen every key that was known when it started."""
        return all(keys.all_seen() for keys in self._known())

    def look_up(self, hashes: KeyHashes) -> tuple[Bools, Bools]:
        """Tells which of (2, N) hashes were known when the listing started, and which it has seen; bool (N,) each."""
        return look_up(self._known(), hashes)

    def _known(self) -> list[KeySet]:
        return [*self._settled.values(), *self._to_retry.values(), self._claimed_before]


def _first_of_each(hashes: KeyHashes) -> npt.NDArray[np.int64]:
    # Once in a million runs two keys of a page share a first half: one of them waits for the next run.
    return np.sort(np.unique(hashes[0], return_index=True)[1])


def claim_missing(ledgers: Sequence[Ledger], page: pa.Table) -> tuple[pa.Table, list[int]]:
    """The rows of ``page`` that are new work by any of the ledgers, one per teacher; claimed in all that lack them.

    Returns:
        The rows with two more columns. In ``teachers`` bit t tells that ledger t lacks the key; ``attempts`` has a
        number for each ledger, which try this will be where it does. And for every ledger how many keys it lacks.
    """
    hashes = hash_keys(page["uri"], page["identity"])
    teachers = np.zeros(page.num_rows, np.uint32)
    attempts = np.ones((page.num_rows, len(ledgers)), np.int32)
    lacking = []
    for number, ledger in enumerate(ledgers):
        new, tries = ledger.claim_hashes(hashes)
        teachers[new] |= np.uint32(1 << number)
        attempts[new, number] = tries
        lacking.append(len(new))
    rows = np.flatnonzero(teachers)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(attempts[rows].ravel()), len(ledgers))
    work = page.take(pa.array(rows)).append_column("teachers", pa.array(teachers[rows]))
    return work.append_column("attempts", lists), lacking
