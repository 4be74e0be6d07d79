"""Image columns of Lance datasets: encoded bytes, Lance's blobs, or Hugging Face's struct of bytes and path.

A row is named by its row id, and what says that its image is another one is its identity:

- Where the dataset has stable row ids, the version that last changed the row. Appended and updated rows are new work,
  deleting others and compaction change nothing; an added column counts as a change of every row.
- Where it has none (Lance's default), the name of the data file that holds the column, and a row id says where in it.
  Appended rows are new work, deleting others and adding columns change nothing; what compaction or an update moved to
  another file is new.

A dataset that was overwritten is new in both cases. One with stable row ids that was removed and made anew in its place
starts at version 1 again: its rows pass for those of before.

For reading, a dataset is opened once per process, as it stands then. It is opened anew when a row is not there or is
not what was listed. Rows are read from the version that was opened, and their identities are those of that version.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import unquote

import pyarrow as pa

from ray_fer.data.read import UNKNOWN, Item, Read, ReadBatch, Stat, bounded, failed
from ray_fer.data.sources.lance_column import (
    LANCE_ERRORS,
    Image,
    LanceColumn,
    is_image_column,
    open_dataset,
    plain_schema,
    row_prefix,
)
from ray_fer.data.sources.rows import RowBatch, TableRow, column_problem, only_column
from ray_fer.data.sources.spec import ImageFormat, Source
from ray_fer.errors import UserError, as_user_error

_KEPT = 4
_ROW = re.compile(r"(.*)#column=([^&#]*)&rowid=(\d+)", re.DOTALL)

_kept: OrderedDict[tuple[str, str], LanceColumn] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class LanceRow(TableRow):
    """An image in a Lance dataset: the row of ``column`` whose row id is ``number``."""

    format: ClassVar[str] = "lance"

    @property
    def uri(self) -> str:
        """Its URI, in which the column's name is percent-encoded."""
        return f"{row_prefix(self.file, self.column)}{self.number}"


class Lance(ImageFormat):
    """Lance datasets with a column of images."""

    extensions = (".lance",)
    takes_folders = True
    has_column = True

    def check(self, source: Source) -> None:
        """Refuses patterns."""
        if source.glob:
            raise UserError(
                f"source={source.uri}: a pattern names objects, and a Lance dataset is a folder; name each dataset"
            )

    def list_images(self, source: Source, counts: Counter[str]) -> Iterator[pa.Table]:
        """Lists the rows of the dataset as it is now.

        Only row ids and versions are read, and of blobs their sizes; the size of other images is the mean of their
        file.
        """
        with as_user_error(f"source={source.uri}: cannot be read as Lance", LANCE_ERRORS):
            dataset = open_dataset(source.uri)
            name = source.column or only_column(source.uri, plain_schema(dataset.schema))
            if not is_image_column(dataset.schema, name):
                raise UserError(f"source={source.uri}: {column_problem(dataset.schema, name)}")
            yield from LanceColumn(source.uri, name, dataset).rows()

    def parse(self, uri: str) -> LanceRow | None:
        """The row that ``uri`` names."""
        found = _ROW.fullmatch(uri)
        return LanceRow(found[1], unquote(found[2]), int(found[3])) if found else None

    def stat(self, places: Sequence[LanceRow]) -> list[Stat]:
        """Looks the rows up in their datasets as they are now."""
        found: dict[LanceRow, Stat] = {}
        for file, column in sorted({(row.file, row.column) for row in places}):
            numbers = [row.number for row in places if (row.file, row.column) == (file, column)]
            try:
                stats = LanceColumn(file, column).stats(numbers)
            except LANCE_ERRORS:  # the reader will say why
                continue
            found |= {LanceRow(file, column, number): stat for number, stat in stats.items()}
        return [found.get(row, UNKNOWN) for row in places]

    def batch(self, item: Item, place: LanceRow, before: ReadBatch | None) -> ReadBatch:
        """Rows of a column, in any order, are read together by their row ids."""
        return before if isinstance(before, _Rows) and before.add(item, place) else _Rows(item, place)


class _Rows(RowBatch):
    """Rows of one column of a dataset."""

    def read(self, max_bytes: int) -> list[Read]:
        with _lock:
            column = _kept.get((self.file, self.column))
        images: dict[int, Image] = {}
        try:
            if column is not None:
                images = column.take(self.numbers)
        except LANCE_ERRORS:  # its version was cleaned away
            images = {}
        if column is None or not self._as_listed(images):
            try:
                images = _opened(self.file, self.column).take(self.numbers)
            except LANCE_ERRORS as error:
                return [failed(item, error) for item in self.items]
        pairs = zip(self.items, self.numbers, strict=True)
        return [_read(item, images.get(number), max_bytes) for item, number in pairs]

    def _as_listed(self, images: dict[int, Image]) -> bool:
        found = (images.get(number) for number in self.numbers)
        pairs = zip(self.items, found, strict=True)
        return all(image is not None and item.identity in ("", image[0]) for item, image in pairs)


def _read(item: Item, image: Image | None, max_bytes: int) -> Read:
    if image is None:
        return Read(item, item.identity, None, "missing", "its dataset has no such row now")
    identity, data = image
    if data is None:
        return Read(item, identity, None, "undecodable", "the row holds null")
    return bounded(item, identity, data, max_bytes)


def _opened(uri: str, name: str) -> LanceColumn:
    column = LanceColumn(uri, name)
    with _lock:
        _kept[uri, name] = column
        _kept.move_to_end((uri, name))
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return column
