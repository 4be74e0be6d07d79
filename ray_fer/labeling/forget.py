"""Forgetting pictures: no file of a table holds a row of theirs any more, of no version of it.

Embeddings of faces are biometric data, and whose face it is may ask for that.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from ray_fer import storage
from ray_fer.data.sources.lists import named_keys
from ray_fer.data.uris import FACE_FRAGMENT, resolve
from ray_fer.errors import UserError
from ray_fer.labeling.table import place_of, write_file

_LISTS = (".txt", ".csv")
_TRIES = 10


def named(entries: Sequence[str]) -> pl.Series:
    """The URIs that ``entries`` name: each is a picture, or a face in one, or a list of such (``.txt``, ``.csv``).

    Raises:
        UserError: for a list that cannot be read, and for what can name no object.
    """
    uris: list[str] = []
    for entry in entries:
        if entry.lower().endswith(_LISTS):
            uris += (
                uri for keys in named_keys(storage.normalise(entry), None, Counter()) for uri in keys["uri"].to_pylist()
            )
        else:
            uris.append(resolve(storage.normalise("."), entry))
    return pl.Series(uris, dtype=pl.String).unique()


def holds(uri: str, wanted: pl.Series) -> int:
    """The rows about ``wanted`` in the Parquet file at ``uri``; those of a file that is cut count as one."""
    fs, path = storage.arrow_filesystem(uri)[0], storage.filesystem(uri)[1]
    try:
        held = pq.read_table(path, columns=["uri"], filesystem=fs, partitioning=None)
    except (pa.ArrowInvalid, OSError):
        return 1
    return int(_among(held, wanted).sum())


def rewrite_without(table: DeltaTable, wanted: pl.Series) -> int:
    """Replaces every file of the newest version that holds rows about ``wanted`` by one without them.

    Args:
        table: brought up to the version that it has afterwards.
        wanted: as `named` gives it; of a picture all of its faces are meant.

    Returns:
        The rows that are left out.

    Raises:
        UserError: when others are always faster.
    """
    for _ in range(_TRIES):
        table.update_incremental()
        rows, actions = 0, list[AddAction | RemoveAction]()
        adds = pa.table(table.get_add_actions(flatten=True)).select(["path", "size_bytes", "partition.model"])
        for path, size, model in zip(*adds.to_pydict().values(), strict=True):
            uri, now = storage.join(place_of(table), unquote(path)), int(time.time() * 1000)
            if not (found := holds(uri, wanted)):
                continue
            rows += found
            actions.append(RemoveAction(path, True, now, size, {"model": model}))
            held = pq.read_table(
                storage.filesystem(uri)[1], filesystem=storage.arrow_filesystem(uri)[0], partitioning=None
            )
            kept = held.filter(pa.array(~_among(held, wanted).to_numpy()))
            if kept.num_rows:
                file = write_file(place_of(table), model, kept, "kept")
                stats = json.dumps({"numRecords": file.rows})
                actions.append(AddAction(file.path, file.bytes, {"model": model}, now, True, stats))
        if not actions:
            return 0
        try:
            once = CommitProperties(max_commit_retries=0)
            table.create_write_transaction(
                actions, mode="append", schema=table.schema(), partition_by=["model"], commit_properties=once
            )
        except CommitFailedError:  # a labelling run has committed or compacted
            continue
        table.update_incremental()
        return rows
    raise UserError(f"table={place_of(table)}: is being written; forget when no run is labelling")


def _among(rows: pa.Table, wanted: pl.Series) -> pl.Series:
    uris = pl.Series(pl.from_arrow(rows["uri"]))
    return uris.is_in(wanted.implode()) | uris.str.replace(FACE_FRAGMENT, "").is_in(wanted.implode())
