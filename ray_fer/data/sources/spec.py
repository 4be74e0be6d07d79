"""An entry of ``source`` as the one thing that all listers take: where, in which format, and which of what is there."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.names import are_hidden, is_hidden
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources.globs import is_glob, literal_prefix, matcher, translate
from ray_fer.data.sources.uris import Member, Row, parse
from ray_fer.errors import UserError

COMPRESSED_TAR = r"(?i)\.(tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4|lzma))$"
_FORMATS = {
    ".parquet": "parquet",
    ".lance": "lance",
    ".txt": "list",
    ".csv": "list",
    ".jsonl": "events",
    ".ndjson": "events",
}
WITH_COLUMN = ("parquet", "lance", "list")
RECORDS = ("s3_metadata", "events")
FEEDS = ("list", "inventory", *RECORDS)
IN_FILES = ("parquet", "list", "inventory", "events")
"""Formats of sources that are made of files, of which a folder may hold several."""
_COMPRESSED = re.compile(COMPRESSED_TAR)


@dataclass(frozen=True)
class Source:
    """A source as `resolve` has found it.

    Attributes:
        uri: normalised; a pattern where ``glob`` is set; of S3 Metadata it may be the table's name in a catalog.
        format: never ``auto`` for what is told by its extension; ``auto`` means loose images and tar shards.
    """

    uri: str
    format: str = "auto"
    column: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    glob: bool = False

    @property
    def label(self) -> str:
        """What the pages' column ``source`` says; of a feed, its format too."""
        return f"{self.format}:{self.uri}" if self.format in FEEDS else self.uri

    @property
    def plain(self) -> bool:
        """Whether all images under ``uri`` are meant, so that another source inside it adds nothing."""
        return self.format == "auto" and not (self.glob or self.include or self.exclude)

    @property
    def root(self) -> str:
        """The folder or prefix that paths in patterns start below; what is there itself is always meant."""
        return literal_prefix(self.uri).rpartition("/")[0] if self.glob else self.uri

    def below(self, uri: str) -> str:
        """The path of ``uri`` below `root`; of a member or a row that of the file, then its own name."""
        return uri.removeprefix(self.root).removeprefix("!").lstrip("/")

    def chooser(self) -> Callable[[str], bool] | None:
        """Whether a URI is wanted, by the path below the source, of a feed by all of it; None where all are.

        A member or row is where it itself or the file that it is in is.
        """
        if not (self.include or self.exclude):
            return None
        include, exclude = matcher(self.include), matcher(self.exclude)

        def decide(uri: str) -> bool:
            place = uri if self.format in FEEDS else self.below(uri) or uri
            names = dict.fromkeys([place, _file_of(place) or place])
            return (not self.include or any(map(include, names))) and not any(map(exclude, names))

        return decide

    def opens(self, file: str) -> bool:
        """Whether the table, shard or list ``file`` may hold what is wanted, by its path below the source."""
        place = self.below(file) or file
        if matcher(self.exclude)(place):
            return False
        by_file = self.format == "parquet" and self.include and not any("#" in pattern for pattern in self.include)
        return not by_file or matcher(self.include)(place)

    def hides(self, file: str) -> bool:
        """Whether a file, or a folder if it ends with a slash, is nobody's (see `data.names`)."""
        return is_hidden(self._unspelt(self.below(file)), table=self.format in IN_FILES)

    def hidden(self, objects: pa.ChunkedArray) -> pa.Array:
        """Which objects that were listed, or that a feed names, are nobody's pictures or shards, bool (N,)."""
        if self.format == "list":  # who names an object means it
            return pa.repeat(False, len(objects))
        if self.format in FEEDS:
            paths = pc.replace_substring_regex(objects, r"^s3://[^/]*/", "")
        else:
            paths = pc.utf8_slice_codeunits(objects, len(self.root))
        hidden = are_hidden(paths)
        if self._spelt and hidden.true_count:
            return are_hidden(pa.array([self._unspelt(path.lstrip("/")) for path in paths.to_pylist()], pa.string()))
        return hidden

    @functools.cached_property
    def _spelt(self) -> list[re.Pattern[str]]:
        """What patterns say of hidden names: who spells them out means them."""
        patterns = [*([self.below(self.uri)] if self.glob else []), *self.include]
        names = {name for pattern in patterns for name in pattern.split("/") if is_hidden(f"{name}/", table=True)}
        return [translate(name) for name in sorted(names)]

    def _unspelt(self, path: str) -> str:
        if not self._spelt:
            return path
        return "/".join(name for name in path.split("/") if not any(each.match(name) for each in self._spelt))


def _file_of(uri: str) -> str:
    match parse(uri):
        case Member(shard, _):
            return shard
        case Row(file, _, _):
            return file
    return uri


def resolve(entry: str | SourceConfig) -> Source:
    """Checks an entry of ``source`` as far as that can be done without looking into it.

    Raises:
        UserError: naming the entry and the key.
    """
    given = SourceConfig(uri=entry) if isinstance(entry, str) else entry
    in_catalog = given.format == "s3_metadata" and "/" not in given.uri
    uri = given.uri if in_catalog else storage.normalise_argument("source", given.uri)
    glob = is_glob(uri) and (storage.is_remote(uri) or not os.path.lexists(uri))
    fmt = given.format if given.format != "auto" else _format_of(uri)
    source = Source(uri, fmt, given.column, tuple(given.include), tuple(given.exclude), glob)
    if given.column and fmt not in WITH_COLUMN:
        raise UserError(f"source={uri}: column={given.column}: only {', '.join(WITH_COLUMN)} have columns")
    if not glob and _COMPRESSED.search(uri) and not os.path.isdir(uri):
        raise UserError(f"source={uri}: a compressed tar cannot be read in place; repack it as a plain .tar")
    if parse(uri):
        raise UserError(f"source={uri}: a single image of a shard or a table; name it in a list of URIs")
    if glob and fmt == "lance":
        raise UserError(f"source={uri}: a pattern names objects, and a Lance dataset is a folder; name each dataset")
    if glob and storage.is_remote(uri) and "/" not in literal_prefix(uri).removeprefix("s3://"):
        raise UserError(f"source={uri}: no wildcards in a bucket's name")
    for key, patterns in (("uri", [uri] if glob else []), ("include", source.include), ("exclude", source.exclude)):
        for pattern in patterns:
            try:
                translate(pattern)
            except (ValueError, OverflowError) as error:
                raise UserError(f"source={uri}: {key}={pattern}: {error}") from None
    return source


def _format_of(uri: str) -> str:
    extension = os.path.splitext(uri.removesuffix(".gz"))[1].lower()
    if extension not in (".parquet", ".lance") and not storage.is_remote(uri) and os.path.isdir(uri):
        return "auto"
    return _FORMATS.get(extension, "auto")
