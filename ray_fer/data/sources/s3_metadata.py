"""S3 Metadata: the Apache Iceberg tables in which S3 itself keeps what a bucket holds.

A *journal* has a record per event, several of one object and some of them twice; a *live inventory* has a row per
version of an object. As in AWS's own queries, the record of a version with the largest sequence number is its state. A
version that was deleted for good is left out, and the newest of the others is the object, unless it is a delete marker.
A version is as new as its last record other than ``UPDATE_METADATA``, because lifecycle rules touch old ones.

For that, the needed columns are spread by key over files in the temporary folder, which are read one after the other:
memory holds a `PARTS`-th of the table, or `READERS` of its data files. An inventory of a bucket that never had versions
names every object once and is streamed.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ray_fer import storage
from ray_fer.data.sources.ahead import interleaved
from ray_fer.data.sources.columns import guarded
from ray_fer.data.sources.lists import bucket_objects
from ray_fer.data.sources.spec import Format, Source
from ray_fer.data.sources.tar import images_among
from ray_fer.errors import UserError, one_line

PARTS = 64
READERS = 4
_SCHEMA = pa.schema(
    [
        ("bucket", pa.string()),
        ("key", pa.string()),
        ("sequence_number", pa.string()),
        ("record_type", pa.string()),
        ("version_id", pa.string()),
        ("is_delete_marker", pa.bool_()),
        ("size", pa.int64()),
        ("e_tag", pa.string()),
    ]
)
_NEEDED = ("bucket", "key", "sequence_number")


class S3Metadata(Format):
    """The objects that are there by a journal or live inventory table of S3 Metadata.

    A source is the URI of the Iceberg table's ``….metadata.json``, or ``CATALOG.NAMESPACE.TABLE``. The catalog is then
    configured as pyiceberg's are (``~/.pyiceberg.yaml``, ``PYICEBERG_CATALOG__…``).
    """

    is_feed = True
    may_be_empty = True

    def normalise(self, uri: str) -> str:
        """A table's name in a catalog stays as it is."""
        return super().normalise(uri) if "/" in uri else uri

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the images that are there; ``skipped`` counts records of other states too."""
        return images_among(source, _list_objects(source.uri, counts), counts)


def _list_objects(place: str, counts: Counter[str]) -> Iterator[pa.Table]:
    table = _open(place)
    names = [field.name for field in table.schema().fields]
    for needed in _NEEDED:
        if needed not in names:
            raise UserError(
                f"source={place}: no table of S3 Metadata: no column {needed}, there are {', '.join(names)}"
            )
    records = _records(place, table, [name for name in _SCHEMA.names if name in names])
    if "record_type" in names or _has_versions(place, table, names):
        records = _current(records, counts)
    with guarded(place):
        for some in records:
            size = some["size"].cast(pa.string())
            yield from bucket_objects(some["bucket"], some["key"], some["e_tag"], size, counts)


def _open(place: str) -> Any:
    try:
        catalogs, tables = import_module("pyiceberg.catalog"), import_module("pyiceberg.table")
    except ImportError:
        raise UserError(f"source={place}: to read Iceberg tables, pip install 'ray-fer[iceberg]'") from None
    try:
        if "/" in place:
            # s3fs and botocore find credentials and endpoint as everything else here does.
            return tables.StaticTable.from_metadata(place, {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"})
        catalog, _, name = place.partition(".")
        return catalogs.load_catalog(catalog).load_table(name)
    except Exception as error:  # each kind of catalog and store has its own
        hint = "" if storage.is_remote(place) or "/" not in place else "; name its ….metadata.json"
        raise UserError(f"source={place}: cannot be opened as an Iceberg table ({one_line(error)}){hint}") from None


def _records(place: str, table: Any, columns: list[str], condition: str = "true") -> Iterator[pa.Table]:
    """Tables of `_SCHEMA`, `READERS` data files at a time; columns other than ``columns`` are null."""
    try:
        scan = table.scan(selected_fields=tuple(columns), row_filter=condition)
        # The scan's own reader would read all files at once, however slowly they are drawn.
        reader = import_module("pyiceberg.io.pyarrow").ArrowScan(
            table.metadata, table.io, scan.projection(), scan.row_filter
        )
        tasks = list(scan.plan_files())
        for batch in interleaved(tasks, lambda task: reader.to_record_batches([task]), READERS):
            held = [
                batch[field.name].cast(field.type) if field.name in columns else pa.nulls(batch.num_rows, field.type)
                for field in _SCHEMA
            ]
            yield pa.Table.from_arrays(held, schema=_SCHEMA)
    except Exception as error:  # each kind of store has its own
        raise UserError(f"source={place}: cannot be read ({one_line(error)})") from None


def _has_versions(place: str, table: Any, names: list[str]) -> bool:
    """Whether an inventory holds any versions; where it does not, its statistics say so."""
    if "version_id" not in names:
        return False
    found = _records(place, table, ["version_id"], "version_id IS NOT NULL")
    return any(some.num_rows for some in found)


def _current(records: Iterable[pa.Table], counts: Counter[str]) -> Iterator[pa.Table]:
    """The rows of `_SCHEMA` that are the last state of an object that is there."""
    with tempfile.TemporaryDirectory(prefix="ray_fer-") as folder:
        for part in _spread(records, folder):
            with pa.ipc.open_stream(part) as stream:
                rows = stream.read_all()
            os.unlink(part)
            current = last_states(pl.DataFrame(rows)).to_arrow().cast(_SCHEMA)
            counts["skipped"] += rows.num_rows - current.num_rows
            yield current


def _spread(records: Iterable[pa.Table], folder: str) -> list[str]:
    """Writes ``records`` into `PARTS` files, all of a key into the same, and returns their paths."""
    paths = [os.path.join(folder, str(part)) for part in range(PARTS)]
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as files:
        parts = [files.enter_context(pa.ipc.new_stream(path, _SCHEMA, options=options)) for path in paths]
        for some in records:
            part = (pl.Series(some["key"]).hash() % PARTS).to_numpy()
            order = np.argsort(part, kind="stable")
            bounds = np.searchsorted(part[order], np.arange(PARTS + 1))
            sorted_by_part = some.take(pa.array(order))
            for writer, start, end in zip(parts, bounds[:-1], bounds[1:], strict=True):
                if start < end:
                    writer.write_table(sorted_by_part.slice(start, end - start))
    return paths


def last_states(records: pl.DataFrame) -> pl.DataFrame:
    """The last state of each object that is there.

    Args:
        records: all of some keys, in any order and repeated, with the columns ``bucket``, ``key``, ``sequence_number``,
            ``record_type`` (null in an inventory), ``version_id``, ``is_delete_marker``, ``size``, ``e_tag``.

    Returns:
        Their rows, one for each object.
    """
    made = pl.col("sequence_number").filter(pl.col("record_type").ne_missing("UPDATE_METADATA")).last()
    marker = pl.col("is_delete_marker").fill_null(False)
    deleted = pl.col("record_type").eq_missing("DELETE") & ~marker
    versions = (
        records.with_columns(pl.col("version_id").fill_null(""))
        .sort("sequence_number")
        .group_by("bucket", "key", "version_id")
        .agg(pl.all().last(), made.alias("made"))
        .filter(~deleted)
    )
    objects = versions.sort("made", "sequence_number", nulls_last=False).group_by("bucket", "key").last()
    return objects.filter(~marker).select(records.columns)
