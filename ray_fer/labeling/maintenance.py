"""Keeping the predictions table in shape: small files are joined, and what no reader needs any more is removed."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import ColumnProperties, DeltaTable, WriterProperties
from deltalake.exceptions import CommitFailedError

from ray_fer import storage
from ray_fer.errors import UserError, one_line
from ray_fer.labeling.config import VacuumConfig
from ray_fer.labeling.forget import holds, named, rewrite_without
from ray_fer.labeling.table import GROUP_BYTES, ROW_GROUP_ROWS, open_table, table_embedding

log = logging.getLogger(__name__)

TARGET_BYTES = 128 << 20
# Joining fewer costs more than it saves.
FEWEST_FILES = 16
# Each holds a row group of every file it reads.
_TASKS = 4
_DELETES_AT_ONCE = 16
_EXAMPLES = 5
# What `table.write_file` and compaction write, and what a killed writer leaves on a local disk on its way there.
_PAGE = re.compile(r"_runs/[^/]+/report\.html")
_OURS = re.compile(r"model=[^/]+/\.?[^/]+\.parquet(\.[0-9a-f]{8}\.tmp)?")


def compact(table: DeltaTable, model: str) -> dict[str, int]:
    """Joins the small files of ``model`` into files of about `TARGET_BYTES`, if there are enough of them.

    The rows stay as they are. Readers of older versions, and other runs, are not disturbed: the joined files stay until
    they are vacuumed. When another run compacts at the same time, one of the two gives up.

    Args:
        table: brought up to the version it has afterwards.
        model: a model id.

    Returns:
        How many files were ``joined``, and the number of ``files`` that they became.
    """
    table.update_incremental()
    adds = pa.table(table.get_add_actions(flatten=True)).select(["partition.model", "size_bytes"]).to_pylist()
    small = [add for add in adds if add["partition.model"] == model and add["size_bytes"] < TARGET_BYTES // 2]
    if len(small) < FEWEST_FILES:
        return {"joined": 0, "files": 0}
    facts = table_embedding(table, model)
    rows = min(ROW_GROUP_ROWS, GROUP_BYTES // (2 * facts["dimension"])) if facts else ROW_GROUP_ROWS
    try:
        metrics = table.optimize.compact(
            partition_filters=[("model", "=", model)],
            target_size=TARGET_BYTES,
            max_concurrent_tasks=_TASKS,
            # Statistics would put the names of pictures into the table's log, which no file is removed from.
            writer_properties=WriterProperties(
                compression="ZSTD",
                max_row_group_size=rows,
                default_column_properties=ColumnProperties(statistics_enabled="NONE"),
            ),
        )
    except CommitFailedError as error:
        log.warning("small files were not joined, another writer was faster (%s)", one_line(error))
        table.update_incremental()
        return {"joined": 0, "files": 0}
    return {"joined": metrics["numFilesRemoved"], "files": metrics["numFilesAdded"]}


def vacuum(config: VacuumConfig) -> dict[str, Any]:
    """Removes the files of a table that were written but never committed, or that compaction has replaced.

    With ``forget``, the rows about some pictures are removed first, and then also every file of older versions that
    holds one, and the pages of the table's runs, which show faces.

    Args:
        config: see ``conf/vacuum.yaml``.

    Returns:
        The summary: number and ``bytes`` of the ``removed`` files (with ``dry_run``: of those that would be), a few of
        them as ``examples``, and a few strangers in the table's folder that were ``left_alone``; with ``forget`` how
        many rows were ``forgotten``.

    Raises:
        UserError: when no table is there, or a list in ``forget`` cannot be read.
    """
    uri = storage.normalise_argument("table", config.table)
    table = open_table(uri)
    if table is None:
        raise UserError(f"table={uri}: no predictions table there")
    wanted, forgotten = named(config.forget or ()), 0
    if config.forget and not config.dry_run:
        forgotten = rewrite_without(table, wanted)
    # deltalake knows which files no version within the retention needs. By itself it would also delete strangers, and
    # it names what earlier vacuums have removed.
    unneeded, replaced = (
        table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        for hours in (config.retain_hours, 0)
    )
    fs, path = storage.filesystem(uri)
    sizes = {name[len(path) + 1 :]: entry["size"] for name, entry in fs.find(path, detail=True).items()}
    present = sorted(sizes.keys() & set(unneeded))
    ours = [name for name in present if _OURS.fullmatch(name)]
    if config.forget:
        older = (name for name in sorted(sizes.keys() & set(replaced) - set(ours)) if _OURS.fullmatch(name))
        ours += [name for name in older if holds(storage.join(uri, name), wanted)]
        ours += [name for name in sizes if _PAGE.fullmatch(name)]
    if config.forget and config.dry_run:
        forgotten = sum(holds(file, wanted) for file in map(unquote, table.file_uris()))
    if not config.dry_run:
        with ThreadPoolExecutor(_DELETES_AT_ONCE) as pool:
            list(pool.map(lambda name: _delete(storage.join(uri, name)), ours))
    return {
        "table": uri,
        "version": table.version(),
        "dry_run": config.dry_run,
        **({"forgotten": forgotten} if config.forget else {}),
        "removed": len(ours),
        "bytes": sum(sizes[name] for name in ours),
        "examples": ours[:_EXAMPLES],
        "left_alone": [name for name in present if not _OURS.fullmatch(name)][:_EXAMPLES],
    }


def _delete(uri: str) -> None:
    fs, path = storage.filesystem(uri)
    try:
        fs.rm_file(path)
    except FileNotFoundError:  # another vacuum was faster
        return
