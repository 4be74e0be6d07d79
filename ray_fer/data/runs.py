"""Items that lie together, as what is read at once: a loose object, a stretch of a tar shard, rows of a table."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ray_fer.data.items import READING_ERRORS, Item
from ray_fer.data.sources.tar import locate
from ray_fer.data.sources.uris import LanceRow, Member, Range, Row, parse, parse_range, split_face

STRETCH_BYTES = 4 << 20
GAP_BYTES = 64 << 10  # cheaper read than asked anew
TABLE_ROWS = 256
TABLE_BYTES = 16 << 20


@dataclass
class Run:
    """What is read at once; a loose object unless it is one of the subclasses.

    Attributes:
        place: URI of the file that the items are, or are in.
        items: in the order in which they were given.
    """

    place: str
    items: list[Item]

    @property
    def size(self) -> int:
        """Bytes that this holds in memory once read, about."""
        return sum(item.size for item in self.items)


@dataclass
class Members(Run):
    """Neighbouring members of one content of a tar shard; an item that was not found has no range."""

    ranges: list[Range | None] = field(default_factory=list)

    def takes(self, place: Member, found: Range | None) -> bool:
        """Whether a further member is near enough."""
        first, last = self.ranges[0], self.ranges[-1]
        if not (first and last and found and self.place == place.shard and last.shard_identity == found.shard_identity):
            return False
        end = last.offset + last.size
        return 0 <= found.offset - end <= GAP_BYTES and found.offset + found.size - first.offset <= STRETCH_BYTES


@dataclass
class Rows(Run):
    """Rows of one column of a table, in ascending order; of a Lance dataset row ids, in any order."""

    column: str = ""
    numbers: list[int] = field(default_factory=list)
    lance: bool = False

    def takes(self, place: Row, size: int) -> bool:
        """Whether a further row belongs to them."""
        table = (place.file, place.column, isinstance(place, LanceRow))
        same = (self.place, self.column, self.lance) == table and (self.lance or self.numbers[-1] < place.number)
        # Rows of a group are given one size, so that this needs no sum.
        return same and len(self.numbers) < min(TABLE_ROWS, TABLE_BYTES // max(1, size))


def group(items: Iterable[Item]) -> Iterator[Run]:
    """Cuts ``items`` into runs, which together are the items in their order."""
    run: Run | None = None
    for item in items:
        picture, _ = split_face(item.uri)
        place = parse(picture)
        if isinstance(place, Member):
            found = _found(item.identity, picture)
            if isinstance(run, Members) and run.takes(place, found):
                run.items.append(item)
                run.ranges.append(found)
                continue
            following: Run = Members(place.shard, [item], [found])
        elif isinstance(place, Row):
            if isinstance(run, Rows) and run.takes(place, item.size):
                run.items.append(item)
                run.numbers.append(place.number)
                continue
            following = Rows(place.file, [item], place.column, [place.number], isinstance(place, LanceRow))
        else:
            following = Run(picture, [item])
        if run:
            yield run
        run = following
    if run:
        yield run


def _found(identity: str, member: str) -> Range | None:
    """Where ``member`` is: as it was listed, else as its shard's headers say."""
    if found := parse_range(identity):
        return found
    try:
        key = locate(member)
    except (tarfile.TarError, *READING_ERRORS):
        return None
    return parse_range(key[1]) if key else None
