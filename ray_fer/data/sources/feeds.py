"""Feeds from the store itself: S3 Inventory, and the records of S3 events."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.sources.columns import LIST_ERRORS, batches, column_names, ending, guarded, keys_of, open_text, plain
from ray_fer.data.sources.lists import identified
from ray_fer.data.sources.pages import key_tables
from ray_fer.errors import UserError, one_line

INVENTORY_ENDINGS = (".csv", ".parquet", "manifest.json")
EVENT_ENDINGS = (".jsonl", ".ndjson", ".json", ".log")
_INVENTORY_COLUMNS = ("bucket", "key", "size", "etag", "islatest", "isdeletemarker")


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
        with guarded(part):
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
    with guarded(file):
        for table in key_tables((uri, "", 0) for uri in _created(file, counts)):
            yield from identified(table)


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
    except (*LIST_ERRORS, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"source={file}: not the manifest of an S3 Inventory ({one_line(error)})") from None
    if kind not in ("csv", "parquet"):
        raise UserError(f"source={file}: an inventory in {kind}; CSV and Parquet can be read")
    for key in keys:
        yield f"s3://{bucket}/{key}", header if kind == "csv" else None


def _inventory(file: str, part: str, header: list[str] | None, counts: Counter[str]) -> Iterator[pa.Table]:
    names = header or column_names(part)
    by_name = {plain(name): name for name in names}
    for needed in ("bucket", "key"):
        if needed not in by_name:
            raise UserError(
                f"source={file}: no column {needed}, there are {', '.join(names)}; or name its manifest.json"
            )
    wanted = [name for name in (by_name.get(key) for key in _INVENTORY_COLUMNS) if name]
    encoded = ending(part) != ".parquet"
    for table in batches(part, names, wanted, headless=header is not None):
        column = {plain(name): table[name].cast(pa.string()) for name in wanted}
        gone = pc.equal(pc.utf8_lower(_or(column.get("isdeletemarker"), "false", table)), "true")
        old = pc.equal(pc.utf8_lower(_or(column.get("islatest"), "true", table)), "false")
        key = _decoded(column["key"]) if encoded else column["key"]
        uri = pc.binary_join_element_wise("s3://", column["bucket"], "/", key, "")
        keys = keys_of(uri.combine_chunks(), _or(column.get("etag"), "", table), _or(column.get("size"), "0", table))
        # What ends with a slash is a folder's mark, not an object.
        current = keys.filter(pc.invert(pc.or_(pc.or_(gone, old), pc.ends_with(uri, "/"))))
        counts["skipped"] += keys.num_rows - current.num_rows
        yield from identified(current)


def _or(column: Any, default: str, table: pa.Table) -> Any:
    return pa.repeat(default, table.num_rows) if column is None else pc.fill_null(column, default)


def _decoded(keys: Any) -> Any:
    encoded = pc.or_(pc.match_substring(keys, "%"), pc.match_substring(keys, "+"))
    if not pc.any(encoded).as_py():
        return keys
    return pa.array([unquote_plus(key) for key in keys.to_pylist()], pa.string())


def _created(file: str, counts: Counter[str]) -> Iterator[str]:
    with open_text(file) as lines:
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
