"""Unlabeled sources: where the images of a run lie, listed as a stream of pages.

A page is an Arrow table of at most a few thousand objects, so that labelling starts before the last key is listed and
memory does not grow with the bucket. Every object comes with its *identity*: the ETag on S3, size and modification time
on a local file system. An object that was overwritten has another identity and is therefore new work.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence

import botocore.exceptions
import pyarrow as pa

from ray_fer import storage
from ray_fer.data.decode import has_image_extension
from ray_fer.errors import UserError, one_line

log = logging.getLogger(__name__)

PAGE_ROWS = 5000
PAGE_SCHEMA = pa.schema(
    [("uri", pa.string()), ("identity", pa.string()), ("size", pa.int64()), ("source", pa.string())]
)


def local_identity(status: os.stat_result) -> str:
    """Identity of a local file: its size and modification time in nanoseconds."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def list_sources(sources: Sequence[str], counts: Counter[str]) -> Iterator[pa.Table]:
    """Pages of the images of all sources, one source after the other.

    Args:
        sources: folders, prefixes or single images, local or ``s3://``.
        counts: grows while the pages are drawn: ``listed`` images and ``skipped`` objects without an image's extension.

    Yields:
        Tables of `PAGE_SCHEMA`, none empty.

    Raises:
        UserError: for a source that is not there or holds no image.
    """
    for source in _outermost(sources):
        before = counts["listed"]
        for page in _list_source(source, counts):
            counts["listed"] += page.num_rows
            yield page
        if counts["listed"] == before:
            raise UserError(f"source={source}: no image there")


def check_sources(sources: Sequence[str]) -> None:
    """Raises `UserError` for the first source that is not there or holds no image; lists at most a page of each."""
    for source in sources:
        next(iter(list_sources([source], Counter())))


def _outermost(sources: Sequence[str]) -> list[str]:
    """Sources without repetitions and without those that lie inside another one."""
    names = sorted({storage.normalise(source) for source in sources})
    kept: list[str] = []
    for name in names:
        inside = next((outer for outer in kept if name.startswith(outer + "/")), None)
        if inside:
            log.warning("source %s lies inside %s and is listed once", name, inside)
        else:
            kept.append(name)
    return kept


def _list_source(source: str, counts: Counter[str]) -> Iterator[pa.Table]:
    objects = _list_s3(source) if storage.is_remote(source) else _list_local(source)
    rows: list[tuple[str, str, int, str]] = []
    for uri, identity, size in objects:
        if not has_image_extension(uri):
            counts["skipped"] += 1
            continue
        rows.append((uri, identity, size, source))
        if len(rows) == PAGE_ROWS:
            yield _page(rows)
            rows = []
    if rows:
        yield _page(rows)


def _page(rows: list[tuple[str, str, int, str]]) -> pa.Table:
    return pa.Table.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], schema=PAGE_SCHEMA)


def _list_local(source: str) -> Iterator[tuple[str, str, int]]:
    if os.path.isfile(source):
        status = os.stat(source)
        yield source, local_identity(status), status.st_size
        return
    if not os.path.isdir(source):
        raise UserError(f"source={source}: no such file or folder")
    folders = [source]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except OSError as error:  # removed or locked while we list: its files are found by the next run
            log.warning("cannot list %s: %s", error.filename, error.strerror)
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield from _local_object(entry)


def _local_object(entry: os.DirEntry[str]) -> Iterator[tuple[str, str, int]]:
    try:
        status = entry.stat()
    except OSError:  # deleted since it was listed, or a link to nothing or to itself
        return
    if stat.S_ISDIR(status.st_mode):
        log.warning("%s is a link to a folder and is not followed: name it as a source of its own", entry.path)
    elif stat.S_ISREG(status.st_mode):  # neither pipes nor devices
        # A name that is not UTF-8 cannot be a string column: it is kept readable, and its row will say so.
        path = entry.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        yield path, local_identity(status), status.st_size


def _list_s3(source: str) -> Iterator[tuple[str, str, int]]:
    fs, path = storage.filesystem(source)
    bucket, _, key = path.partition("/")
    found = False
    for prefix in (f"{key}/", key) if key else ("",):
        single = prefix == key and bool(key)
        arguments = {"Bucket": bucket, "Prefix": prefix}
        while True:
            try:
                answer = fs.call_s3("list_objects_v2", **arguments)
            except FileNotFoundError:
                raise UserError(f"source={source}: no such bucket") from None
            except (OSError, ValueError, botocore.exceptions.BotoCoreError) as error:
                raise UserError(f"source={source}: cannot be listed ({one_line(error)})") from None
            for entry in answer.get("Contents", ()):
                if not single or entry["Key"] == key:
                    found = True
                    yield f"s3://{bucket}/{entry['Key']}", entry["ETag"].strip('"'), entry["Size"]
            if single or not answer.get("IsTruncated"):
                break
            arguments["ContinuationToken"] = answer["NextContinuationToken"]
        if found:
            return
