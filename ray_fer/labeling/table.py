"""The predictions table: a Delta table that is result and ledger in one.

Workers write Parquet files into the table's folder; a file exists for readers only once the driver has added it to the
transaction log (`commit`). So a worker, a node or the driver may die at any moment: what was committed stays, what was
not is work for the next run.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

import botocore.exceptions
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.schema import Field, PrimitiveType

from ray_fer import storage
from ray_fer.data.uris import FACE_FRAGMENT
from ray_fer.errors import UserError, one_line
from ray_fer.models.model_id import sees_faces

OK = "ok"
# Its picture is done, but there is nothing to predict.
NO_FACE = "no_face"
SUCCESSES = (OK, NO_FACE)
# Nothing will change until the object does.
CRASHED = "crashed"
NOT_FINITE = "not_finite"  # the model puts out NaN or infinity for it
PERMANENT = ("undecodable", "too_large", CRASHED, NOT_FINITE)
# May be otherwise on a later run.
TRANSIENT = ("missing", "unreadable")
# Not about a content but about the object's place: the first two are of `tombstones`. The third says that an
# object was read and found to be labelled already, under another identity than the listed one.
GONE, RETURNED, KNOWN = "gone", "returned", "known"
MARKERS = (GONE, RETURNED, KNOWN)

FILE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),  # of a face where faces were detected
        ("identity", pa.string()),  # ETag, or size and mtime, of the bytes that were read
        ("listed_identity", pa.string()),  # what the listing said instead; null where that is the same, or unknown
        ("digest", pa.binary()),  # xxh3-128 of the bytes; null when they could not be read
        ("source", pa.string()),
        ("probs", pa.list_(pa.float32())),  # in the table's class order; null on failure
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("attempt", pa.int32()),  # which try of this (uri, identity, model) it is, from 1; null for markers
        ("run", pa.string()),
        ("labelled_at", pa.timestamp("us", tz="UTC")),
    ]
)
TABLE_SCHEMA = FILE_SCHEMA.append(pa.field("model", pa.string()))
KEY_COLUMNS = ("uri", "identity", "listed_identity", "status", "labelled_at", "source")
READ_COLUMNS = ("uri", "identity", "listed_identity", "status")
# Tables, and files in them, of earlier versions lack it.
_LATER_COLUMN = "listed_identity"
_TRIES = 10
# Of a long file no reader needs to hold more at a time.
ROW_GROUP_ROWS = 1 << 17
_CLASSES_KEY = "ray_fer.classes"


@dataclass(frozen=True)
class WrittenFile:
    """A Parquet file in the table's folder that is not committed yet: path relative to the table, bytes, rows."""

    path: str
    bytes: int
    rows: int


def open_table(uri: str, classes: Sequence[str] | None = None) -> DeltaTable | None:
    """The table at ``uri``, or None where there is none.

    Args:
        uri: local or ``s3://``.
        classes: when given, the class order that the table must have.

    Raises:
        UserError: when something else is there, or a table of other columns or classes.
    """
    uri = storage.normalise(uri)
    options = storage.delta_options(uri)
    try:
        if not DeltaTable.is_deltatable(uri, storage_options=options):
            _check_vacant(uri)
            return None
        table = DeltaTable(uri, storage_options=options)
    except (OSError, DeltaError, botocore.exceptions.BotoCoreError) as error:
        raise UserError(f"table={uri}: cannot be opened ({one_line(error)})") from None
    names = {field.name for field in table.schema().fields}
    missing = [name for name in TABLE_SCHEMA.names if name not in names and name != _LATER_COLUMN]
    if missing:
        raise UserError(f"table={uri}: a Delta table without the column {missing[0]!r}, so not one of predictions")
    held = table_classes(table)
    if classes is not None and held != tuple(classes):
        raise UserError(f"table={uri}: its classes are {', '.join(held)}; the model's are {', '.join(classes)}")
    return table


def _check_vacant(uri: str) -> None:
    others = [name for name in storage.list_dir(uri) if not name.startswith(("_", "."))]
    if others:
        raise UserError(f"table={uri}: no table is there but other files, like {others[0]!r}; choose an empty folder")


def create_table(uri: str, classes: Sequence[str]) -> DeltaTable:
    """Opens the table at ``uri`` for writing, making an empty one first where there is none.

    One that an earlier version has made gets the column that it lacks.

    Raises:
        UserError: as `open_table`, and when it cannot be made or changed.
    """
    uri = storage.normalise(uri)
    if (table := open_table(uri, classes)) is not None:
        return _with_all_columns(table)
    reason = ""
    try:
        DeltaTable.create(
            uri,
            schema=TABLE_SCHEMA,
            mode="error",
            partition_by=["model"],
            description="ray-fer predictions",
            configuration={_CLASSES_KEY: json.dumps(list(classes))},
            raise_if_key_not_exists=False,
            storage_options=storage.delta_options(uri),
        )
    except (OSError, DeltaError) as error:  # or it was made by another run since we looked
        reason = one_line(error)
    table = open_table(uri, classes)
    if table is None:
        raise UserError(f"table={uri}: cannot be made ({reason})")
    return _with_all_columns(table)


def _with_all_columns(table: DeltaTable) -> DeltaTable:
    reason = ""
    for _ in range(_TRIES):
        if any(field.name == _LATER_COLUMN for field in table.schema().fields):
            return table
        try:
            table.alter.add_columns(Field(_LATER_COLUMN, PrimitiveType("string")))
        except (OSError, DeltaError) as error:  # or another run was faster with it, or with rows
            reason = one_line(error)
            table.update_incremental()
    raise UserError(f"table={place_of(table)}: its columns cannot be changed ({reason})")


def table_classes(table: DeltaTable) -> tuple[str, ...]:
    """Class names in the order of ``probs``."""
    return tuple(json.loads(table.metadata().configuration.get(_CLASSES_KEY) or "[]"))


def write_file(table_uri: str, model: str, rows: pa.Table, name: str) -> WrittenFile:
    """Writes ``rows`` (of `FILE_SCHEMA`) as a Parquet file of the partition ``model``, unseen before `commit`."""
    path = f"model={model}/{name}-{uuid.uuid4().hex[:12]}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(table_uri, path), data)
    return WrittenFile(path, len(data), rows.num_rows)


def place_of(table: DeltaTable) -> str:
    """The URI of ``table`` as `storage.normalise` spells it; deltalake's own is quoted, and a URL even on disk."""
    uri = table.table_uri
    return storage.normalise(unquote(uri) if storage.is_remote(uri) else uri)


def files_of(table: DeltaTable, model: str) -> list[str]:
    """URIs of the committed files of ``model``."""
    return [unquote(uri) for uri in table.file_uris(file_pruning_predicate=[("model", "=", model)])]


def picture_uri(model: str) -> pl.Expr:
    """Of the column ``uri`` of rows of ``model`` what the ledger knows them by: of faces the URIs of their pictures."""
    uri = pl.col("uri")
    return uri.str.replace(FACE_FRAGMENT, "") if sees_faces(model) else uri


def scan_rows(table: DeltaTable, model: str) -> pl.LazyFrame:
    """What ``model`` has labelled, many files at once, in their names' order; only what is asked for is read."""
    files = sorted(files_of(table, model))
    if not files:
        return _no_rows()
    # A table's folder may have any name: it is neither a pattern nor does it hold values.
    return pl.scan_parquet(
        files,
        glob=False,
        hive_partitioning=False,
        schema=_no_rows().collect_schema(),
        missing_columns="insert",
        **storage.polars_arguments(place_of(table)),
    )


def scan_keys(table: DeltaTable, model: str) -> pl.LazyFrame:
    """`KEY_COLUMNS` of what ``model`` has labelled.

    The URI is that of the picture; one with several faces is there several times. Identities are spelt as listings
    spell them; earlier versions kept how a gateway had weakened an ETag.
    """
    plain = pl.col("identity").str.strip_prefix('W/"')
    return scan_rows(table, model).with_columns(picture_uri(model), plain).select(KEY_COLUMNS)


def no_keys() -> pl.LazyFrame:
    """What `scan_keys` gives of an empty table."""
    return _no_rows().select(KEY_COLUMNS)


def _no_rows() -> pl.LazyFrame:
    return pl.DataFrame(pl.from_arrow(FILE_SCHEMA.empty_table())).lazy()


def read_keys(table: DeltaTable, model: str, files: Iterable[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of `READ_COLUMNS` of what ``model`` has labelled, in all files or the given ones."""
    wanted = files_of(table, model) if files is None else files
    fs, _ = storage.arrow_filesystem(place_of(table))
    for uri in wanted:
        path = storage.filesystem(uri)[1]
        for batch in pq.ParquetFile(path, filesystem=fs).iter_batches(1 << 18, columns=list(READ_COLUMNS)):
            if _LATER_COLUMN not in batch.schema.names:
                batch = batch.append_column(_LATER_COLUMN, pa.nulls(batch.num_rows, pa.string()))
            yield batch.select(READ_COLUMNS)


def marker_rows(rows: pl.DataFrame, run: str) -> pa.Table:
    """Returns markers as a table of `FILE_SCHEMA`, stamped with run and time; columns that ``rows`` lack are null."""
    stamped = rows.with_columns(pl.lit(run).alias("run"), pl.lit(datetime.now(UTC)).alias("labelled_at"))
    columns = [
        stamped[field.name].to_arrow().cast(field.type)
        if field.name in stamped.columns
        else pa.nulls(len(stamped), field.type)
        for field in FILE_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=FILE_SCHEMA)
