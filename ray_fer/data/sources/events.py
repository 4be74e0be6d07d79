"""S3 events: the records of objects that were created, as S3 and EventBridge send them."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa

from ray_fer.data.sources.columns import guarded, text_lines
from ray_fer.data.sources.file_sets import files_of, is_one_file, list_each
from ray_fer.data.sources.lists import identified
from ray_fer.data.sources.pages import key_tables
from ray_fer.data.sources.spec import Format, Source
from ray_fer.data.sources.tar import images_among
from ray_fer.errors import UserError

_NO_SPACE = re.compile(r"\S")
LONGEST_DOCUMENT = 64 << 20
DEEPEST = 32
_BASE64_STARTS = ("ey", "ew", "W3", "Wy", "Ww")  # of what begins with a brace or a bracket


class Events(Format):
    """The objects that S3 event records say were created.

    The files hold JSON documents, one a line or not, with S3 notifications or EventBridge events at any depth: inside
    messages of SQS and SNS, what a function is called with, or what ``aws sqs receive-message`` prints.
    """

    extensions = (".jsonl", ".ndjson")
    endings = (".jsonl", ".ndjson", ".json", ".log")
    is_feed = True
    may_be_empty = True

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the images that were created; ``skipped`` counts other records too."""
        objects = list_each(source, files_of(source, counts), partial(_list_events, counts=counts), counts)
        return images_among(source, objects, counts)

    def check_content(self, source: Source) -> None:
        """Reads a single file to its end, for the line that is no JSON, or that nothing in it is an event of S3."""
        if is_one_file(source):
            with guarded(source.uri):
                deque(_created(source.uri, Counter()), maxlen=0)


def _list_events(file: str, counts: Counter[str]) -> Iterator[pa.Table]:
    with guarded(file):
        for table in key_tables((uri, "", 0) for uri in _created(file, counts)):
            yield from identified(table)


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
    number, rest = 0, ""
    lines = text_lines(file)
    for line in lines:
        number += 1
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            rest = line + _first(lines, LONGEST_DOCUMENT)
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


def _first(lines: Iterator[str], size: int) -> str:
    """The first ``size`` characters of ``lines``, to the end of a line."""
    kept: list[str] = []
    for line in lines:
        kept.append(line)
        size -= len(line)
        if size <= 0:
            break
    return "".join(kept)


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
