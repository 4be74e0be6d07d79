"""Tables that lie in folders of Parquet files: which of the files belong to their present version.

A Delta table keeps the files of its earlier versions, with what was deleted since, and so do Iceberg and Hudi tables.
The table's log says which files count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import botocore.exceptions
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from ray_fer import storage
from ray_fer.errors import STORE_ERRORS, UserError, as_user_error

_MARKS = {
    "Delta": re.compile(r"(.*)/_delta_log/\d{20}\.[^/]+"),
    "Iceberg": re.compile(r"(.*)/metadata/[^/]*\.metadata\.json"),
    "Hudi": re.compile(r"(.*)/\.hoodie/hoodie\.properties"),
}
_LOGS = {"Delta": "_delta_log", "Iceberg": "metadata", "Hudi": ".hoodie"}


def table_of_mark(uri: str) -> tuple[str, str] | None:
    """The folder and the kind of the table that the file ``uri`` belongs to the log of; None for any other file."""
    for kind, pattern in _MARKS.items():
        if found := pattern.fullmatch(uri):
            return found[1], kind
    return None


def above_partitions(folder: str) -> str:
    """``folder`` without the partitions, like ``year=2024``, that it ends with."""
    while "=" in (name := folder.rpartition("/"))[2] and name[0]:
        folder = name[0]
    return folder


def table_around(folder: str) -> tuple[str, str] | None:
    """The folder and the kind of the table that ``folder`` is a part of: itself, or the one above ``data``."""
    while True:
        for kind, log in _LOGS.items():
            if any(table_of_mark(f"{folder}/{log}/{name}") for name in _names(f"{folder}/{log}")):
                return folder, kind
        above, _, name = folder.rpartition("/")
        if name != "data" or not above.removeprefix("s3:/").strip("/"):
            return None
        folder = above


def _names(folder: str) -> list[str]:
    try:
        return storage.list_dir(folder)
    except (OSError, ValueError, UserError, botocore.exceptions.BotoCoreError):  # no permission to look
        return []


def current_files(files: Sequence[str], tables: Mapping[str, str]) -> list[str]:
    """``files`` without those that do not belong to the present version of their Delta table.

    Args:
        files: URIs.
        tables: kind of each table by its folder, as `table_of_mark` and `table_around` give them.

    Raises:
        UserError: for a table of another kind, or one that cannot be read as plain Parquet files.
    """
    theirs: dict[str, list[str]] = {}
    kept = []
    for file in files:
        if (table := _owner(file, tables)) is None:
            kept.append(file)
        else:
            theirs.setdefault(table, []).append(file)
    for table, held in theirs.items():
        if (kind := tables[table]) != "Delta":
            raise UserError(
                f"source={table}: a table of {kind}, of which files alone do not tell what was deleted; "
                "write its rows to Parquet files"
            )
        now = delta_files(table)
        kept += [file for file in held if file in now]
    return sorted(kept)


def _owner(file: str, tables: Mapping[str, str]) -> str | None:
    folder = os.path.dirname(file)
    while folder.removeprefix("s3:/").strip("/"):
        if folder in tables:
            return folder
        folder = os.path.dirname(folder)
    return None


def delta_files(table: str) -> set[str]:
    """URIs of the files of the present version of the Delta table in the folder ``table``.

    Raises:
        UserError: when it cannot be opened, has deletion vectors, or other names for its columns than the files have.
    """
    with as_user_error(f"source={table}: a Delta table that cannot be opened", (*STORE_ERRORS, DeltaError)):
        opened = DeltaTable(table, storage_options=storage.delta_options(table))
        features = opened.protocol().reader_features or []
        mapping = opened.metadata().configuration.get("delta.columnMapping.mode", "none")
        paths = opened.get_add_actions()["path"].to_pylist()
    if mapping != "none":
        raise UserError(f"source={table}: a Delta table with column mapping; write its rows to Parquet files")
    if "deletionVectors" in features and _has_deletion_vectors(opened):
        raise UserError(
            f"source={table}: a Delta table with deletion vectors; REORG TABLE … APPLY (PURGE) removes them"
        )
    return {f"{table}/{unquote(path)}" for path in paths}


def _has_deletion_vectors(table: DeltaTable) -> bool:
    try:
        return any(batch.num_rows for batch in table.deletion_vectors())
    except (OSError, DeltaError):  # there are some, which cannot be read
        return True
