"""Feeds from the store itself: S3 Inventory, and the records of S3 events."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, deque
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
_NO_SPACE = re.compile(r"\S")
LONGEST_DOCUMENT = 64 << 20
DEEPEST = 32
_BASE64_STARTS = ("ey", "ew", "W3", "Wy", "Ww")  # of what begins with a brace or a bracket
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
        file: JSON documents, one a line or not, with S3 notifications or EventBridge events at any depth: inside
            messages of SQS and SNS, what a function is called with, or what ``aws sqs receive-message`` prints.
        counts: ``skipped`` grows by other records.

    Raises:
        UserError: naming the file and the line that is no JSON, or that nothing in it is an event of S3.
    """
    with guarded(file):
        for table in key_tables((uri, "", 0) for uri in _created(file, counts)):
            yield from identified(table)


def check_events(file: str) -> None:
    """Reads ``file`` to its end, and raises `UserError` as `list_events`, without asking the store about anything."""
    deque(_created(file, Counter()), maxlen=0)


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
    by_name = {plain(name): name for name in reversed(names)}
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
    """URIs of the objects that the records in ``file`` say were created."""
    understood, others = False, 0
    for document in _documents(file):
        for record in _records(document):
            uri = _created_object(record)
            understood |= record is not None
            if uri:
                yield uri
            else:
                others += 1
                counts["skipped"] += 1
    if others and not understood:
        raise UserError(f"source={file}: {others} records, and none of them is an event of S3")


def _documents(file: str) -> Iterator[Any]:
    """The JSON documents in ``file``, most of them a line long."""
    with open_text(file) as lines:
        number, rest = 0, ""
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except (ValueError, RecursionError):
                rest = line + lines.read(LONGEST_DOCUMENT)
                break
            yield document
    # What is printed for people goes over several lines.
    decoder, place = json.JSONDecoder(), 0
    while (start := _NO_SPACE.search(rest, place)) is not None:
        try:
            document, place = decoder.raw_decode(rest, start.start())
        except (ValueError, RecursionError):
            line_number = number + rest.count("\n", 0, start.start())
            raise UserError(f"source={file}: line {line_number}: not JSON") from None
        yield document


def _records(node: Any, depth: int = 0) -> Iterator[Any]:
    """The records of S3 in ``node``, whatever they are wrapped in, and None for every message that holds none."""
    if isinstance(node, str):
        node = _unpacked(node)
    if depth > DEEPEST or not isinstance(node, dict | list):
        yield None
    elif isinstance(node, list):
        for each in node:
            yield from _records(each, depth + 1)
    elif _is_record(node):
        yield node
    else:
        values = [_unpacked(value) for value in node.values()]
        lists = [value for value in values if isinstance(value, list)]
        found = [record for value in values if isinstance(value, dict) for record in _records(value, depth + 1)]
        # A list is one of messages, each of which counts; what lies in other fields counts where it is a record.
        records = [record for record in found if record is not None]
        records += [record for value in lists for record in _records(value, depth + 1)]
        yield from records if records or lists or not node else [None]


def _unpacked(value: Any) -> Any:
    """What a text holds that is JSON, or JSON in base64, however often it was encoded; anything else as it is."""
    try:
        while isinstance(value, str):
            text = value.strip()
            if text.startswith(_BASE64_STARTS):
                text = base64.b64decode(text, validate=True).decode()
            if not text.startswith(("{", "[", '"')):
                return value
            value = json.loads(text)
    except (ValueError, RecursionError):
        pass
    return value


def _is_record(node: dict[str, Any]) -> bool:
    """Whether S3 or EventBridge has written this about an object or a bucket."""
    return ("s3" in node and "eventName" in node) or node.get("Event") == "s3:TestEvent" or _is_bridge(node)


def _is_bridge(node: dict[str, Any]) -> bool:
    detail = node.get("detail")
    return "detail-type" in node and isinstance(detail, dict) and {"bucket", "object"} <= detail.keys()


def _created_object(record: Any) -> str | None:
    """The URI of the object that an S3 notification or an EventBridge event says was created."""
    try:
        if _is_bridge(record):
            if record["detail-type"] != "Object Created":
                return None
            bucket, key = record["detail"]["bucket"]["name"], record["detail"]["object"]["key"]
        elif record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
            bucket, key = record["s3"]["bucket"]["name"], unquote_plus(record["s3"]["object"]["key"])
        else:
            return None
        return f"s3://{bucket}/{key}" if bucket and key else None
    except (TypeError, KeyError, AttributeError):
        return None
