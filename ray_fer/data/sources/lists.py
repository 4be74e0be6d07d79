"""Lists made by others: URIs in text, CSV or Parquet files, S3 Inventory, S3 event records.

A list says what was there once. Where it gives ETags, they are taken as identities; where it gives none, every object
is looked at, many at a time. Event records are always looked at: they come late, twice and in any order, and only the
store knows which object is there now.

An object that has another identity by the time that it is read gets the status ``missing``. A row under the new
identity would be written again by every run that reads the same list, or by the next event record of the same run.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ray_fer import storage
from ray_fer.data.sources import pages
from ray_fer.data.sources.files import READING_ERRORS, open_parquet
from ray_fer.data.sources.pages import KEY_SCHEMA, key_table, key_tables
from ray_fer.data.sources.stats import stat_objects
from ray_fer.data.sources.uris import Member, Row, parse
from ray_fer.errors import UserError, one_line

LIST_ENDINGS = (".txt", ".csv", ".parquet")
INVENTORY_ENDINGS = (".csv", ".parquet", "manifest.json")
EVENT_ENDINGS = (".jsonl", ".ndjson", ".json", ".log")
_URI_COLUMNS = ("uri", "url", "path", "file")
_LOOK_ROWS = 1000
_ERRORS = (*READING_ERRORS, UnicodeError, csv.Error, EOFError)


def list_uris(file: str, column: str | None, counts: Counter[str]) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the objects that a list of URIs names; relative paths start at the list's folder.

    Args:
        file: a text file with a URI a line, or CSV or Parquet with a column of URIs and, optionally, ``identity`` (or
            ``etag``) and ``size``.
        column: the column of URIs; None for ``uri``, ``url``, ``path``, ``file`` or the only one.
        counts: ``skipped`` grows by empty lines and cells.

    Raises:
        UserError: naming the file, and the row where one is wrong.
    """
    folder = file.rsplit("/", 1)[0]
    first = 1
    for table in _guarded(file, _text_lines(file) if _ending(file) == ".txt" else _uri_columns(file, column)):
        uris = [_absolute(file, first + i, uri, folder) for i, uri in enumerate(table["uri"].to_pylist())]
        first += len(uris)
        counts["skipped"] += uris.count(None)
        table = table.set_column(0, "uri", pa.array(uris, pa.string()))
        yield from _identified(file, table.filter(pc.is_valid(table["uri"])))


def list_inventory(file: str, counts: Counter[str]) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the current objects in an S3 Inventory.

    Args:
        file: CSV or Parquet with the columns ``bucket`` and ``key``, and ``size``, ``e_tag``, ``is_latest``,
            ``is_delete_marker`` where the inventory has them; or the inventory's ``manifest.json``. As S3 writes them,
            keys in CSV are URL-encoded.
        counts: ``skipped`` grows by old versions and delete markers.

    Raises:
        UserError: naming the file.
    """
    for part, header in _inventory_files(file):
        yield from _inventory(file, part, header, counts)


def list_events(file: str, counts: Counter[str]) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the objects that S3 event records say were created.

    Args:
        file: JSON lines: S3 notifications (``Records``), bare records, EventBridge events, or any of them inside an
            SQS or SNS message.
        counts: ``skipped`` grows by other records.

    Raises:
        UserError: naming the file and the line that is no JSON.
    """
    keys = ((uri, "", 0) for uri in _guarded(file, _created(file, counts)))
    for table in key_tables(keys):
        yield from _identified(file, table)


def _guarded(file: str, items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except _ERRORS as error:
        raise UserError(f"source={file}: cannot be read ({one_line(error)})") from None


def _ending(file: str) -> str:
    name = file.lower().removesuffix(".gz")
    return name[name.rfind(".") :]


def _open_text(file: str) -> io.TextIOWrapper:
    fs, path = storage.filesystem(file)
    opened: io.TextIOWrapper = fs.open(path, "rt", compression="infer", encoding="utf-8", newline="")
    return opened


def _text_lines(file: str) -> Iterator[pa.Table]:
    with _open_text(file) as lines:
        yield from key_tables((line.strip("\r\n"), "", 0) for line in lines)


def _uri_columns(file: str, column: str | None) -> Iterator[pa.Table]:
    names = _column_names(file)
    plain = {_plain(name): name for name in names}
    uri = column or next((plain[name] for name in _URI_COLUMNS if name in plain), names[0] if len(names) == 1 else "")
    if uri not in names:
        raise UserError(f"source={file}: column={uri or '…'}: no such column of URIs, there are {', '.join(names)}")
    identity = next((plain[name] for name in ("identity", "etag") if name in plain), None)
    yield from _key_columns(file, names, [uri, identity, plain.get("size")])


def _key_columns(file: str, names: Sequence[str], wanted: Sequence[str | None]) -> Iterator[pa.Table]:
    for table in _batches(file, names, [name for name in wanted if name]):
        absent = pa.nulls(table.num_rows, pa.string())
        columns = [table[name].cast(pa.string()) if name else absent for name in wanted]
        yield _keys(*columns)


def _keys(uri: Any, identity: Any, size: Any) -> pa.Table:
    identity = pc.utf8_trim(pc.fill_null(identity, ""), characters='"')
    size = pc.fill_null(pc.if_else(pc.equal(size, ""), None, size).cast(pa.int64()), 0)
    return pa.Table.from_arrays([uri, identity, size], schema=KEY_SCHEMA)


def _column_names(file: str) -> list[str]:
    if _ending(file) == ".parquet":
        with open_parquet(file) as (table, _):
            return list(table.schema_arrow.names)
    with _open_text(file) as lines:
        return next(csv.reader(lines), [])


def _batches(file: str, names: Sequence[str], wanted: Sequence[str], headless: bool = False) -> Iterator[pa.Table]:
    """The columns ``wanted`` of a CSV or Parquet file, a page at a time."""
    if _ending(file) == ".parquet":
        with open_parquet(file) as (table, _):
            for batch in table.iter_batches(pages.PAGE_ROWS, columns=list(wanted), use_threads=False):
                yield pa.Table.from_batches([batch])
        return
    fs, path = storage.filesystem(file)
    with fs.open(path, "rb", compression="infer") as opened:
        reader = pyarrow.csv.open_csv(
            opened,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=list(names) if headless else None),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(wanted), column_types=dict.fromkeys(names, pa.string())
            ),
        )
        for batch in reader:
            yield from pages.sliced(pa.Table.from_batches([batch]))


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "")


def _absolute(file: str, row: int, uri: str | None, folder: str) -> str | None:
    if not uri:
        return None
    match parse(uri):
        case Member(shard, name):
            return Member(str(_absolute(file, row, shard, folder)), name).uri
        case Row(table, column, number):
            return Row(str(_absolute(file, row, table, folder)), column, number).uri
    if uri.startswith("s3://"):
        return uri  # as it stands: a key may end with a slash
    try:
        return storage.normalise(uri if "://" in uri or uri.startswith(("/", "~")) else f"{folder}/{uri}")
    except UserError as error:
        raise UserError(f"source={file}: row {row}: {error}") from None


def _identified(file: str, table: pa.Table) -> Iterator[pa.Table]:
    """``table`` with the identities and sizes of the objects that the store has to be asked about.

    What is not there keeps an empty identity and is found missing, for the record, by whoever reads it.
    """
    # An identity from elsewhere says nothing of a local file, and a file's status costs nothing.
    known = pc.and_(pc.not_equal(table["identity"], ""), pc.starts_with(table["uri"], "s3://"))
    yield from pages.sliced(table.filter(known))
    unknown = table.filter(pc.invert(known))
    for start in range(0, unknown.num_rows, _LOOK_ROWS):
        uris = unknown["uri"].slice(start, _LOOK_ROWS).to_pylist()
        stats = _guarded(file, iter(stat_objects(uris)))
        yield key_table([(uri, *stat) for uri, stat in zip(uris, stats, strict=True)])


def _inventory_files(file: str) -> Iterator[tuple[str, list[str] | None]]:
    """The files of an inventory, with the columns of those that have no header."""
    if not file.lower().endswith(".json"):
        yield file, None
        return
    try:
        manifest = json.loads(storage.read_bytes(file))
        bucket = manifest["destinationBucket"].rsplit(":", 1)[-1]
        header = [name.strip() for name in manifest["fileSchema"].split(",")]
        keys = [entry["key"] for entry in manifest["files"]]
        kind = manifest["fileFormat"].lower()
    except (*_ERRORS, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"source={file}: not the manifest of an S3 Inventory ({one_line(error)})") from None
    if kind not in ("csv", "parquet"):
        raise UserError(f"source={file}: an inventory in {kind}; CSV and Parquet can be read")
    for key in keys:
        yield f"s3://{bucket}/{key}", header if kind == "csv" else None


def _inventory(file: str, part: str, header: list[str] | None, counts: Counter[str]) -> Iterator[pa.Table]:
    names = header or next(_guarded(part, iter([_column_names(part)])))
    plain = {_plain(name): name for name in names}
    for needed in ("bucket", "key"):
        if needed not in plain:
            raise UserError(
                f"source={file}: no column {needed}, there are {', '.join(names)}; or name its manifest.json"
            )
    wanted = [name for name in (plain.get(key) for key in _INVENTORY_COLUMNS) if name]
    encoded = _ending(part) != ".parquet"
    for table in _guarded(part, _batches(part, names, wanted, headless=header is not None)):
        column = {_plain(name): table[name].cast(pa.string()) for name in wanted}
        gone = pc.equal(pc.utf8_lower(_or(column.get("isdeletemarker"), "false", table)), "true")
        old = pc.equal(pc.utf8_lower(_or(column.get("islatest"), "true", table)), "false")
        key = _decoded(column["key"]) if encoded else column["key"]
        uri = pc.binary_join_element_wise("s3://", column["bucket"], "/", key, "")
        keys = _keys(uri.combine_chunks(), _or(column.get("etag"), "", table), _or(column.get("size"), "0", table))
        # What ends with a slash is a folder's mark, not an object.
        current = keys.filter(pc.invert(pc.or_(pc.or_(gone, old), pc.ends_with(uri, "/"))))
        counts["skipped"] += keys.num_rows - current.num_rows
        yield from _identified(file, current)


_INVENTORY_COLUMNS = ("bucket", "key", "size", "etag", "islatest", "isdeletemarker")


def _or(column: Any, default: str, table: pa.Table) -> Any:
    return pa.repeat(default, table.num_rows) if column is None else pc.fill_null(column, default)


def _decoded(keys: Any) -> Any:
    encoded = pc.or_(pc.match_substring(keys, "%"), pc.match_substring(keys, "+"))
    if not pc.any(encoded).as_py():
        return keys
    return pa.array([unquote_plus(key) for key in keys.to_pylist()], pa.string())


def _created(file: str, counts: Counter[str]) -> Iterator[str]:
    with _open_text(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                records = _records(json.loads(line))
            except ValueError:
                raise UserError(f"source={file}: line {number}: not JSON") from None
            for record in records:
                if uri := _created_object(record):
                    yield uri
                else:
                    counts["skipped"] += 1


def _records(document: Any) -> list[Any]:
    """The event records in what a queue or a topic delivered."""
    if not isinstance(document, dict):
        return document if isinstance(document, list) else [document]
    if isinstance(document.get("Records"), list):
        return list(document["Records"])
    for wrapper in ("Body", "body", "Message"):
        if isinstance(document.get(wrapper), str):
            return _records(json.loads(document[wrapper]))
    return [document]


def _created_object(record: Any) -> str | None:
    """The URI of the object that an S3 notification or an EventBridge event says was created."""
    try:
        if "detail" in record:
            if record["detail-type"] != "Object Created":
                return None
            return f"s3://{record['detail']['bucket']['name']}/{record['detail']['object']['key']}"
        if not record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
            return None
        bucket, key = record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
    except (TypeError, KeyError, AttributeError):
        return None
    return f"s3://{bucket}/{unquote_plus(key)}"
