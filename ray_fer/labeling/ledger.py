"""What is already labelled, as a compact set of hashes: 16 bytes an image, whatever the length of its URI.

The set is a few sorted arrays of 128-bit hashes of (uri, identity), as in a log-structured merge tree: a page of a
listing is answered by binary search, keys that this run has claimed are added as a further array, and arrays of like
size are merged. A collision would cost one image its label; at 10⁸ images its chance is about 10⁻²³.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ray_fer.labeling.table import TRANSIENT

Hashes = npt.NDArray[np.uint64]


def hash_keys(uri: pa.Array | pa.ChunkedArray, identity: pa.Array | pa.ChunkedArray) -> Hashes:
    """128-bit hashes of (uri, identity).

    Args:
        uri: N strings.
        identity: N strings.

    Returns:
        uint64 (N, 2).
    """
    keys = pl.DataFrame({"uri": pl.from_arrow(uri), "identity": pl.from_arrow(identity)})
    halves = keys.select(
        (pl.col("uri").hash(seed=a) ^ pl.col("identity").hash(seed=b)).alias(str(a)) for a, b in ((1, 2), (3, 4))
    )
    return np.stack([halves["1"].to_numpy(), halves["3"].to_numpy()], axis=1)


class KeySet:
    """A growing set of hashed keys: a few sorted arrays, as in a log-structured merge tree."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: Hashes) -> None:
        """Adds (N, 2) hashes."""
        if not len(hashes):
            return
        self._runs.append(_sorted(hashes))
        # Merging only arrays of like size sorts each key a logarithmic number of times.
        while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
            self._runs.append(_sorted(np.concatenate([self._runs.pop(), self._runs.pop()])))

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of (N, 2) hashes are in the set, bool (N,)."""
        found = np.zeros(len(hashes), bool)
        for run in self._runs:
            found |= _contains(run, hashes)
        return found


class Ledger:
    """The keys that need no work, and those that this run has claimed.

    Args:
        labelled: batches of (uri, identity, status), as `table.read_keys` gives them.
        max_attempts: rows with a transient failure after which a key is left alone.
    """

    def __init__(self, labelled: Iterable[pa.RecordBatch], max_attempts: int) -> None:
        settled: list[Hashes] = []
        failed: list[Hashes] = []
        for batch in labelled:
            hashes = hash_keys(batch["uri"], batch["identity"])
            transient = np.isin(batch["status"].to_numpy(zero_copy_only=False), TRANSIENT)
            settled.append(hashes[~transient])
            failed.append(hashes[transient])
        self.rows = sum(map(len, settled)) + sum(map(len, failed))
        self._keys = KeySet()
        if settled:
            self._keys.add(np.concatenate(settled))
        if failed:
            keys, counts = np.unique(np.concatenate(failed), axis=0, return_counts=True)
            self._keys.add(keys[counts >= max_attempts])

    def claim(self, page: pa.Table) -> pa.Table:
        """The rows of ``page`` that are new work; they are remembered, so that no later page gets them again."""
        hashes = hash_keys(page["uri"], page["identity"])
        first = np.zeros(len(hashes), bool)
        first[np.unique(hashes, axis=0, return_index=True)[1]] = True
        new = first & ~self._keys.contains(hashes)
        self._keys.add(hashes[new])
        return page.filter(pa.array(new))


def _sorted(hashes: Hashes) -> Hashes:
    return hashes[np.argsort(hashes[:, 0], kind="stable")]


def _contains(run: Hashes, wanted: Hashes) -> npt.NDArray[np.bool_]:
    if not len(run):
        return np.zeros(len(wanted), bool)
    order = np.argsort(wanted[:, 0], kind="stable")  # neighbouring searches touch neighbouring memory
    place = np.minimum(np.searchsorted(run[:, 0], wanted[order, 0]), len(run) - 1)
    found = np.empty(len(wanted), bool)
    found[order] = (run[place] == wanted[order]).all(axis=1)
    return found
