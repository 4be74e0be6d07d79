"""Pictures by their bytes, not by their names: a copy under another name is the same picture.

The digest is the predictions table's, xxh3-128 of the bytes. Names and ETags are not enough: the same picture may lie
in two buckets, and an ETag is a hash of the content only for some uploads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import xxhash

from ray_fer.data.decode import has_image_extension, starts_like_picture
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.data.uris import place_of

log = logging.getLogger(__name__)

_ANY_SIZE = 1 << 40
_LOG_EVERY = 100_000  # a few minutes of a bucket


@dataclass(frozen=True)
class Contents:
    """The contents of a set of pictures.

    Attributes:
        digests: of the bytes of each picture, with its URI; where several have the same bytes, with that of the last.
        sizes: in bytes.
        unread: the pictures that could not be read, and so are in neither.
    """

    digests: Mapping[bytes, str]
    sizes: frozenset[int]
    unread: tuple[Read, ...] = ()

    def __or__(self, other: Contents) -> Contents:
        """The contents of both sets."""
        return Contents({**self.digests, **other.digests}, self.sizes | other.sizes, self.unread + other.unread)

    def copies(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those of ``items`` that are copies of these pictures, or may be.

        What is not there is no copy; what is there and cannot be read now may be one. An item is read only where its
        listed size is that of a picture here, or is not known.
        """
        for number, read in enumerate(read_objects(filter(self._may_be, items), _ANY_SIZE), 1):
            if not number % _LOG_EVERY:
                log.info("%d pictures read to find copies", number)
            unknown = read.status == "unreadable"
            if unknown or (read.data is not None and xxhash.xxh3_128_digest(read.data) in self.digests):
                yield read.item

    def _may_be(self, item: Item) -> bool:
        if item.size in self.sizes or not item.size:
            return True
        return not place_of(item.uri).exact_size


def describe_unread(unread: Sequence[Read], count: int) -> str:
    """Says how many of ``count`` pictures are ``unread``, and names the first of them and the reason."""
    first = unread[0]
    return (
        f"{len(unread)} of {count} pictures cannot be read, the first: {first.item.uri} ({first.status}: {first.error})"
    )


def contents_of(uris: Iterable[str], *, checked: bool = False) -> Contents:
    """Reads the pictures at ``uris``; of a face its whole picture counts.

    Args:
        uris: of pictures.
        checked: whether a file that neither is named nor begins like a picture counts as unread.
    """
    digests, sizes, unread = dict[bytes, str](), set[int](), list[Read]()
    for read in read_objects((Item(uri, "", 0) for uri in uris), _ANY_SIZE):
        if read.data is None:
            unread.append(read)
        elif checked and not (has_image_extension(read.item.uri) or starts_like_picture(read.data)):
            unread.append(Read(read.item, read.identity, None, "undecodable", "no picture"))
        else:
            digests[xxhash.xxh3_128_digest(read.data)] = read.item.uri
            sizes.add(len(read.data))
    return Contents(digests, frozenset(sizes), tuple(unread))
