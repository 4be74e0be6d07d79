"""The layouts that labelled sets are published in, named in URIs: ``rafdb:/data/RAF-DB``, ``rafdb:/data/RAF-DB#train``.

A new layout is a function in `layout_readers` and a line in `LAYOUTS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ray_fer import storage
from ray_fer.data.layout_readers import (
    LabeledRow,
    read_affectnet,
    read_affwild2,
    read_expw,
    read_fer2013,
    read_ferplus,
    read_raf_db,
)
from ray_fer.errors import UserError, as_user_error, prefixed
from ray_fer.expressions import ABAW, EXPRESSIONS, SEVEN

_URI = re.compile(r"([A-Za-z]\w*):(?!//)(.+)", re.DOTALL)
_SCHEMES = ("file", "s3", "s3a", "s3n", "gs", "http", "https")


@dataclass(frozen=True)
class Layout:
    """How a labelled set is read.

    Attributes:
        read: see `layout_readers`.
        classes: of the set.
        splits: that it has.
    """

    read: Callable[[str, str | None], Iterable[LabeledRow]]
    classes: tuple[str, ...]
    splits: tuple[str, ...] = ()


LAYOUTS = {
    "affectnet": Layout(read_affectnet, EXPRESSIONS[:8], ("train", "val")),
    "rafdb": Layout(read_raf_db, SEVEN, ("train", "test")),
    "fer2013": Layout(read_fer2013, SEVEN, ("train", "val", "test")),
    "ferplus": Layout(read_ferplus, EXPRESSIONS[:8], ("train", "val", "test")),
    "expw": Layout(read_expw, SEVEN),
    "affwild2": Layout(read_affwild2, ABAW, ("train", "val")),
}
"""The layouts by the prefix of their URIs."""


@dataclass(frozen=True)
class LayoutUri:
    """A labelled set in a layout: ``NAME:FOLDER`` or ``NAME:FOLDER#SPLIT``.

    Attributes:
        name: of the layout, a key of `LAYOUTS`.
        folder: where the set lies.
        split: one of the layout's; None for all of them.
    """

    name: str
    folder: str
    split: str | None = None

    @property
    def layout(self) -> Layout:
        """How it is read."""
        return LAYOUTS[self.name]

    def rows(self) -> list[LabeledRow]:
        """Reads all rows, also those without a label.

        Raises:
            UserError: for what is missing or wrong, in one line with the file and the row; when it cannot be read.
        """
        with as_user_error(f"{self.folder}: cannot be read"):
            return list(self.layout.read(storage.normalise(self.folder), self.split))


def parse_layout(uri: str, split: str | None = None) -> LayoutUri | None:
    """The labelled set that ``uri`` names by a layout; None for any other URI.

    Args:
        uri: as a user gives it.
        split: which part of it, where ``uri`` itself does not say.

    Raises:
        UserError: for a layout that is not known, or a split that it does not have.
    """
    found = _URI.fullmatch(uri)
    if found is None or found[1].lower() in _SCHEMES:
        return None
    name, rest = found[1].lower(), found[2]
    if name not in LAYOUTS:
        if rest.startswith(("/", "~", "s3://", "file:")) and not os.path.exists(uri):
            raise UserError(f"{uri}: no layout is called {found[1]} (known: {', '.join(LAYOUTS)})")
        return None
    folder, mark, named = rest.rpartition("#")
    splits = LAYOUTS[name].splits
    for part in filter(None, (named if mark else None, split)):
        if part not in splits:
            raise UserError(f"{uri}: {name} has no split {part!r} (there are: {', '.join(splits) or 'none'})")
    if mark and split not in (None, named):
        raise UserError(f"{uri}: split {split!r} is wanted of it; name one of them")
    return LayoutUri(name, folder, named) if mark else LayoutUri(name, rest, split)


def normalise_argument(key: str, uri: str) -> str:
    """`storage.normalise_argument`, which of a set in a layout normalises the folder.

    Raises:
        UserError: as `storage.normalise_argument` and `parse_layout`, naming the key.
    """
    with prefixed(f"{key}="):
        found = parse_layout(uri)
    if found is None:
        return storage.normalise_argument(key, uri)
    split = f"#{found.split}" if found.split else ""
    return f"{found.name}:{storage.normalise_argument(key, found.folder)}{split}"
