"""Readers for the layouts that labelled sets are published in; each returns a `Manifest`.

Every set numbers the expressions in its own order (`ray_fer.expressions`) and hides its own trap: FERPlus has votes
instead of labels, FER2013 keeps its pictures inside the csv, ExpW several faces per picture, Aff-Wild2 counts frames
from one and leaves holes where no face was found. Each trap is dealt with here, once, and what comes out has names.

All readers take the class set as `classes` and drop the rows of other classes; nothing is mapped onto a class it is
not, except contempt onto other where `contempt_as_other` asks for it.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_fer import storage
from ray_fer.data.decode import has_image_extension
from ray_fer.data.manifests import Manifest, declared_classes, write_manifest
from ray_fer.data.names import is_hidden
from ray_fer.data.sources.uris import resolve
from ray_fer.data.text import decoded, whole
from ray_fer.errors import UserError
from ray_fer.expressions import (
    ABAW,
    AFFECTNET,
    EXPRESSIONS,
    EXPW,
    FER2013,
    FERPLUS,
    RAF_DB,
    SEVEN,
    canonical,
    class_order,
    code_index,
)

_SPLIT_FOLDERS = {"train", "val", "valid", "validation", "test"}
_USAGE = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_ABAW_HEADER = "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
_FER2013_SIDE = 48

# --------------------------------------------------------------------------------------------------- folder per class


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
    parts = [(name, name.split("/", 1)[0]) for name in find_pictures(root) if "/" in name]
    if not parts:
        raise UserError(f"{root}: no folder with images in it")
    folders = dict.fromkeys(folder for _, folder in parts)
    if splits := _SPLIT_FOLDERS.intersection(folders):
        raise UserError(f"{root}: has the splits {', '.join(sorted(splits))}: name one of them")
    names = {folder: _folder_class(root, folder, wanted) for folder in folders}
    order = class_order(names.values()) if wanted is None else wanted
    labels = np.array([order.index(names[folder]) for _, folder in parts], np.int64)
    return Manifest([f"{root}/{name}" for name, _ in parts], labels, order)


def find_pictures(root: str) -> list[str]:
    """Paths below the folder `root` of the images at any depth, sorted, without what is hidden (`is_hidden`)."""
    return [name for name in find_files(root) if has_image_extension(name)]


def find_files(root: str) -> list[str]:
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


# ---------------------------------------------------------------------------------------------------------- AffectNet


def read_affectnet(
    csv_uri: str, images_uri: str, classes: Sequence[str] = EXPRESSIONS[:8], *, contempt_as_other: bool = False
) -> Manifest:
    """AffectNet's csv (`subDirectory_filePath`, `expression`); None, Uncertain and No-Face rows are dropped."""
    rows = _csv_rows(csv_uri, ("subDirectory_filePath", "expression"))
    named = [(row["subDirectory_filePath"], _code(csv_uri, line, row["expression"], AFFECTNET)) for line, row in rows]
    return _from_codes(images_uri, named, AFFECTNET, classes, contempt_as_other)


# ------------------------------------------------------------------------------------------------------------- RAF-DB


def read_raf_db(
    list_uri: str, images_uri: str, classes: Sequence[str] = SEVEN, *, split: str | None = None, aligned: bool = True
) -> Manifest:
    """RAF-DB's `list_patition_label.txt`: lines `train_00001.jpg 5`.

    Args:
        list_uri: The list.
        images_uri: Folder of the pictures.
        classes: The class set; others are dropped.
        split: `train` or `test`, told by the file names; None for both.
        aligned: The pictures are the aligned ones, `train_00001_aligned.jpg`.
    """
    named = []
    for line, fields in _lines(list_uri, 2):
        stem, _, extension = fields[0].rpartition(".")
        if split is None or stem.startswith(f"{split}_"):
            name = f"{stem}_aligned.{extension}" if aligned else fields[0]
            named.append((name, _code(list_uri, line, fields[1], RAF_DB)))
    return _from_codes(images_uri, named, RAF_DB, classes)


# --------------------------------------------------------------------------------------------------- FER2013, FERPlus


@dataclass(frozen=True, eq=False)
class Fer2013:
    """The contents of fer2013.csv.

    Attributes:
        images: Grey pictures, uint8 (N, 48, 48).
        labels: int64 (N,), index into `classes`.
        classes: Class names.
        splits: `train`, `val` (PublicTest) or `test` (PrivateTest) of each row.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    splits: list[str]


def read_fer2013(csv_uri: str) -> Fer2013:
    """FER2013's csv (`emotion`, `pixels`, `Usage`) into memory: 35,887 pictures, 83 MB."""
    images, codes, splits = [], [], []
    for line, row in _csv_rows(csv_uri, ("emotion", "pixels", "Usage")):
        images.append(_fer2013_pixels(csv_uri, line, row["pixels"]))
        codes.append(_code(csv_uri, line, row["emotion"], FER2013))
        splits.append(_usage(csv_uri, line, row["Usage"]))
    index = code_index(FER2013, SEVEN)
    return Fer2013(np.stack(images), np.array([index[code] for code in codes], np.int64), SEVEN, splits)


def _fer2013_pixels(uri: str, line: int, text: str) -> NDArray[np.uint8]:
    try:
        pixels = np.array([int(level) for level in text.split()], np.uint8)
        return pixels.reshape(_FER2013_SIDE, _FER2013_SIDE)
    except (ValueError, OverflowError):
        raise UserError(f"{uri}: row {line}: pixels are not {_FER2013_SIDE**2} numbers from 0 to 255") from None


def convert_fer2013(csv_uri: str, folder_uri: str) -> Manifest:
    """Write FER2013 out as `images/fer0000000.png` … and `manifest.csv` with its splits.

    The names are those of FERPlus, whose csv can so be read over the same pictures.
    """
    data = read_fer2013(csv_uri)
    folder = storage.normalise(folder_uri)
    uris = [f"{folder}/images/fer{row:07d}.png" for row in range(len(data.images))]
    for uri, pixels in zip(uris, data.images, strict=True):
        storage.write_bytes(uri, _png(Image.fromarray(pixels)))
    manifest = Manifest(uris, data.labels, data.classes)
    write_manifest(f"{folder}/manifest.csv", manifest, data.splits)
    return manifest


def read_ferplus(
    csv_uri: str,
    images_uri: str,
    classes: Sequence[str] = EXPRESSIONS[:8],
    *,
    split: str | None = None,
    min_votes: int = 1,
    keep_unlabeled: bool = False,
) -> Manifest:
    """FERPlus' `fer2013new.csv`: ten votes a picture over eight emotions, unknown, and not a face; most votes win.

    A tie, a win of unknown or not-a-face, and a class outside `classes` leave a picture without label.

    Args:
        csv_uri: The csv.
        images_uri: Folder of the pictures, by the csv's `Image name` (see `convert_fer2013`).
        classes: The class set.
        split: `train`, `val` (PublicTest) or `test` (PrivateTest); None for all.
        min_votes: Votes that the winner needs; 6 asks for an absolute majority.
        keep_unlabeled: Keep pictures without label (as -1) instead of dropping them. Rows without a picture, which are
            not faces, are dropped either way.
    """
    columns = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
    index = code_index(FERPLUS, declared_classes(classes))
    names, labels = [], []
    for line, row in _csv_rows(csv_uri, ("Usage", "Image name", *columns)):
        usage = _usage(csv_uri, line, row["Usage"])
        if not row["Image name"] or split not in (None, usage):
            continue
        votes = [_integer(csv_uri, line, row[column]) for column in columns]
        most = max(votes)
        label = index[votes.index(most)] if votes.count(most) == 1 and most >= min_votes else -1
        if label >= 0 or keep_unlabeled:
            names.append(row["Image name"])
            labels.append(label)
    return _manifest(images_uri, names, labels, classes)


# --------------------------------------------------------------------------------------------------------------- ExpW


def read_expw(
    label_uri: str, images_uri: str, classes: Sequence[str] = SEVEN, *, min_confidence: float = 0.0
) -> tuple[Manifest, NDArray[np.int64]]:
    """ExpW's `label.lst`: lines `file face_id top left right bottom confidence label`, one per face.

    A picture has several faces, so this manifest is for `crop_faces`, not for training.

    Returns:
        The manifest and int64 (N, 4) boxes left, top, right, bottom in pixels.
    """
    named, boxes = [], []
    index = code_index(EXPW, declared_classes(classes))
    for line, fields in _lines(label_uri, 8):
        code = _code(label_uri, line, fields[7], EXPW)
        if index[code] < 0 or float(fields[6]) < min_confidence:
            continue
        top, left, right, bottom = (_integer(label_uri, line, field) for field in fields[2:6])
        named.append((fields[0], code))
        boxes.append((left, top, right, bottom))
    return _from_codes(images_uri, named, EXPW, classes), np.array(boxes, np.int64).reshape(-1, 4)


def crop_faces(manifest: Manifest, boxes: NDArray[np.int64], folder_uri: str, margin: float = 0.0) -> Manifest:
    """Cut faces out of pictures: writes `images/00000000.png` … and `manifest.csv`, and returns that manifest.

    Args:
        manifest: A row per face; its `groups` become the pictures, whose faces must not straddle a split.
        boxes: int64 (N, 4) left, top, right, bottom in pixels.
        folder_uri: Where to write.
        margin: What to add on each side, as a share of the box's side; beyond the picture it is black.
    """
    folder = storage.normalise(folder_uri)
    uris = [f"{folder}/images/{row:08d}.png" for row in range(len(manifest))]
    for source, target, (left, top, right, bottom) in zip(manifest.uris, uris, boxes.tolist(), strict=True):
        wide, high = round(margin * (right - left)), round(margin * (bottom - top))
        with Image.open(io.BytesIO(storage.read_bytes(source))) as image:
            face = image.convert("RGB").crop((left - wide, top - high, right + wide, bottom + high))
        storage.write_bytes(target, _png(face))
    crops = Manifest(uris, manifest.labels, manifest.classes, groups=[PurePosixPath(uri).stem for uri in manifest.uris])
    write_manifest(f"{folder}/manifest.csv", crops)
    return crops


# ---------------------------------------------------------------------------------------------------------- Aff-Wild2


def read_affwild2(annotations_uri: str, images_uri: str, classes: Sequence[str] = ABAW) -> Manifest:
    """Aff-Wild2's EXPR annotations: a text file per person of a video, its first line the class names.

    Line i >= 1 is the label of frame i, whose crop, where the detector found a face, is `<stem>/<i:05d>.jpg`. Frames
    are matched by that name, never by position; frames labelled -1 or without crop are dropped.

    Args:
        annotations_uri: Folder of the `.txt` files of one split.
        images_uri: Folder of the crops, such as `cropped_aligned`.
        classes: The class set; others are dropped.

    Returns:
        A manifest with `videos` (the file's stem: one person's track), `frames` (from 1, as in the file names), and
        `groups` (the recording, without `_left` or `_right`: both persons of one belong on one side of a split).
    """
    wanted = declared_classes(classes)
    root = storage.normalise(images_uri)
    uris, labels, videos, frames = [], [], [], []
    for name in storage.list_dir(annotations_uri):
        if not name.endswith(".txt"):
            continue
        stem = name.removesuffix(".txt")
        crops = {PurePosixPath(crop).stem: crop for crop in storage.list_dir(f"{root}/{stem}")}
        for frame, label in _affwild2_labels(storage.join(annotations_uri, name), wanted):
            if label >= 0 and (crop := crops.get(f"{frame:05d}")):
                uris.append(f"{root}/{stem}/{crop}")
                labels.append(label)
                videos.append(stem)
                frames.append(frame)
    if not uris:
        raise UserError(f"{annotations_uri}: no labelled frame with a crop under {images_uri}")
    groups = [video.removesuffix("_left").removesuffix("_right") for video in videos]
    return Manifest(uris, np.array(labels, np.int64), wanted, videos=videos, frames=frames, groups=groups)


def _affwild2_labels(uri: str, classes: tuple[str, ...]) -> Iterable[tuple[int, int]]:
    """(frame from 1, index into `classes` or -1) per line; the codes are those of the file's own header."""
    header, *lines = _text(uri).splitlines() or [""]
    codes: Mapping[int, str | None] = dict(enumerate(canonical(name) for name in header.split(",")))
    index = code_index(codes, classes)
    for frame, line in enumerate(lines, start=1):
        if line.strip():
            code = _integer(uri, frame + 1, line)
            yield frame, -1 if code == -1 else index[_code(uri, frame + 1, line, codes)]


def write_abaw_submission(uri: str, videos: Sequence[str], frames: Sequence[int], labels: Sequence[str]) -> None:
    """Write a prediction file of the ABAW EXPR challenge: a header, then `<video>/<frame:05d>.jpg,<class number>`.

    Args:
        uri: The file to write.
        videos: (N,) names as in the organisers' list.
        frames: (N,) frame numbers, from 1.
        labels: (N,) predicted class names, each one of `ABAW`.

    Raises:
        UserError: for a class that the challenge does not have.
    """
    lines = [_ABAW_HEADER]
    for video, frame, label in zip(videos, frames, labels, strict=True):
        if label not in ABAW:
            raise UserError(f"{video} frame {frame}: {label!r} is no class of the challenge ({', '.join(ABAW)})")
        lines.append(f"{video}/{frame:05d}.jpg,{ABAW.index(label)}")
    storage.write_bytes(uri, ("\n".join(lines) + "\n").encode())


# ------------------------------------------------------------------------------------------------------------- shared


def _from_codes(
    images_uri: str,
    named: Sequence[tuple[str, int]],
    codes: Mapping[int, str | None],
    classes: Sequence[str],
    contempt_as_other: bool = False,
) -> Manifest:
    """A manifest of the (relative path, code) rows whose class is wanted."""
    index = code_index(codes, declared_classes(classes), contempt_as_other=contempt_as_other)
    kept = [(name, index[code]) for name, code in named if index[code] >= 0]
    return _manifest(images_uri, [name for name, _ in kept], [label for _, label in kept], classes)


def _manifest(images_uri: str, names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> Manifest:
    if not names:
        raise UserError(f"no row is left for {images_uri}: none of the wanted classes or split ({', '.join(classes)})")
    root = storage.normalise(images_uri)
    uris = [resolve(root, name) for name in names]
    return Manifest(uris, np.array(labels, np.int64), declared_classes(classes))


def _text(uri: str) -> str:
    try:
        return decoded(storage.read_bytes(uri))
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    except UserError as error:
        raise UserError(f"{uri}: {error}") from None


def _csv_rows(uri: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, stripped cells by column) of a csv, checked to have the columns."""
    reader = csv.DictReader(io.StringIO(_text(uri), newline=""))
    there = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = there
    missing = next((name for name in columns if name not in there), None)
    if missing is not None:
        raise UserError(f"{uri}: no column `{missing}` (has: {', '.join(there)})")
    return [(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]


def _lines(uri: str, fields: int) -> Iterable[tuple[int, list[str]]]:
    """(line, fields) of a space-separated list; spaces in the first field, a file name, are kept."""
    for number, text in enumerate(_text(uri).splitlines(), start=1):
        if not text.strip():
            continue
        parts = text.strip().rsplit(maxsplit=fields - 1)
        if len(parts) != fields:
            raise UserError(f"{uri}: row {number}: {len(parts)} fields instead of {fields}")
        yield number, parts


def _integer(uri: str, line: int, text: str) -> int:
    if (number := whole(text.strip())) is None:
        raise UserError(f"{uri}: row {line}: {text!r} is not a whole number")
    return number


def _code(uri: str, line: int, text: str, codes: Mapping[int, str | None]) -> int:
    code = _integer(uri, line, text)
    if code not in codes:
        raise UserError(f"{uri}: row {line}: label {text.strip()} is not one of {min(codes)} to {max(codes)}")
    return code


def _usage(uri: str, line: int, text: str) -> str:
    if text not in _USAGE:
        raise UserError(f"{uri}: row {line}: Usage {text!r} is not one of {', '.join(_USAGE)}")
    return _USAGE[text]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
