"""Lists of URIs made by others, in text, CSV or Parquet files.

A list, an inventory and event records name what was there once. Where they give ETags, these are taken as identities;
where they give none, every object is looked at, many at a time. The objects of event records are always looked at: the
records come late, twice and in any order, and only the store knows which object is there now.

An object may have another identity by the time that it is read: it was overwritten, or the list comes from a store or
a copy of the bucket that gives other ETags. It is labelled as what is read, and its row keeps the identity in the list
too, so that neither the same list nor the next record of it leads to a second row.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_fer.data.read import stat_objects
from ray_fer.data.sources import pages
from ray_fer.data.sources.columns import batches, column_names, ending, guarded, keys_of, plain, text_lines
from ray_fer.data.sources.file_sets import files_of, is_one_file, list_each
from ray_fer.data.sources.pages import key_table, key_tables
from ray_fer.data.sources.spec import Format, Source
from ray_fer.data.sources.tar import images_among
from ray_fer.data.uris import resolve
from ray_fer.errors import UserError

_OTHER_COMMA = re.compile(r"[;\t|]")
_URI_COLUMNS = ("uri", "url", "path", "file")
_LOOK_ROWS = 1000


class UriList(Format):
    """Lists of URIs, which are resolved against the list's folder (`uris.resolve`).

    A list is CSV or Parquet with a column of URIs and, optionally, ``identity`` (or ``etag``) and ``size``; any other
    file is a text with a URI a line. ``column`` is the column of URIs, in Parquet also a field of a struct like
    ``image.path``; without, it is ``uri``, ``url``, ``path``, ``file`` or the only one.
    """

    extensions = (".txt", ".csv")
    endings = (".txt", ".csv", ".parquet")
    has_column = True
    is_feed = True
    takes_any_name = True

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists what the lists name; ``skipped`` counts empty lines and cells too."""
        each = partial(list_uris, column=source.column, counts=counts)
        return images_among(source, list_each(source, files_of(source, counts), each, counts), counts)

    def check_content(self, source: Source) -> None:
        """Reads a single list to its end, for the row where it is wrong."""
        if is_one_file(source):
            deque(named_keys(source.uri, source.column, Counter()), maxlen=0)


def list_uris(file: str, column: str | None, counts: Counter[str]) -> Iterator[pa.Table]:
    """Yields tables of `KEY_SCHEMA` of the objects that a list names.

    Args:
        file: see `UriList`.
        column: see `UriList`.
        counts: ``skipped`` grows by empty lines and cells.

    Raises:
        UserError: naming the file, and the row where one is wrong.
    """
    with guarded(file):
        for table in named_keys(file, column, counts):
            yield from identified(table)


def named_keys(file: str, column: str | None, counts: Counter[str]) -> Iterator[pa.Table]:
    """As `list_uris`, but with the identities and sizes that the list itself gives; no object is looked at."""
    folder = file.rsplit("/", 1)[0]
    first = 1
    lines = _uri_columns(file, column) if ending(file) in (".csv", ".parquet") else _text_lines(file)
    with guarded(file):
        for table in lines:
            uris = [_absolute(file, first + i, uri, folder) for i, uri in enumerate(table["uri"].to_pylist())]
            first += len(uris)
            counts["skipped"] += uris.count(None)
            table = table.set_column(0, "uri", pa.array(uris, pa.string()))
            yield table.filter(pc.is_valid(table["uri"]))


def identified(table: pa.Table) -> Iterator[pa.Table]:
    """Yields ``table`` with the identities and sizes that it lacks, as the store gives them.

    What is not there keeps an empty identity, and its row will say that it is missing once it is read.

    Raises:
        botocore.exceptions.BotoCoreError: when the store cannot be asked at all.
    """
    # An identity from elsewhere says nothing of a local file, whose status costs nothing, and a shard's nothing of a
    # member.
    remote = pc.starts_with(table["uri"], "s3://")
    vague = pc.and_(pc.match_substring(table["uri"], "!/"), pc.invert(pc.match_substring(table["identity"], "@")))
    known = pc.and_(pc.and_(pc.not_equal(table["identity"], ""), remote), pc.invert(vague))
    yield from pages.sliced(table.filter(known))
    unknown = table.filter(pc.invert(known))
    for start in range(0, unknown.num_rows, _LOOK_ROWS):
        uris = unknown["uri"].slice(start, _LOOK_ROWS).to_pylist()
        yield key_table([(uri, *stat) for uri, stat in zip(uris, stat_objects(uris), strict=True)])


def bucket_objects(
    bucket: Any, key: Any, etag: Any, size: Any, counts: Counter[str], gone: Any = False
) -> Iterator[pa.Table]:
    """Yields the objects that a record of a bucket names, as `identified` does.

    Args:
        bucket: column of strings, as the following; ``etag`` and ``size`` as `columns.keys_of` takes them.
        key: of the object. What ends with a slash is a folder's mark, not an object.
        etag: of the object.
        size: of the object.
        counts: ``skipped`` grows by what is no object or is gone.
        gone: whether it is there no more, bool.
    """
    uri = pc.binary_join_element_wise("s3://", bucket, "/", key, "")
    keys = keys_of(uri.combine_chunks(), etag, size)
    objects = keys.filter(pc.invert(pc.or_(gone, pc.ends_with(uri, "/"))))
    counts["skipped"] += keys.num_rows - objects.num_rows
    yield from identified(objects)


def _text_lines(file: str) -> Iterator[pa.Table]:
    yield from key_tables((line.strip("\r\n"), "", 0) for line in text_lines(file))


def _uri_columns(file: str, column: str | None) -> Iterator[pa.Table]:
    names = column_names(file)
    by_name = {plain(name): name for name in reversed(names)}
    uri = column or next(
        (by_name[name] for name in _URI_COLUMNS if name in by_name), names[0] if len(names) == 1 else ""
    )
    if not column and "/" in uri:
        raise UserError(f"source={file}: its first line is {uri!r}, not a header; without one, call it .txt")
    if len(names) == 1 and (found := _OTHER_COMMA.search(uri)) and {*map(plain, uri.split(found[0]))} & {*_URI_COLUMNS}:
        raise UserError(f"source={file}: its columns are separated by {found[0]!r}; save it with commas")
    if uri not in names:
        raise UserError(f"source={file}: column={uri or '…'}: no such column of URIs, there are {', '.join(names)}")
    identity = next((by_name[name] for name in ("identity", "etag") if name in by_name), None)
    wanted = [uri, identity, by_name.get("size")]
    for name in filter(None, wanted):
        if names.count(name) > 1 or (name != column and [*map(plain, names)].count(plain(name)) > 1):
            raise UserError(f"source={file}: two columns {name}")
    yield from _key_columns(file, names, wanted)


def _key_columns(file: str, names: Sequence[str], wanted: Sequence[str | None]) -> Iterator[pa.Table]:
    for table in batches(file, names, [name for name in wanted if name]):
        absent = pa.nulls(table.num_rows, pa.string())
        columns = [table[name].cast(pa.string()) if name else absent for name in wanted]
        yield keys_of(*columns)


def _absolute(file: str, row: int, uri: str | None, folder: str) -> str | None:
    if not uri or uri.isspace():
        return None
    try:
        return resolve(folder, uri)
    except UserError as error:
        raise UserError(f"source={file}: row {row}: {error}") from None
