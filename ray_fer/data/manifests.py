"""Labelled pictures: a manifest in CSV or Parquet, a folder per class, or a set in the layout it is published in.

People edit manifests by hand and export them from spreadsheets. So an error is one line with the row as an editor
counts it (the CSV's header is line 1). A manifest is read into memory: a million rows take about a second and 150 MB,
and sampling by class needs every label anyway.

Columns: ``path`` (a URI, or relative to the manifest's folder), ``label`` (class name in any case or alias; an index
where the classes are declared; empty or -1 for no label), and optionally ``subject``, ``group`` (near-duplicates),
``split``, ``video``, ``frame``. Others are ignored, and so are case and spaces in the names of columns. Paths are
resolved as those in lists of URIs are (`resolve`), so that one picture has one spelling, and one label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.data.decode import has_image_extension
from ray_fer.data.layouts import LayoutUri, parse_layout
from ray_fer.data.manifest_table import REQUIRED, ManifestTable
from ray_fer.data.names import is_hidden
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError, as_user_error
from ray_fer.expressions import EXPRESSIONS, canonical, class_name, class_order

T = TypeVar("T")

_PACKED = (".tar", ".parquet")  # hold pictures that a folder cannot name
_SPLIT_FOLDERS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True, eq=False)
class Manifest:
    """N labelled pictures, in file order.

    Attributes:
        uris: of the pictures.
        labels: int64 (N,), index into ``classes``; -1 where there is no label.
        classes: names; their order is the meaning of ``labels``.
        subjects: the person in each picture, "" where unknown; None where the source does not say.
        videos: the video of each picture, as ``subjects``.
        frames: position of each picture in its video, -1 where unknown; None where the source does not say.
        groups: the cluster of near-duplicates that each picture belongs to, as ``subjects``.
    """

    uris: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    subjects: list[str] | None = None
    videos: list[str] | None = None
    frames: list[int] | None = None
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.uris)

    def take(self, indices: NDArray[Any]) -> "Manifest":
        """The rows at ``indices``, an integer array, or where a boolean array (N,) is true."""
        rows = np.arange(len(self))[indices].tolist()
        return replace(
            self,
            uris=[self.uris[row] for row in rows],
            labels=self.labels[rows],
            subjects=_pick(self.subjects, rows),
            videos=_pick(self.videos, rows),
            frames=_pick(self.frames, rows),
            groups=_pick(self.groups, rows),
        )

    def labeled(self) -> "Manifest":
        """Only the rows that have a label."""
        return self.take(self.labels >= 0)

    def counts(self) -> NDArray[np.int64]:
        """Labelled rows per class, int64 (C,)."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes)).astype(np.int64)


def _pick(values: list[T] | None, rows: list[int]) -> list[T] | None:
    return None if values is None else [values[row] for row in rows]


def read_manifest(uri: str, classes: Sequence[str] | None = None, split: str | None = None) -> Manifest:
    """Reads a manifest, a folder with one sub-folder per class, or a published set.

    Args:
        uri: a ``.csv`` or ``.parquet`` file, a folder, local or ``s3://``; or a set as ``rafdb:/data/RAF-DB#train``
            (see `layouts`).
        classes: the class set and its order. A label outside it is an error; of a published set, whose rows of other
            classes are dropped. Without, it is the classes of the set, or the expressions that occur in the whole file
            (so that all splits agree), in canonical order.
        split: keep only the rows whose ``split`` column says this; of a folder its sub-folder of this name.

    Raises:
        UserError: for what is missing or wrong, in one line with the column or row.
    """
    known = None if classes is None else declared_classes(classes)
    if layout := parse_layout(uri, split):
        return _read_layout(layout, known or layout.layout.classes)
    if _is_folder(uri):
        return read_image_folder(uri, known, split)
    table = ManifestTable(uri, REQUIRED)
    labels, known = table.labels(known)
    manifest = Manifest(
        uris=table.uris(),
        labels=labels,
        classes=known,
        subjects=table.optional("subject"),
        videos=table.optional("video"),
        frames=table.frames(),
        groups=table.optional("group"),
    )
    _check_duplicates(table, manifest)
    return manifest if split is None else manifest.take(table.in_split(split))


def named_pictures(uri: str) -> list[str]:
    """URIs of the pictures that a manifest names, or that lie in a folder at any depth, whatever their labels.

    Args:
        uri: as of `read_manifest`; the manifest needs no column ``label``.

    Raises:
        UserError: for a file that is no manifest, and a path in it that can name no picture.
    """
    if layout := parse_layout(uri):
        return [row.uri for row in layout.rows()]
    if not _is_folder(uri):
        return ManifestTable(uri, ("path",)).uris()
    root = storage.normalise(uri)
    names = _find_files(root)
    if packed := next((name for name in names if name.lower().endswith(_PACKED)), None):
        raise UserError(f"{uri}: holds {packed}, whose pictures only a manifest can name, as {packed}!/a.jpg")
    pictures = [name for name in names if has_image_extension(name)]
    if not pictures:
        raise UserError(f"{uri}: no picture in the folder")
    return [f"{root}/{name}" for name in pictures]


def _read_layout(uri: LayoutUri, classes: tuple[str, ...]) -> Manifest:
    index = {name: position for position, name in enumerate(classes)}
    rows = [row for row in uri.rows() if row.name in index]
    if not rows:
        raise UserError(f"{uri.folder}: no row is left: none of the wanted classes ({', '.join(classes)})")
    return Manifest(
        uris=[row.uri for row in rows],
        labels=np.array([index[row.name] for row in rows if row.name is not None], np.int64),
        classes=classes,
        videos=[row.video for row in rows] if any(row.video for row in rows) else None,
        frames=[row.frame for row in rows] if any(row.frame >= 0 for row in rows) else None,
        groups=[row.group for row in rows] if any(row.group for row in rows) else None,
    )


def _is_folder(uri: str) -> bool:
    if uri.lower().endswith((".csv", ".parquet")):
        return False
    with as_user_error(f"{uri}: cannot be read"):
        found = storage.is_dir(uri)
    if not found:
        raise UserError(f"{uri}: no .csv or .parquet file and no folder")
    return True


def read_image_folder(uri: str, classes: Sequence[str] | None = None, split: str | None = None) -> Manifest:
    """ImageFolder: the first folder under `uri` names the class of every image below it that is not hidden.

    Args:
        uri: The folder, local or s3://.
        classes: The class set; a folder outside it is an error. Without, the expressions that have a folder.
        split: Read the sub-folder of this name.

    Raises:
        UserError: for a folder that is no class, a wanted split that is not there, one that must be chosen, no image.
    """
    wanted = None if classes is None else declared_classes(classes)
    root = storage.normalise(uri if split is None else storage.join(uri, split))
    parts = [(name, name.split("/", 1)[0]) for name in _find_files(root) if "/" in name and has_image_extension(name)]
    if not parts:
        raise UserError(f"{root}: no folder with images in it")
    folders = dict.fromkeys(folder for _, folder in parts)
    if splits := _SPLIT_FOLDERS.intersection(folders):
        raise UserError(f"{root}: has the splits {', '.join(sorted(splits))}: name one of them")
    names = {folder: _folder_class(root, folder, wanted) for folder in folders}
    order = class_order(names.values()) if wanted is None else wanted
    labels = np.array([order.index(names[folder]) for _, folder in parts], np.int64)
    return Manifest([f"{root}/{name}" for name, _ in parts], labels, order)


def _find_files(root: str) -> list[str]:
    """Paths below the folder `root` of the files at any depth, sorted, without what is hidden (`is_hidden`)."""
    fs, path = storage.filesystem(root)
    found = sorted(name[len(path) :].strip("/") for name in fs.find(path))
    return [name for name in found if not is_hidden(name)]


def _folder_class(root: str, folder: str, classes: Sequence[str] | None) -> str:
    """The class that a folder stands for: itself if declared, else the expression it names."""
    declared = {name.lower(): name for name in classes or ()}
    if folder.lower() in declared:
        return declared[folder.lower()]
    try:
        name = canonical(folder)
    except UserError:
        name = ""
    if name and (classes is None or name in classes):
        return name
    raise UserError(f"{root}: folder {folder!r} is no class (known: {', '.join(classes or EXPRESSIONS)})")


def declared_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """A class set as the user gives it: aliases resolved, custom names kept.

    Raises:
        UserError: for an empty set or a class that is there twice.
    """
    names = tuple(class_name(name) for name in classes)
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None or not names:
        raise UserError(f"classes: {repeated} is there twice" if names else "classes: none")
    return names


def check_disjoint(train: Manifest, val: Manifest, names: str = "training and validation") -> None:
    """Makes sure that no picture (whichever of its faces), subject, group or video is on both sides of a split.

    Args:
        train: one side.
        val: the other.
        names: of both sides, for the message.

    Raises:
        UserError: naming the first that is.
    """
    for what in ("uris", "subjects", "groups", "videos"):
        ours, theirs = getattr(train, what), getattr(val, what)
        if ours is None or theirs is None:
            continue
        if what == "uris":
            ours, theirs = ([split_face(uri)[0] for uri in uris] for uris in (ours, theirs))
        shared = sorted(set(ours).intersection(theirs) - {""})
        if shared:
            name = "picture" if what == "uris" else what.removesuffix("s")
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise UserError(f"{name} {shared[0]}{more} in both {names}: the score would be a leak")


def _check_duplicates(table: ManifestTable, manifest: Manifest) -> None:
    """The same picture (of a video file: the same frame) must not have two labels."""
    keys: Sequence[object] = manifest.uris
    if manifest.frames is not None:
        keys = list(zip(manifest.uris, manifest.frames, strict=True))
    if len(set(keys)) == len(keys):
        return
    first: dict[object, int] = {}
    for row, key in enumerate(keys):
        seen = first.setdefault(key, row)
        if manifest.labels[seen] != manifest.labels[row]:
            raise table.error(row, f"{manifest.uris[row]} has another label than in row {table.number(seen)}")
