"""Commits to the predictions table, which make written files visible to readers.

Commits use optimistic concurrency control: a commit succeeds only on the table version that the run has read. If
another run has committed since, its rows are compared with ours first, and the images that it has labelled are left out
of our files. Two runs on one table therefore never write an image twice.

An object may have been read under another identity than the listed one. If the ledger knows that content, its rows are
left out too. A marker takes their place and tells the next run how the object was listed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence

import botocore.exceptions
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from ray_fer import storage
from ray_fer.errors import one_line
from ray_fer.labeling.key_sets import KEY_HASHES, LISTED_HASHES, KeyHashes, KeySet, key_hashes, listed_key_hashes
from ray_fer.labeling.table import (
    KNOWN,
    MARKERS,
    TRANSIENT,
    WrittenFile,
    files_of,
    lacks_embedding,
    marker_rows,
    picture_uri,
    place_of,
    read_keys,
    write_file,
)

log = logging.getLogger(__name__)

_TRIES = 30

Listed = tuple[str, str | None]
"""URI of a picture and the identity that it was listed with, or None if that identity is unknown."""


class Committer:
    """Adds the files of one run and one model to the table.

    Args:
        table: Predictions table at the version that the run's ledger was read from. The committer keeps it up to date.
        model: Id of the model that made the predictions.
        run: Name of the run, which the entries of the table's log give.
        embed: Whether a picture that others have labelled without an embedding counts as not labelled.
    """

    def __init__(self, table: DeltaTable, model: str, run: str, embed: bool = False) -> None:
        self.table, self.model, self.run, self.embed = table, model, run, embed
        self._seen = set(files_of(table, model))
        self._by_others = KeySet()

    def commit(self, files: Sequence[WrittenFile], known: Mapping[str, Collection[Listed]] | None = None) -> int:
        """Adds ``files`` in one transaction.

        Args:
            files: Written files; all rows of a picture are in one of them.
            known: For the path of a file, the pictures in it that were read under another identity than the listed one
                and whose content is labelled already. A marker `table.KNOWN` replaces their rows.

        Returns:
            Number of images that were left out because another run had labelled them in the meantime.

        Raises:
            RuntimeError: If no try succeeds, because the table cannot be written or other writers are always faster.
        """
        ours, dropped = list(files), 0
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(5.0, 0.05 * 2**attempt) * (0.5 + np.random.random()))
            try:
                self.table.update_incremental()
                if ours and storage.join(place_of(self.table), ours[0].path) in files_of(self.table, self.model):
                    break  # the last try succeeded and only its answer was lost
                self._read_others()
                ours, removed = self._without_known_rows(ours, known or {})
                dropped += removed
                if not ours:
                    break
                self._try(ours)
                self.table.update_incremental()
                break
            except CommitFailedError:
                continue
            except (OSError, DeltaError, botocore.exceptions.BotoCoreError) as error:
                log.warning("commit: %s", one_line(error))
        else:
            raise RuntimeError(f"{place_of(self.table)}: no commit in {_TRIES} tries")
        self._seen.update(storage.join(place_of(self.table), file.path) for file in ours)
        return dropped

    def _read_others(self) -> None:
        others = set(files_of(self.table, self.model)) - self._seen
        for batch in read_keys(self.table, self.model, others):
            settled = batch.filter(pa.array(~_has_status(batch, (*TRANSIENT, *MARKERS))))
            if self.embed:
                settled = pl.DataFrame(pl.from_arrow(settled)).filter(~lacks_embedding()).to_arrow()
            self._by_others.add(self._hashes(settled))
            self._by_others.add(self._hashes(settled, listed=True))
        self._seen |= others

    def _without_known_rows(
        self, ours: Sequence[WrittenFile], known: Mapping[str, Collection[Listed]]
    ) -> tuple[list[WrittenFile], int]:
        kept: list[WrittenFile] = []
        removed = 0
        for file in ours:
            pictures = known.get(file.path, ())
            if not pictures and not len(self._by_others):
                kept.append(file)
                continue
            rows = self._read(file)
            hashes = self._hashes(rows)
            theirs = self._by_others.contains(hashes) & ~_has_status(rows, MARKERS)
            removed += len(np.unique(hashes[0, theirs]))
            left_out = theirs | self._among(rows, pictures)
            if not left_out.any():
                kept.append(file)
                continue
            rest = pa.concat_tables([rows.filter(pa.array(~left_out)), self._markers(rows.filter(pa.array(left_out)))])
            if rest.num_rows:
                name = file.path.split("/")[-1].rsplit("-", 1)[0]
                kept.append(write_file(place_of(self.table), self.model, rest, name))
        return kept, removed

    def _read(self, file: WrittenFile) -> pa.Table:
        fs, _ = storage.arrow_filesystem(place_of(self.table))
        path = storage.filesystem(storage.join(place_of(self.table), file.path))[1]
        return pq.read_table(path, filesystem=fs, partitioning=None)

    def _among(self, rows: pa.Table, pictures: Collection[Listed]) -> npt.NDArray[np.bool_]:
        if not pictures:
            return np.zeros(rows.num_rows, bool)
        keys = pl.DataFrame(pl.from_arrow(rows.select(["uri", "listed_identity"]))).with_columns(
            picture_uri(self.model)
        )
        return np.fromiter((key in pictures for key in keys.iter_rows()), bool, rows.num_rows)

    def _markers(self, rows: pa.Table) -> pa.Table:
        """Returns a marker for every picture in ``rows`` whose listed identity differs from the one that was read."""
        columns = ["uri", "identity", "listed_identity", "source"]
        pictures = pl.DataFrame(pl.from_arrow(rows.select(columns))).with_columns(picture_uri(self.model))
        listed = pictures.filter(pl.col("listed_identity").is_not_null()).unique(maintain_order=True)
        return marker_rows(listed.with_columns(pl.lit(KNOWN).alias("status")), self.run)

    def _hashes(self, rows: pa.Table | pa.RecordBatch, listed: bool = False) -> KeyHashes:
        """Returns the hashed keys of ``rows``, uint64 (2, N).

        With ``listed``, these are the keys under which the rows were listed, of those rows for which they differ.
        """
        keys = pl.DataFrame(pl.from_arrow(rows.select(["uri", "identity", "listed_identity"])))
        keys = keys.with_columns(picture_uri(self.model))
        if not listed:
            return key_hashes(keys.select(KEY_HASHES))
        return listed_key_hashes(keys.filter(pl.col("listed_identity").is_not_null()).select(LISTED_HASHES))

    def _try(self, files: Sequence[WrittenFile]) -> None:
        actions: list[AddAction | RemoveAction] = [
            AddAction(
                path=file.path,
                size=file.bytes,
                partition_values={"model": self.model},
                modification_time=int(time.time() * 1000),
                data_change=True,
                stats=json.dumps({"numRecords": file.rows}),
            )
            for file in files
        ]
        # deltalake must not retry by itself: the rows of every other commit have to be compared first.
        properties = CommitProperties(custom_metadata={"run": self.run}, max_commit_retries=0)
        self.table.create_write_transaction(
            actions,
            mode="append",
            schema=self.table.schema(),
            partition_by=["model"],
            commit_properties=properties,
        )


def _has_status(rows: pa.Table | pa.RecordBatch, statuses: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.isin(rows["status"].to_numpy(zero_copy_only=False), statuses)
