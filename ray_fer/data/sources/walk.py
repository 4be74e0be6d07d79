"""Lists the objects under a folder, a prefix or a pattern, local or on S3, whatever they hold."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator

import botocore.exceptions

from ray_fer import storage
from ray_fer.data.sources.etags import object_identity
from ray_fer.data.sources.files import local_identity
from ray_fer.data.sources.globs import literal_prefix, may_hold, translate
from ray_fer.data.sources.pages import Key
from ray_fer.data.sources.spec import Source
from ray_fer.errors import UserError, one_line

log = logging.getLogger(__name__)


def list_objects(source: Source, counts: Counter[str]) -> Iterator[Key]:
    """Yields everything at and under the URI of ``source``, or what its pattern matches.

    Args:
        source: the place or pattern.
        counts: ``unlisted`` grows by the local folders and files that cannot be looked at.

    Raises:
        UserError: where there is no such place, or it cannot be listed.
    """
    if not source.glob:
        yield from _list_s3(source.uri) if storage.is_remote(source.uri) else _list_local(source, counts)
        return
    matches = translate(source.uri).match
    for key in _under_prefix(source, counts):
        if matches(key[0]):
            yield key


def _under_prefix(source: Source, counts: Counter[str]) -> Iterator[Key]:
    pattern = source.uri
    prefix = literal_prefix(pattern)
    if storage.is_remote(pattern):
        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        return _list_prefix(pattern, bucket, key)
    folder = os.path.dirname(prefix)
    if not os.path.isdir(folder):
        raise UserError(f"source={pattern}: no such folder as {folder}")
    return _walk(source, folder, may_hold(pattern), counts)


def _list_local(source: Source, counts: Counter[str]) -> Iterator[Key]:
    place = source.uri
    if os.path.isfile(place):
        status = os.stat(place)
        yield place, local_identity(status), status.st_size
        return
    if not os.path.isdir(place):
        raise UserError(f"source={place}: no such file or folder")
    yield from _walk(source, place, lambda _: True, counts)


def _walk(source: Source, root: str, enter: Callable[[str], bool], counts: Counter[str]) -> Iterator[Key]:
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(folder)
        except OSError as error:  # removed or locked while we list: its files are found by the next run
            if not source.hides(f"{folder}/"):
                log.warning("cannot list %s: %s", error.filename, error.strerror)
                counts["unlisted"] += 1
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if enter(entry.path):
                        folders.append(entry.path)
                else:
                    yield from _local_object(entry, counts)


def _local_object(entry: os.DirEntry[str], counts: Counter[str]) -> Iterator[Key]:
    try:
        status = entry.stat()
    except OSError as error:  # deleted since it was listed, or a link to nothing or to itself
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            counts["unlisted"] += 1
        return
    if stat.S_ISDIR(status.st_mode):
        log.warning("%s is a link to a folder and is not followed: name it as a source of its own", entry.path)
    elif stat.S_ISREG(status.st_mode):  # neither pipes nor devices
        # A name that is not UTF-8 cannot be a string column: it is kept readable, and its row will say so.
        path = entry.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        yield path, local_identity(status), status.st_size


def _list_s3(source: str) -> Iterator[Key]:
    bucket, _, key = source.removeprefix("s3://").partition("/")
    found = False
    for entry in _list_prefix(source, bucket, f"{key}/" if key else ""):
        found = True
        yield entry
    if key and not found:  # a single object
        yield from (entry for entry in _list_prefix(source, bucket, key, pages=1) if entry[0] == source)


def _list_prefix(source: str, bucket: str, prefix: str, pages: int | None = None) -> Iterator[Key]:
    fs, _ = storage.filesystem(source)
    arguments = {"Bucket": bucket, "Prefix": prefix}
    while pages != 0:
        try:
            answer = fs.call_s3("list_objects_v2", **arguments)
        except FileNotFoundError:
            raise UserError(f"source={source}: no such bucket") from None
        except (OSError, ValueError, botocore.exceptions.BotoCoreError) as error:
            raise UserError(f"source={source}: cannot be listed ({one_line(error)})") from None
        for entry in answer.get("Contents", ()):
            yield f"s3://{bucket}/{entry['Key']}", object_identity(entry, entry["Size"]), entry["Size"]
        if not answer.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = answer["NextContinuationToken"]
        pages = pages and pages - 1
