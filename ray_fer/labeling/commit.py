"""Commits: from then on a written file exists for readers.

Optimistic: a commit lands only on the table version that was looked at. When another run has committed since, its rows
are compared with ours first, and what it has labelled is left out of our files. So two runs at once on one table do not
write an image twice either.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence

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
from ray_fer.labeling.ledger import KEY_HASHES, Halves, KeySet, halves_of
from ray_fer.labeling.table import (
    MARKS,
    TRANSIENT,
    WrittenFile,
    files_of,
    picture_uri,
    place_of,
    read_keys,
    write_file,
)

log = logging.getLogger(__name__)

_TRIES = 30


class Committer:
    """Adds one run's files to the table.

    Args:
        table: at the version that the run's ledger was read from; it is kept up to date from here on.
        model: whose files they are.
        run: named in the log entries.
    """

    def __init__(self, table: DeltaTable, model: str, run: str) -> None:
        self.table, self.model, self.run = table, model, run
        self._seen = set(files_of(table, model))
        self._by_others = KeySet()

    def commit(self, files: Sequence[WrittenFile]) -> int:
        """Adds ``files`` in one transaction.

        Returns:
            The images that were left out because another run had labelled them in the meantime.

        Raises:
            RuntimeError: when the table cannot be written, or others are always faster.
        """
        ours, dropped = list(files), 0
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(5.0, 0.05 * 2**attempt) * (0.5 + np.random.random()))
            try:
                self.table.update_incremental()
                if ours and storage.join(place_of(self.table), ours[0].path) in files_of(self.table, self.model):
                    break  # the last try had landed, only its answer was lost
                self._look_at_others()
                ours, removed = self._without_rows_of_others(ours)
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

    def _look_at_others(self) -> None:
        landed = set(files_of(self.table, self.model)) - self._seen
        for batch in read_keys(self.table, self.model, landed):
            settled = batch.filter(pa.array(~_has_status(batch, (*TRANSIENT, *MARKS))))
            self._by_others.add(self._hashes(settled))
        self._seen |= landed

    def _without_rows_of_others(self, ours: Sequence[WrittenFile]) -> tuple[list[WrittenFile], int]:
        if not len(self._by_others):
            return list(ours), 0
        kept: list[WrittenFile] = []
        removed = 0
        fs, _ = storage.arrow_filesystem(place_of(self.table))
        for file in ours:
            path = storage.filesystem(storage.join(place_of(self.table), file.path))[1]
            rows = pq.read_table(path, filesystem=fs, partitioning=None)
            hashes = self._hashes(rows)
            known = self._by_others.contains(hashes) & ~_has_status(rows, MARKS)
            fresh = rows.filter(pa.array(~known))
            removed += len(np.unique(hashes[0, known]))
            if fresh.num_rows == rows.num_rows:
                kept.append(file)
            elif fresh.num_rows:
                name = file.path.split("/")[-1].rsplit("-", 1)[0]
                kept.append(write_file(place_of(self.table), self.model, fresh, name))
        return kept, removed

    def _hashes(self, rows: pa.Table | pa.RecordBatch) -> Halves:
        keys = pl.DataFrame(pl.from_arrow(rows.select(["uri", "identity"])))
        return halves_of(keys.with_columns(picture_uri(self.model)).select(KEY_HASHES))

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
        # No blind retries inside: every other commit has to be looked at first.
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
