"""Lists all sources as one stream of pages; the one place that decides by a source's format who lists it."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ray_fer.data.decode import IMAGE_EXTENSIONS
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources.feeds import EVENT_ENDINGS, INVENTORY_ENDINGS, check_events, list_events, list_inventory
from ray_fer.data.sources.files import READING_ERRORS
from ray_fer.data.sources.lance import LANCE_ERRORS, list_lance_rows
from ray_fer.data.sources.lists import LIST_ENDINGS, check_uris, list_uris
from ray_fer.data.sources.objects import list_objects
from ray_fer.data.sources.pages import key_tables
from ray_fer.data.sources.parquet import PathsOnlyError, common_column, list_rows
from ray_fer.data.sources.s3_metadata import list_s3_metadata
from ray_fer.data.sources.spec import COMPRESSED_TAR, RECORDS, Source, resolve
from ray_fer.data.sources.tables import above_partitions, current_files, table_around, table_of_mark
from ray_fer.data.sources.tar import list_members
from ray_fer.errors import UserError, one_line

log = logging.getLogger(__name__)

# What a listing takes for an image, by its name.
IMAGE_NAME = rf"(?i)\.({'|'.join(ending[1:] for ending in sorted(IMAGE_EXTENSIONS))})$"
_SHARD = r"(?i)\.tar$"
_INSIDE = r"(?is)\.tar!/|#column=.*&row(id)?=\d+$"


def list_sources(sources: Sequence[str | SourceConfig], counts: Counter[str]) -> Iterator[pa.Table]:
    """Pages of the images of all sources, one source after the other.

    Args:
        sources: URIs of folders, prefixes, patterns, single files, or entries with a format and other options.
        counts: grows while the pages are drawn: ``listed`` images, and ``skipped`` objects that are none (without an
            image's extension, compressed archives, empty lines and old versions in lists, what cannot be listed);
            ``unlisted``, places that cannot be listed or not to their end, so that images may be missing.

    Yields:
        Tables of `PAGE_SCHEMA`, none empty.

    Raises:
        UserError: for a source that is not there, cannot be read or holds no image.
    """
    empty: list[Source] = []
    for source in _outermost([resolve(source) for source in sources]):
        before = Counter(counts)
        absent, example = 0, ""
        chosen = source.chooser()
        for keys in _list_source(source, counts):
            page = keys.filter(pa.array(map(chosen, keys["uri"].to_pylist()), pa.bool_())) if chosen else keys
            if page.num_rows:
                counts["listed"] += page.num_rows
                missing = page["uri"].filter(pc.equal(page["identity"], ""))
                absent, example = absent + len(missing), example or next(iter(missing), pa.scalar("")).as_py()
                yield page.append_column("source", pa.repeat(source.label, page.num_rows))
        found, skipped = (counts[name] - before[name] for name in ("listed", "skipped"))
        if found and absent == found:
            _say_once(
                logging.WARNING,
                f"source={source.uri}: none of the {found} objects that it names is there, like {example}",
            )
        elif not found and source.format not in RECORDS:
            empty.append(source)
        elif not found:  # where it holds nothing at all, nothing has come since the last run
            level = logging.WARNING if skipped else logging.INFO
            _say_once(level, f"source={source.uri}: no image comes from it, {skipped} records or objects are skipped")
    if empty:
        hint = "; a pattern names objects, not folders: …/**" if empty[0].glob else ""
        raise UserError(f"source={empty[0].uri}: no image there{hint}")


@functools.cache
def _say_once(level: int, message: str) -> None:
    """What every look at a source would repeat."""
    log.log(level, "%s", message)


def check_sources(sources: Sequence[str | SourceConfig]) -> None:
    """Raises `UserError` for the first source that is not there, holds no image or names what cannot be.

    At most a page of each is listed, and a single list or file of events read to its end.
    """
    for source in sources:
        next(iter(list_sources([source], Counter())), None)
        resolved = resolve(source)
        if resolved.format in ("list", "events") and next(list_objects(resolved, Counter()), ("",))[0] == resolved.uri:
            check_events(resolved.uri) if resolved.format == "events" else check_uris(resolved.uri, resolved.column)


def _outermost(sources: Sequence[Source]) -> list[Source]:
    """Sources without repetitions and without those that lie inside another one."""
    kept: list[Source] = []
    for source in sorted(dict.fromkeys(sources), key=lambda source: source.uri):
        inside = next((outer for outer in kept if outer.plain and source.uri.startswith(outer.uri + "/")), None)
        if inside and source.plain and not inside.hides(f"{source.uri}/"):
            log.warning("source %s lies inside %s and is listed once", source.uri, inside.uri)
        else:
            kept.append(source)
    return kept


def _list_source(source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
    """Tables of the keys of a source's images."""
    match source.format:
        case "parquet":
            yield from _rows(source, _files(source, (".parquet",), counts), counts)
        case "lance":
            yield from _lance_rows(source)
        case "list":
            each = functools.partial(list_uris, column=source.column, counts=counts)
            yield from _expand(source, _of_each(source, _files(source, LIST_ENDINGS, counts), each, counts), counts)
        case "inventory":
            each = functools.partial(list_inventory, counts=counts)
            files = _files(source, INVENTORY_ENDINGS, counts)
            yield from _expand(source, _of_each(source, files, each, counts), counts)
        case "s3_metadata":
            yield from _expand(source, list_s3_metadata(source.uri, counts), counts)
        case "events":
            each = functools.partial(list_events, counts=counts)
            yield from _expand(source, _of_each(source, _files(source, EVENT_ENDINGS, counts), each, counts), counts)
        case _:
            yield from _expand(source, key_tables(list_objects(source, counts)), counts)


def _rows(source: Source, files: Sequence[str], counts: Counter[str]) -> Iterator[pa.Table]:
    """The rows of the images in ``files``."""
    column = source.column or (common_column(source.uri, files) if len(files) > 1 else None)

    def rows(file: str) -> Iterator[pa.Table]:
        try:
            yield from list_rows(file, column)
        except PathsOnlyError as paths:
            yield from list_uris(file, paths.column, counts)
        except READING_ERRORS as error:
            counts["unlisted"] += 1
            raise UserError(f"source={file}: cannot be read as Parquet ({one_line(error)})") from None

    yield from _of_each(source, files, rows, counts)


def _of_each(
    source: Source, files: Sequence[str], tables: Callable[[str], Iterator[pa.Table]], counts: Counter[str]
) -> Iterator[pa.Table]:
    """``tables`` of each of the files that ``source`` is made of.

    One among several that is none of its kind is skipped with a warning, and of one that is damaged the rest.

    Raises:
        UserError: for the only one, or the first if there is none that can be read.
    """
    problems: list[UserError] = []
    unsaid: list[str] = []
    for file in files:
        begun = False
        try:
            for table in tables(file):
                begun = True
                yield table
        except UserError as error:
            if file == source.uri:
                raise
            problems.append(error)
            unsaid.append(f"{str(error).removeprefix('source=')}; {'the rest of it is' if begun else 'it is'} skipped")
            counts["skipped"] += 1
        if len(problems) == len(files):
            raise problems[0]
        while unsaid and (file == files[-1] or begun):
            _say_once(logging.WARNING, unsaid.pop(0))


def _lance_rows(source: Source) -> Iterator[pa.Table]:
    try:
        yield from list_lance_rows(source.uri, source.column)
    except LANCE_ERRORS as error:
        raise UserError(f"source={source.uri}: cannot be read as Lance ({one_line(error)})") from None


def _files(source: Source, endings: tuple[str, ...], counts: Counter[str]) -> list[str]:
    """The files that a source other than loose images is made of, told by their names where there are several.

    Raises:
        UserError: for a table in the folder that cannot be read as its files (see `tables`).
    """
    files: list[str] = []
    tables: dict[str, str] = {}
    seen = 0
    for uri, _, _ in list_objects(source, counts):
        if uri == source.uri:
            return [uri]
        seen += 1
        if mark := table_of_mark(uri):
            tables |= [mark]
        elif uri.lower().removesuffix(".gz").endswith(endings) and not source.hides(uri) and source.opens(uri):
            files.append(uri)
    for folder in sorted(
        set(map(above_partitions, map(os.path.dirname, files))) if source.glob else {above_partitions(source.root)}
    ):
        if around := table_around(folder):
            tables |= [around]
    if not seen and source.format in RECORDS:
        _say_once(logging.WARNING, f"source={source.uri}: no file there")
    files = current_files(files, tables)
    counts["skipped"] += seen - len(files)
    return files


def _expand(source: Source, objects: Iterable[pa.Table], counts: Counter[str]) -> Iterator[pa.Table]:
    """The images among ``objects``, and those in the tar shards among them."""
    compressed = 0
    for table in objects:
        uri = table["uri"]
        shard = pc.match_substring_regex(uri, _SHARD)
        packed = pc.match_substring_regex(uri, COMPRESSED_TAR)
        if source.format == "list":  # who names an object means it, whatever it is called
            image = pc.invert(pc.or_(shard, packed))
        else:
            # A loose object must not be taken for a member or a row by who reads it.
            meant = pc.invert(source.hidden(uri))
            shard, packed = pc.and_(shard, meant), pc.and_(packed, meant)
            inside = pc.match_substring_regex(uri, _INSIDE)
            image = pc.and_(pc.and_(pc.match_substring_regex(uri, IMAGE_NAME), meant), pc.invert(inside))
        images = table.filter(image) if source.format != "webdataset" else table.slice(0, 0)
        shards = table.filter(shard) if source.format != "images" else table.slice(0, 0)
        shards = shards.filter(pa.array(map(source.opens, shards["uri"].to_pylist()), pa.bool_()))
        counts["skipped"] += table.num_rows - images.num_rows - shards.num_rows
        compressed += pc.sum(packed).as_py() or 0
        if images.num_rows:
            yield images
        if shards.num_rows:
            yield from list_members(shards["uri"].to_pylist(), shards["identity"].to_pylist(), counts)
    if compressed:
        log.warning(
            "source=%s: %d compressed tar files skipped: only plain .tar is read in place", source.uri, compressed
        )
