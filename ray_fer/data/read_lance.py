"""Reading images from Lance datasets, by the row ids of many rows at once.

A dataset is opened once per process, as it stands then; it is opened anew when a row is not there or is not what was
listed. What an open one reads is the content of its own version, and so is the identity that is told.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from ray_fer.data.items import Item, Read, bounded, failed
from ray_fer.data.runs import Rows
from ray_fer.data.sources.lance import LANCE_ERRORS, Image, LanceColumn

_KEPT = 4

_kept: OrderedDict[tuple[str, str], LanceColumn] = OrderedDict()
_lock = threading.Lock()


def read_lance_rows(run: Rows, max_bytes: int) -> list[Read]:
    """Reads rows of a dataset.

    Raises:
        UserError: when Lance is not installed.
    """
    with _lock:
        column = _kept.get((run.place, run.column))
    images: dict[int, Image] = {}
    try:
        if column is not None:
            images = column.take(run.numbers)
    except LANCE_ERRORS:  # its version was cleaned away
        images = {}
    if column is None or not _as_listed(run, images):
        try:
            images = _opened(run.place, run.column).take(run.numbers)
        except LANCE_ERRORS as error:
            return [failed(item, error) for item in run.items]
    return [_read(item, images.get(number), max_bytes) for item, number in zip(run.items, run.numbers, strict=True)]


def _as_listed(run: Rows, images: dict[int, Image]) -> bool:
    found = (images.get(number) for number in run.numbers)
    return all(
        image is not None and item.identity in ("", image[0]) for item, image in zip(run.items, found, strict=True)
    )


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
