"""The predictions table: a Delta table that holds the results and serves as the ledger.

Workers write Parquet files into the table's folder. Readers see a file only after the driver has added it to the
transaction log (see `commit`). A worker, a node or the driver may therefore die at any moment. Committed rows stay, and
the next run labels the other images.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
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
# The picture is done, but it has nothing to predict.
NO_FACE = "no_face"
SUCCESSES = (OK, NO_FACE)
# These last until the object changes.
CRASHED = "crashed"
NOT_FINITE = "not_finite"  # the model puts out NaN or infinity for it
PERMANENT = ("undecodable", "too_large", CRASHED, NOT_FINITE)
# A later run may succeed.
TRANSIENT = ("missing", "unreadable")
# Rows with these are not about a content. The first two are about the existence of an object (see `tombstones`). The
# third tells that an object was labelled already under another identity than the listed one.
GONE, RETURNED, KNOWN = "gone", "returned", "known"
MARKERS = (GONE, RETURNED, KNOWN)
# No row has it: what `scan_keys` makes of rows that a run with embeddings has to label again.
UNEMBEDDED = "unembedded"

FILE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),  # of a face where faces were detected
        ("identity", pa.string()),  # ETag, or size and modification time, of the bytes that were read
        ("listed_identity", pa.string()),  # listed identity if that is another one, else null
        ("digest", pa.binary()),  # xxh3-128 of the bytes; null when they could not be read
        ("source", pa.string()),
        ("probs", pa.list_(pa.float32())),  # in the order of the table's classes; null after a failure
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("attempt", pa.int32()),  # number of this try of (uri, identity, model), from 1; null for markers
        ("run", pa.string()),
        ("labelled_at", pa.timestamp("us", tz="UTC")),
        ("embedding", pa.binary()),  # float16 (D,), little-endian; null where none was wanted or it is not finite
        ("embedding_size", pa.int32()),  # D; 0 where it is not finite, null where none was wanted
    ]
)
TABLE_SCHEMA = FILE_SCHEMA.append(pa.field("model", pa.string()))
KEY_COLUMNS = ("uri", "identity", "listed_identity", "status", "labelled_at", "source")
READ_COLUMNS = ("uri", "identity", "listed_identity", "status", "embedding_size")
# Tables, and files in them, of earlier versions lack them.
_LATER_COLUMNS = {"listed_identity": "string", "embedding": "binary", "embedding_size": "integer"}
_TRIES = 10
# A reader of a long file holds that many rows at a time.
ROW_GROUP_ROWS = 1 << 17
GROUP_BYTES = 32 << 20
_CLASSES_KEY = "ray_fer.classes"
_EMBEDDING_KEY = "ray_fer.embedding."
NO_EMBEDDINGS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class WrittenFile:
    """A Parquet file in the table's folder that is not committed yet.

    Attributes:
        path: Path relative to the table.
        bytes: Size of the file.
        rows: Number of rows in it.
    """

    path: str
    bytes: int
    rows: int


def open_table(
    uri: str, classes: Sequence[str] | None = None, embeddings: Mapping[str, Any] = NO_EMBEDDINGS
) -> DeltaTable | None:
    """Opens the table at ``uri``.

    Args:
        uri: Local path or URI of the table.
        classes: Names of the classes that the table must have, in order, or None for any classes.
        embeddings: What the embeddings of each teacher are, by its id, as `describe_embedding` returns it.

    Returns:
        The table, or None if the folder does not exist or is empty.

    Raises:
        UserError: If the folder holds other files, or a table with other columns or classes, or with other embeddings
            of one of the teachers.
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
    missing = [name for name in TABLE_SCHEMA.names if name not in names and name not in _LATER_COLUMNS]
    if missing:
        raise UserError(f"table={uri}: a Delta table without the column {missing[0]!r}, so not one of predictions")
    held = table_classes(table)
    if classes is not None and held != tuple(classes):
        raise UserError(f"table={uri}: its classes are {', '.join(held)}; the model's are {', '.join(classes)}")
    for model, facts in embeddings.items():
        if (known := table_embedding(table, model)) not in (None, facts):
            raise UserError(f"table={uri}: its embeddings of model {model} are {known}; they would now be {facts}")
    return table


def _check_vacant(uri: str) -> None:
    others = [name for name in storage.list_dir(uri) if not name.startswith(("_", "."))]
    if others:
        raise UserError(f"table={uri}: no table is there but other files, like {others[0]!r}; choose an empty folder")


def create_table(uri: str, classes: Sequence[str], embeddings: Mapping[str, Any] = NO_EMBEDDINGS) -> DeltaTable:
    """Opens the table at ``uri`` for writing, and creates an empty one if there is none.

    A table of an earlier version gets the columns that it lacks, and its metadata what ``embeddings`` are.

    Args:
        uri: Local path or URI of the table.
        classes: Names of the classes, in the order of ``probs``.
        embeddings: As `open_table` takes them.

    Raises:
        UserError: If `open_table` raises it, or if the table cannot be created or changed.
    """
    uri = storage.normalise(uri)
    if (table := open_table(uri, classes, embeddings)) is not None:
        return _complete(table, embeddings)
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
    except (OSError, DeltaError) as error:  # another run may have created it in the meantime
        reason = one_line(error)
    table = open_table(uri, classes)
    if table is None:
        raise UserError(f"table={uri}: cannot be made ({reason})")
    return _complete(table, embeddings)


def _complete(table: DeltaTable, embeddings: Mapping[str, Any]) -> DeltaTable:
    reason = ""
    for _ in range(_TRIES):
        names = {field.name for field in table.schema().fields}
        columns = [Field(name, PrimitiveType(kind)) for name, kind in _LATER_COLUMNS.items() if name not in names]
        new = {model: facts for model, facts in embeddings.items() if table_embedding(table, model) is None}
        try:
            if columns:
                table.alter.add_columns(columns)
            elif new:
                facts = {_EMBEDDING_KEY + model: json.dumps(each) for model, each in new.items()}
                table.alter.set_table_properties(facts, raise_if_not_exists=False)
            else:
                return table
        except (OSError, DeltaError) as error:  # or another run was faster with them, or with rows
            reason = one_line(error)
            table.update_incremental()
    raise UserError(f"table={place_of(table)}: its columns cannot be changed ({reason})")


def table_embedding(table: DeltaTable, model: str) -> dict[str, Any] | None:
    """What the embeddings of a model are: ``depths``, ``dimension``, ``dtype``; None where the table has none of it.

    Args:
        table: the predictions.
        model: its id in predictions, or only the teacher's: number format and flip change nothing of this.
    """
    facts = table.metadata().configuration.get(_EMBEDDING_KEY + model.partition("-")[0])
    return None if facts is None else dict(json.loads(facts))


def table_classes(table: DeltaTable) -> tuple[str, ...]:
    """Returns the names of the classes in the order of ``probs``."""
    return tuple(json.loads(table.metadata().configuration.get(_CLASSES_KEY) or "[]"))


def write_file(table_uri: str, model: str, rows: pa.Table, name: str) -> WrittenFile:
    """Writes rows as a Parquet file that readers do not see before it is committed.

    Args:
        table_uri: URI of the table.
        model: Id of the model, which is the partition.
        rows: Rows of `FILE_SCHEMA`.
        name: Start of the file's name.
    """
    path = f"model={model}/{name}-{uuid.uuid4().hex[:12]}.parquet"
    sink = pa.BufferOutputStream()
    # Numbers do not repeat: a dictionary of embeddings would only be tried and dropped.
    names = [name for name in rows.schema.names if name != "embedding"]
    group = min(ROW_GROUP_ROWS, 1 + GROUP_BYTES * rows.num_rows // max(rows.nbytes, 1))
    pq.write_table(rows, sink, compression="zstd", row_group_size=group, use_dictionary=names)
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(table_uri, path), data)
    return WrittenFile(path, len(data), rows.num_rows)


def place_of(table: DeltaTable) -> str:
    """Returns the normalised URI of ``table``, because deltalake quotes URIs and makes a URL even of a local path."""
    uri = table.table_uri
    return storage.normalise(unquote(uri) if storage.is_remote(uri) else uri)


def files_of(table: DeltaTable, model: str) -> list[str]:
    """Returns the URIs of the committed files of ``model``."""
    return [unquote(uri) for uri in table.file_uris(file_pruning_predicate=[("model", "=", model)])]


def picture_uri(model: str) -> pl.Expr:
    """Returns an expression for the URI of the picture, which is not the row's URI if ``model`` detects faces."""
    uri = pl.col("uri")
    return uri.str.replace(FACE_FRAGMENT, "") if sees_faces(model) else uri


def scan_rows(table: DeltaTable, model: str) -> pl.LazyFrame:
    """Scans the rows of ``model`` lazily, in the order of the names of their files."""
    files = sorted(files_of(table, model))
    if not files:
        return _no_rows()
    # The name of a table's folder may look like a pattern or like a partition, which it is not.
    return pl.scan_parquet(
        files,
        glob=False,
        hive_partitioning=False,
        schema=_no_rows().collect_schema(),
        missing_columns="insert",
        **storage.polars_arguments(place_of(table)),
    )


def lacks_embedding() -> pl.Expr:
    """Whether a row is of a run without embeddings, so that a run with them has to label its picture again."""
    # A face that gave no finite logits must not hide that the others of its picture lack embeddings.
    return pl.col("status").is_in((OK, NOT_FINITE)) & pl.col("embedding_size").is_null()


def scan_keys(table: DeltaTable, model: str, embed: bool = False) -> pl.LazyFrame:
    """Scans `KEY_COLUMNS` of the rows of ``model``; with ``embed`` the status of a row without an embedding says so.

    The URI is that of the picture, so a picture with several faces has several rows. The prefix of weak ETags, which
    earlier versions have stored, is stripped, because listings do not have it.
    """
    plain = pl.col("identity").str.strip_prefix('W/"')
    rows = scan_rows(table, model).with_columns(picture_uri(model), plain)
    if embed:
        status = pl.when(lacks_embedding()).then(pl.lit(UNEMBEDDED)).otherwise("status")
        rows = rows.with_columns(status.alias("status"))
    return rows.select(KEY_COLUMNS)


def no_keys() -> pl.LazyFrame:
    """Returns the same as `scan_keys` of an empty table."""
    return _no_rows().select(KEY_COLUMNS)


def _no_rows() -> pl.LazyFrame:
    return pl.DataFrame(pl.from_arrow(FILE_SCHEMA.empty_table())).lazy()


def read_keys(table: DeltaTable, model: str, files: Iterable[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields batches of `READ_COLUMNS` of the rows of ``model``.

    Args:
        table: Predictions table.
        model: Id of the model.
        files: URIs of the files to read, or None for all committed files of the model.
    """
    wanted = files_of(table, model) if files is None else files
    fs, _ = storage.arrow_filesystem(place_of(table))
    for uri in wanted:
        path = storage.filesystem(uri)[1]
        for batch in pq.ParquetFile(path, filesystem=fs).iter_batches(1 << 18, columns=list(READ_COLUMNS)):
            for name in set(READ_COLUMNS).difference(batch.schema.names):
                batch = batch.append_column(name, pa.nulls(batch.num_rows, FILE_SCHEMA.field(name).type))
            yield batch.select(READ_COLUMNS)


def marker_rows(rows: pl.DataFrame, run: str) -> pa.Table:
    """Returns markers as a table of `FILE_SCHEMA`, with the name of the run and the current time.

    Columns that ``rows`` lack are null.
    """
    stamped = rows.with_columns(pl.lit(run).alias("run"), pl.lit(datetime.now(UTC)).alias("labelled_at"))
    columns = [
        stamped[field.name].to_arrow().cast(field.type)
        if field.name in stamped.columns
        else pa.nulls(len(stamped), field.type)
        for field in FILE_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=FILE_SCHEMA)
