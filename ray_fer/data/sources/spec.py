"""What all source formats share: the class `Format`, and `Source`, an entry of ``source`` once it is resolved."""

from __future__ import annotations

import functools
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.formats import FORMATS, Place, load_format, parse
from ray_fer.data.names import are_hidden, is_hidden
from ray_fer.data.read import Item, ReadBatch, Stat
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources.globs import is_glob, literal_prefix, matcher, translate
from ray_fer.errors import UserError

COMPRESSED_TAR = r"(?i)\.(tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4|lzma))$"
_COMPRESSED = re.compile(COMPRESSED_TAR)


class Format(ABC):
    """A kind of source, and how its images are listed. Instances hold no state."""

    extensions: ClassVar[tuple[str, ...]] = ()
    """Extensions that ``format=auto`` takes for this format."""
    takes_folders: ClassVar[bool] = False
    """Whether it also takes local folders with these extensions, which else are folders of loose images."""
    endings: ClassVar[tuple[str, ...]] = ()
    """How the files end that a source of several files is made of; empty where it is not made of such."""
    has_column: ClassVar[bool] = False
    """Whether ``column=`` may be given."""
    is_feed: ClassVar[bool] = False
    """Whether it names images that lie elsewhere."""
    takes_any_name: ClassVar[bool] = False
    """Whether all that it names are images, whatever they are called."""
    may_be_empty: ClassVar[bool] = False
    """Whether a source without an image is no error."""
    includes_files: ClassVar[bool] = False
    """Whether ``include`` chooses among the files, because the images in them have no names."""

    def normalise(self, uri: str) -> str:
        """The one spelling of a source's URI."""
        return storage.normalise_argument("source", uri)

    def check(self, source: Source) -> None:  # noqa: B027 - few have anything to check
        """Raises `UserError` for a source that cannot be of this format, without looking into it."""

    def check_content(self, source: Source) -> None:  # noqa: B027
        """Raises `UserError` for what is wrong in a source's own files, without asking the store about anything."""

    @abstractmethod
    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Yields tables of `pages.KEY_SCHEMA` of the images of ``source``.

        Args:
            source: of this format.
            counts: ``skipped`` and ``unlisted`` grow as `listing.list_sources` says.

        Raises:
            UserError: when the source cannot be listed.
        """


class ImageFormat(Format):
    """A format whose files are images or hold them: it looks them up and reads them.

    The others name objects elsewhere, which the format of each looks up and reads.
    """

    def parse(self, uri: str) -> Place | None:
        """The place of an image inside a file of this format; None for any other URI that has the format's mark."""
        return None

    @abstractmethod
    def stat(self, places: Sequence[Any]) -> list[Stat]:
        """Identity and size of each image that `parse` gave the place of; `UNKNOWN` for what cannot be found."""

    @abstractmethod
    def batch(self, item: Item, place: Any, before: ReadBatch | None) -> ReadBatch:
        """What ``item``, whose place `parse` gave, is read with.

        Args:
            item: to read.
            place: of the item.
            before: the batch of the item before, of whatever format; None for the first.

        Returns:
            ``before`` with the item added, where it is of this format and near enough; else a new batch.
        """


@dataclass(frozen=True)
class Source:
    """A source as `resolve` has found it.

    Attributes:
        uri: normalised; a pattern where ``glob`` is set; of S3 Metadata it may be the table's name in a catalog.
        format: its name; ``auto`` means loose images and tar shards, never a format that an extension shows.
        column: as given.
        include: patterns, as given.
        exclude: patterns, as given.
        glob: whether ``uri`` is a pattern.
    """

    uri: str
    format: str = "auto"
    column: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    glob: bool = False

    @property
    def kind(self) -> Format:
        """The implementation of its format."""
        kind: Format = load_format(self.format)
        return kind

    @property
    def label(self) -> str:
        """The value of the pages' column ``source``: the URI, of a feed with its format."""
        return f"{self.format}:{self.uri}" if self.kind.is_feed else self.uri

    @property
    def plain(self) -> bool:
        """Whether all images under ``uri`` are meant, so that another source inside it adds nothing."""
        return self.format == "auto" and not (self.glob or self.include or self.exclude)

    @property
    def root(self) -> str:
        """The folder or prefix that paths in patterns start below; its own name hides nothing."""
        return literal_prefix(self.uri).rpartition("/")[0] if self.glob else self.uri

    def below(self, uri: str) -> str:
        """The path of ``uri`` below `root`; of a member or a row the path of the file, then its own name."""
        return uri.removeprefix(self.root).removeprefix("!").lstrip("/")

    def chooser(self) -> Callable[[str], bool] | None:
        """A function that tells whether a URI is included and not excluded; None where all are.

        Patterns are compared with the path below the source, of a feed with the whole URI. Of a member or row they are
        compared with its own name and with that of its file.
        """
        if not (self.include or self.exclude):
            return None
        include, exclude = matcher(self.include), matcher(self.exclude)
        whole_uri = self.kind.is_feed

        def decide(uri: str) -> bool:
            path = uri if whole_uri else self.below(uri) or uri
            place = parse(path)
            names = dict.fromkeys([path, place.file or path] if place else [path])
            return (not self.include or any(map(include, names))) and not any(map(exclude, names))

        return decide

    def opens(self, file: str) -> bool:
        """Whether the table, shard or list ``file`` may hold wanted images, by its path below the source."""
        place = self.below(file) or file
        if matcher(self.exclude)(place):
            return False
        by_file = self.kind.includes_files and self.include and not any("#" in pattern for pattern in self.include)
        return not by_file or matcher(self.include)(place)

    def hides(self, file: str) -> bool:
        """Whether a file, or a folder if it ends with a slash, is hidden (see `data.names`)."""
        return is_hidden(self._unspelt(self.below(file)), table=bool(self.kind.endings))

    def hidden(self, objects: pa.ChunkedArray) -> pa.Array:
        """Which objects that were listed, or that a feed names, are hidden, bool (N,)."""
        if self.kind.takes_any_name:
            return pa.repeat(False, len(objects))
        if self.kind.is_feed:
            paths = pc.replace_substring_regex(objects, r"^s3://[^/]*/", "")
        else:
            paths = pc.utf8_slice_codeunits(objects, len(self.root))
        hidden = are_hidden(paths)
        if self._spelt and hidden.true_count:
            return are_hidden(pa.array([self._unspelt(path.lstrip("/")) for path in paths.to_pylist()], pa.string()))
        return hidden

    @functools.cached_property
    def _spelt(self) -> list[re.Pattern[str]]:
        """The hidden names that patterns spell out: these files are meant."""
        patterns = [*([self.below(self.uri)] if self.glob else []), *self.include]
        names = {name for pattern in patterns for name in pattern.split("/") if is_hidden(f"{name}/", table=True)}
        return [translate(name) for name in sorted(names)]

    def _unspelt(self, path: str) -> str:
        if not self._spelt:
            return path
        return "/".join(name for name in path.split("/") if not any(each.match(name) for each in self._spelt))


def resolve(entry: str | SourceConfig) -> Source:
    """Checks an entry of ``source`` as far as that can be done without looking into it.

    Raises:
        UserError: naming the entry and the key.
    """
    given = SourceConfig(uri=entry) if isinstance(entry, str) else entry
    named: Format = load_format(given.format)
    uri = named.normalise(given.uri)
    glob = is_glob(uri) and (storage.is_remote(uri) or not os.path.lexists(uri))
    fmt = given.format if given.format != "auto" else _format_of(uri)
    source = Source(uri, fmt, given.column, tuple(given.include), tuple(given.exclude), glob)
    if given.column and not source.kind.has_column:
        known = ", ".join(name for name in FORMATS if load_format(name).has_column)
        raise UserError(f"source={uri}: column={given.column}: only {known} have columns")
    if not glob and _COMPRESSED.search(uri) and not os.path.isdir(uri):
        raise UserError(f"source={uri}: a compressed tar cannot be read in place; repack it as a plain .tar")
    if parse(uri):
        raise UserError(f"source={uri}: a single image of a shard or a table; name it in a list of URIs")
    source.kind.check(source)
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
    name = next((name for name in FORMATS if extension in load_format(name).extensions), "auto")
    is_folder = not storage.is_remote(uri) and os.path.isdir(uri)
    return "auto" if is_folder and not load_format(name).takes_folders else name
