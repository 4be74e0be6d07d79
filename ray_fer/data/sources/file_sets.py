"""Sources that are made of several files of a kind: which files these are, and what happens where some are damaged."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from ray_fer.data.sources.spec import Source
from ray_fer.data.sources.tables import above_partitions, current_files, table_around, table_of_mark
from ray_fer.data.sources.walk import list_objects
from ray_fer.errors import UserError

log = logging.getLogger(__name__)


@functools.cache
def log_once(level: int, message: str) -> None:
    """Logs a message that every listing of a source would repeat, the first time alone."""
    log.log(level, "%s", message)


def is_one_file(source: Source) -> bool:
    """Whether the URI of ``source`` is that of a file."""
    return next(list_objects(source, Counter()), ("",))[0] == source.uri


def files_of(source: Source, counts: Counter[str]) -> list[str]:
    """The files that ``source`` is made of, recognised by their endings where there are several.

    Args:
        source: of a format with ``endings``.
        counts: ``skipped`` grows by the other objects.

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
        named = uri.lower().removesuffix(".gz").endswith(source.kind.endings)
        if mark := table_of_mark(uri):
            tables |= [mark]
        elif named and not source.hides(uri) and source.opens(uri):
            files.append(uri)
    folders = {above_partitions(os.path.dirname(file)) for file in files}
    for folder in sorted(folders) if source.glob else [above_partitions(source.root)]:
        if around := table_around(folder):
            tables |= [around]
    if not seen and source.kind.may_be_empty:
        log_once(logging.WARNING, f"source={source.uri}: no file there")
    files = current_files(files, tables)
    counts["skipped"] += seen - len(files)
    return files


def list_each(
    source: Source, files: Sequence[str], tables: Callable[[str], Iterator[pa.Table]], counts: Counter[str]
) -> Iterator[pa.Table]:
    """Yields ``tables`` of each of the files that ``source`` is made of.

    One file among several that is not of the format is skipped with a warning, and of one that is damaged the rest.

    Args:
        source: made of the files.
        files: as `files_of` gives them.
        tables: yields the tables of a file.
        counts: ``skipped`` grows by the files that are skipped.

    Raises:
        UserError: for the only file, or the first if none can be read.
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
            log_once(logging.WARNING, unsaid.pop(0))
