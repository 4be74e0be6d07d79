"""Maintenance of the predictions table: joins small files and removes files that no reader needs any more."""

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
# Joining fewer files costs more than it saves.
FEWEST_FILES = 16
# Each task holds a row group of every file that it reads.
_TASKS = 4
_DELETES_AT_ONCE = 16
_EXAMPLES = 5
# The files of `table.write_file` and of compaction, and the temporary files that a killed writer leaves on a disk.
_PAGE = re.compile(r"_runs/[^/]+/report\.html")
_OURS = re.compile(r"model=[^/]+/\.?[^/]+\.parquet(\.[0-9a-f]{8}\.tmp)?")


def compact(table: DeltaTable, model: str) -> dict[str, int]:
    """Joins the small files of ``model`` into files of about `TARGET_BYTES`, if there are enough of them.

    The rows do not change. The small files stay until they are vacuumed, so readers of older versions and other runs
    are not disturbed. If two runs compact at the same time, one of them gives up.

    Args:
        table: Predictions table, which is updated to its new version.
        model: Id of the model.

    Returns:
        Number of files that were ``joined``, and number of ``files`` that they became.
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
        config: Config of the job (see ``conf/vacuum.yaml``).

    Returns:
        The summary. It has the number and the ``bytes`` of the ``removed`` files, a few of them as ``examples``, and a
        few other files in the folder that were ``left_alone``. With ``dry_run``, these files are not removed. With
        ``forget``, it has the number of rows that were ``forgotten``.

    Raises:
        UserError: If there is no table, or a list in ``forget`` cannot be read.
    """
    uri = storage.normalise_argument("table", config.table)
    table = open_table(uri)
    if table is None:
        raise UserError(f"table={uri}: no predictions table there")
    wanted, forgotten = named(config.forget or ()), 0
    if config.forget and not config.dry_run:
        forgotten = rewrite_without(table, wanted)
    # deltalake knows which files no version within the retention needs. It would also delete files of other origin, and
    # it lists files that earlier vacuums have removed.
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
    except FileNotFoundError:  # another vacuum has removed it
        return
