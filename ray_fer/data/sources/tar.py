"""WebDataset shards: the images in tar files, read in place by their ranges (see `tar_index`)."""

from __future__ import annotations

import itertools
import logging
import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import storage
from ray_fer.data.decode import has_image_extension
from ray_fer.data.formats import parse
from ray_fer.data.names import IMAGE_NAME, are_hidden
from ray_fer.data.read import READING_ERRORS, UNKNOWN, Item, Read, ReadBatch, Stat, bounded, failed
from ray_fer.data.sources import pages
from ray_fer.data.sources.ahead import interleaved
from ray_fer.data.sources.files import local_identity, stat_files
from ray_fer.data.sources.pages import key_tables
from ray_fer.data.sources.s3_requests import get_object
from ray_fer.data.sources.spec import COMPRESSED_TAR, ImageFormat, Source
from ray_fer.data.sources.tar_index import INDEX_ERRORS, Member, forget_index, index_of, locate
from ray_fer.data.sources.walk import list_objects
from ray_fer.data.uris import Range, parse_range
from ray_fer.errors import one_line

log = logging.getLogger(__name__)

SHARDS_AT_ONCE = 8
STRETCH_BYTES = 4 << 20
GAP_BYTES = 64 << 10  # cheaper read than asked anew
_SHARD = r"(?i)\.tar$"
_INSIDE = r"!/|#"  # no other URI can be that of an image inside a file
_MEMBER = re.compile(r"(.*?\.tar)!/(.*)", re.DOTALL | re.IGNORECASE)
_OVERWRITTEN = "its shard was overwritten since it was listed"


class WebDataset(ImageFormat):
    """Tar shards, also among other files.

    What follows the first ``.tar!/`` of a member's URI is its name as it stands in the shard, unescaped, as the keys of
    loose objects are.
    """

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the shards under ``source``, and counts the loose images as skipped."""
        return images_among(source, key_tables(list_objects(source, counts)), counts, loose=False)

    def parse(self, uri: str) -> Member | None:
        """The member that ``uri`` names."""
        found = _MEMBER.fullmatch(uri)
        return Member(*found.groups()) if found else None

    def stat(self, places: Sequence[Member]) -> list[Stat]:
        """Looks at the shards, and finds the members in their headers."""
        shards = stat_files([place.file for place in places])
        return [_stat_member(place, identity) for place, (identity, _) in zip(places, shards, strict=True)]

    def batch(self, item: Item, place: Member, before: ReadBatch | None) -> ReadBatch:
        """Neighbours in one content of a shard are read together."""
        found = _range_of(item, place)
        if isinstance(before, Members) and before.takes(place, found):
            before.items.append(item)
            before.ranges.append(found)
            return before
        return Members(item, place, found)


def images_among(
    source: Source, objects: Iterable[pa.Table], counts: Counter[str], *, loose: bool = True, shards: bool = True
) -> Iterator[pa.Table]:
    """Yields tables of the images among ``objects``, and of those in the tar shards among them.

    Args:
        source: that the objects come from.
        objects: tables of `KEY_SCHEMA`.
        counts: ``skipped`` grows by the other objects, and see `list_members`.
        loose: whether images outside of shards are wanted.
        shards: whether those in shards are.
    """
    compressed = 0
    for table in objects:
        uri = table["uri"]
        shard = pc.match_substring_regex(uri, _SHARD)
        packed = pc.match_substring_regex(uri, COMPRESSED_TAR)
        if source.kind.takes_any_name:
            image = pc.invert(pc.or_(shard, packed))
        else:
            meant = pc.invert(source.hidden(uri))
            shard, packed = pc.and_(shard, meant), pc.and_(packed, meant)
            # The reader would take a loose object of such a name for a member or a row.
            named = pc.and_(pc.match_substring_regex(uri, IMAGE_NAME), pc.invert(_are_inside(uri)))
            image = pc.and_(named, meant)
        images = table.filter(image) if loose else table.slice(0, 0)
        tars = table.filter(shard) if shards else table.slice(0, 0)
        tars = tars.filter(pa.array(map(source.opens, tars["uri"].to_pylist()), pa.bool_()))
        counts["skipped"] += table.num_rows - images.num_rows - tars.num_rows
        compressed += pc.sum(packed).as_py() or 0
        if images.num_rows:
            yield images
        if tars.num_rows:
            yield from list_members(tars["uri"].to_pylist(), tars["identity"].to_pylist(), counts)
    if compressed:
        log.warning(
            "source=%s: %d compressed tar files skipped: only plain .tar is read in place", source.uri, compressed
        )


def _are_inside(uris: pa.ChunkedArray) -> pa.Array:
    """Which URIs are those of images inside a file, bool (N,)."""
    inside = pc.match_substring_regex(uris, _INSIDE).to_numpy(zero_copy_only=False).copy()
    suspects = np.flatnonzero(inside)
    inside[suspects] = [parse(uri) is not None for uri in uris.take(pa.array(suspects)).to_pylist()]
    return pa.array(inside)


def list_members(shards: Sequence[str], identities: Sequence[str], counts: Counter[str]) -> Iterator[pa.Table]:
    """Tables of `KEY_SCHEMA` of the images in ``shards``, several of which are read at once.

    A shard that is damaged is listed up to the damage, with a warning; one that cannot be read is passed over and left
    to the next run.

    Args:
        shards: URIs of tar files.
        identities: theirs as listed; of what was listed before, the kept index is taken.
        counts: ``skipped`` grows by the members without an image's extension and the shards that cannot be read,
            ``unlisted`` by the latter.
    """
    lock = threading.Lock()

    def members_of(key: tuple[str, str]) -> Iterator[pa.Table]:
        shard, listed = key
        try:
            found = index_of(shard, listed)
            for members in pages.sliced(found.members):
                images = members.filter(pc.and_not(_are_images(members["name"]), are_hidden(members["name"])))
                with lock:
                    counts["skipped"] += members.num_rows - images.num_rows
                if images.num_rows:
                    yield found.keys(images)
            if found.damage:
                raise found.damage
        except INDEX_ERRORS as error:
            log.warning("%s: cannot be listed, or not to its end (%s)", shard, one_line(error))
            with lock:
                counts["skipped"] += 1
                counts["unlisted"] += 1

    keys = list(zip(shards, identities, strict=True))
    if not any(map(storage.is_remote, shards)):
        return itertools.chain.from_iterable(map(members_of, keys))
    return interleaved(keys, members_of, SHARDS_AT_ONCE)


def _are_images(names: pa.ChunkedArray) -> pa.Array:
    return pa.array([has_image_extension(name) for name in names.to_pylist()], pa.bool_())


def _stat_member(member: Member, shard_identity: str) -> Stat:
    if not shard_identity:
        return UNKNOWN
    try:
        found = locate(member, shard_identity)
    except (OSError, tarfile.TarError):
        return UNKNOWN
    return found[1:] if found else UNKNOWN


def _range_of(item: Item, member: Member) -> Range | None:
    """Where ``member`` is: as it was listed, else as its shard's headers say."""
    if found := parse_range(item.identity):
        return found
    try:
        key = locate(member)
    except (tarfile.TarError, *READING_ERRORS):
        return None
    return parse_range(key[1]) if key else None


class Members(ReadBatch):
    """Neighbouring members of one content of a tar shard.

    Args:
        item: the first.
        place: of the item.
        found: where it is in the shard; None where it was not found.
    """

    def __init__(self, item: Item, place: Member, found: Range | None) -> None:
        super().__init__(place.file, item)
        self.ranges = [found]

    def takes(self, place: Member, found: Range | None) -> bool:
        """Whether a further member is near enough."""
        first, last = self.ranges[0], self.ranges[-1]
        if not (first and last and found and self.file == place.file and last.shard_identity == found.shard_identity):
            return False
        end = last.offset + last.size
        return 0 <= found.offset - end <= GAP_BYTES and found.offset + found.size - first.offset <= STRETCH_BYTES

    def read(self, max_bytes: int) -> list[Read]:
        """Reads members of a local shard."""
        start, end = self._stretch(max_bytes)
        try:
            file = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)
            try:
                data = os.pread(file, end - start, start)
                # Afterwards: where it is still what was listed, it was so while it was read.
                return self._cut(max_bytes, local_identity(os.fstat(file)), start, data)
            finally:
                os.close(file)
        except OSError as error:
            return [failed(item, error) for item in self.items]

    async def request(self, fs: Any, max_bytes: int) -> list[Read]:
        """Reads members of a shard on S3 by one ranged request."""
        start, end = self._stretch(max_bytes)
        if start == end:  # nothing to ask for
            return self._cut(max_bytes, self._identity(), start, b"")
        try:
            answer = await get_object(fs, self.file, end - start, Range=f"bytes={start}-{end - 1}")
        except READING_ERRORS as error:
            return [failed(item, error) for item in self.items]
        return self._cut(max_bytes, answer.identity or self._identity(), start, answer.body or b"")

    def _stretch(self, max_bytes: int) -> tuple[int, int]:
        """The bytes from ``start`` to ``end`` that hold all members that are not too large."""
        wanted = [found for found in self.ranges if found and found.size <= max_bytes]
        return (wanted[0].offset, wanted[-1].offset + wanted[-1].size) if wanted else (0, 0)

    def _identity(self) -> str:
        return next((found.shard_identity for found in self.ranges if found), "")

    def _cut(self, max_bytes: int, identity: str, start: int, data: bytes) -> list[Read]:
        """The results from the bytes ``data`` of the stretch, read from a shard of the identity ``identity``."""
        pairs = zip(self.items, self.ranges, strict=True)
        return [self._member(item, found, max_bytes, identity, start, data) for item, found in pairs]

    def _member(self, item: Item, found: Range | None, max_bytes: int, identity: str, start: int, data: bytes) -> Read:
        if found is None:
            return Read(item, item.identity, None, "missing", "no such member, or its shard cannot be read")
        if identity != found.shard_identity:
            # For items without a range, which the shard's index of before has located; and for the next listing.
            forget_index(self.file, found.shard_identity)
            return Read(item, item.identity, None, "missing", _OVERWRITTEN)
        if found.size > max_bytes:
            return Read(item, found.identity, None, "too_large", f"{found.size} bytes")
        content = data[found.offset - start : found.offset - start + found.size]
        if len(content) < found.size:
            return Read(item, found.identity, None, "unreadable", "its shard ends before it does")
        return bounded(item, found.identity, content, max_bytes)
