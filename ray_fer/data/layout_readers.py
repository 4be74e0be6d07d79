"""Readers of published sets of labelled faces; each yields the rows of the set in one folder.

Every set numbers the expressions in its own order (`ray_fer.expressions`) and has its own trap: FERPlus has votes
instead of labels, FER2013 keeps its pictures inside a CSV, ExpW has several faces in a picture, Aff-Wild2 counts frames
from one and leaves holes where no face was found. Each is dealt with here, and the rows that come out have class names.

A reader takes the set's folder and a split, or None for all of them.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from ray_fer import storage
from ray_fer.data.text import decoded, parse_int
from ray_fer.data.uris import Face, resolve
from ray_fer.errors import UserError, as_user_error, prefixed
from ray_fer.expressions import AFFECTNET, EXPW, FER2013, FERPLUS, RAF_DB, canonical

log = logging.getLogger(__name__)

_USAGE = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_FERPLUS_VOTES = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)
_FER2013_SIDE = 48
_WRITERS = 16


class LabeledRow(NamedTuple):
    """A picture of a labelled set.

    Attributes:
        uri: of the picture, or of a face in it.
        name: the canonical name of its expression; None where it has no label.
        video: the name of its video, "" for none.
        frame: its number in the video, -1 for none.
        group: what must not straddle a split, "" for the picture alone.
    """

    uri: str
    name: str | None
    video: str = ""
    frame: int = -1
    group: str = ""


def read_affectnet(root: str, split: str | None) -> Iterator[LabeledRow]:
    """``training.csv`` and ``validation.csv``; the codes None, Uncertain and No-Face have no class."""
    images = _first(root, "Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "images")
    for part, name in (("train", "training.csv"), ("val", "validation.csv")):
        if split in (None, part):
            uri = _first(root, name, f"Manually_Annotated_file_lists/{name}")
            for line, row in _csv_rows(uri, ("subDirectory_filePath", "expression")):
                code = _code(uri, line, row["expression"], AFFECTNET)
                yield LabeledRow(resolve(images, row["subDirectory_filePath"]), AFFECTNET[code])


def read_raf_db(root: str, split: str | None) -> Iterator[LabeledRow]:
    """``list_patition_label.txt`` with lines such as ``train_00001.jpg 5``; the aligned pictures where they are there.

    These are called ``train_00001_aligned.jpg``.
    """
    name = "list_patition_label.txt"
    uri = _first(root, f"EmoLabel/{name}", f"basic/EmoLabel/{name}", name)
    images = _first(
        root, *(f"{base}Image/{kind}" for kind in ("aligned", "original") for base in ("", "basic/")), "images"
    )
    aligned = not images.endswith("/original")
    for line, fields in _lines(uri, 2):
        stem, _, extension = fields[0].rpartition(".")
        if split is None or stem.startswith(f"{split}_"):
            picture = f"{stem}_aligned.{extension}" if aligned else fields[0]
            yield LabeledRow(resolve(images, picture), RAF_DB[_code(uri, line, fields[1], RAF_DB)])


def read_fer2013(root: str, split: str | None) -> Iterator[LabeledRow]:
    """``fer2013.csv`` (``emotion``, ``pixels``, ``Usage``)."""
    folder = _fer2013_pictures(root)
    for _, row in _csv_rows(storage.join(folder, "manifest.csv"), ("path", "label", "split")):
        if split in (None, row["split"]):
            yield LabeledRow(resolve(folder, row["path"]), row["label"])


def read_ferplus(root: str, split: str | None) -> Iterator[LabeledRow]:
    """``fer2013new.csv`` beside ``fer2013.csv``: ten votes a picture over eight emotions, unknown, and not a face.

    The most votes win. A tie, and a win of unknown or not-a-face, leave a picture without label.
    """
    uri = _first(root, "fer2013new.csv")
    pictures = _fer2013_pictures(root)
    for line, row in _csv_rows(uri, ("Usage", "Image name", *_FERPLUS_VOTES)):
        usage = _usage(uri, line, row["Usage"])
        if not row["Image name"] or split not in (None, usage):
            continue
        votes = [_integer(uri, line, row[column]) for column in _FERPLUS_VOTES]
        most = max(votes)
        yield LabeledRow(
            resolve(pictures, row["Image name"]), FERPLUS[votes.index(most)] if votes.count(most) == 1 else None
        )


def _fer2013_pictures(root: str) -> str:
    """The folder of FER2013's pictures, which are written out of ``fer2013.csv`` once, under the names of FERPlus.

    Its ``manifest.csv``, with the columns ``path``, ``label`` and ``split``, is written last.
    """
    folder = storage.join(root, "fer2013-pictures")
    manifest = storage.join(folder, "manifest.csv")
    if storage.exists(manifest):
        return folder
    uri = _first(root, "fer2013.csv")
    rows = _csv_rows(uri, ("emotion", "pixels", "Usage"))
    log.info("%s: its %d pictures are written to %s, once", uri, len(rows), folder)

    def write(number: int) -> str:
        line, row = rows[number]
        name = f"fer{number:07d}.png"
        label, split = FER2013[_code(uri, line, row["emotion"], FER2013)], _usage(uri, line, row["Usage"])
        storage.write_bytes(storage.join(folder, name), _fer2013_png(uri, line, row["pixels"]))
        return f"{name},{label},{split}\n"

    with as_user_error(f"{uri}: its pictures cannot be written to {folder}"):
        with ThreadPoolExecutor(_WRITERS) as pool:
            listed = "".join(pool.map(write, range(len(rows))))
        storage.write_bytes(manifest, f"path,label,split\n{listed}".encode())
    return folder


def _fer2013_png(uri: str, line: int, text: str) -> bytes:
    try:
        levels = np.array([int(level) for level in text.split()], np.uint8)
        image = Image.fromarray(levels.reshape(_FER2013_SIDE, _FER2013_SIDE))
    except (ValueError, OverflowError):
        raise UserError(f"{uri}: row {line}: pixels are not {_FER2013_SIDE**2} numbers from 0 to 255") from None
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_expw(root: str, split: str | None) -> Iterator[LabeledRow]:
    """``label.lst`` with lines ``file face_id top left right bottom confidence label``, one for each face.

    A row is the square around the face, cut out of its picture when it is read.
    """
    uri = _first(root, "label.lst", "label/label.lst", "data/label/label.lst")
    images = _first(root, "origin", "image/origin", "data/image/origin", "images")
    for line, fields in _lines(uri, 8):
        top, left, right, bottom = (_integer(uri, line, field) for field in fields[2:6])
        side = max(right - left, bottom - top)
        if side <= 0:
            raise UserError(f"{uri}: row {line}: its face is {right - left} x {bottom - top} pixels")
        face = Face((left + right) / 2, (top + bottom) / 2, side, 0.0).rounded()
        name = EXPW[_code(uri, line, fields[7], EXPW)]
        yield LabeledRow(face.uri_in(resolve(images, fields[0])), name, group=PurePosixPath(fields[0]).stem)


def read_affwild2(root: str, split: str | None) -> Iterator[LabeledRow]:
    """The EXPR annotations: a text file for each person of a video, whose first line is the class names.

    Line i >= 1 is the label of frame i, whose crop, where the detector found a face, is ``<stem>/<i:05d>.jpg``. Frames
    are matched by that name, never by position; frames without crop are dropped. The video is the file's stem, and the
    group the recording, without ``_left`` or ``_right``: both persons of one belong on one side of a split.
    """
    crops = _first(root, "cropped_aligned", "cropped_aligned_images", "crops")
    for part, name in (("train", "Train_Set"), ("val", "Validation_Set")):
        if split not in (None, part):
            continue
        challenge = f"EXPR_Classification_Challenge/{name}"
        annotations = _first(root, name, f"annotations/{name}", challenge, f"annotations/{challenge}")
        for file in storage.list_dir(annotations):
            if not file.endswith(".txt"):
                continue
            video = file.removesuffix(".txt")
            group = video.removesuffix("_left").removesuffix("_right")
            found = {PurePosixPath(crop).stem: crop for crop in storage.list_dir(f"{crops}/{video}")}
            for frame, label in _affwild2_labels(storage.join(annotations, file)):
                if crop := found.get(f"{frame:05d}"):
                    yield LabeledRow(f"{crops}/{video}/{crop}", label, video, frame, group)


def _affwild2_labels(uri: str) -> Iterator[tuple[int, str | None]]:
    """(frame from 1, class name or None) per line; the codes are those of the file's own header."""
    header, *lines = _text(uri).splitlines() or [""]
    codes: Mapping[int, str | None] = dict(enumerate(canonical(name) for name in header.split(",")))
    for frame, line in enumerate(lines, start=1):
        if line.strip():
            code = _integer(uri, frame + 1, line)
            yield frame, None if code == -1 else codes[_code(uri, frame + 1, line, codes)]


def _first(root: str, *paths: str) -> str:
    """The first of ``paths`` below ``root`` that is there."""
    found = next((place for place in (storage.join(root, path) for path in paths) if storage.exists(place)), None)
    if found is None:
        raise UserError(f"{root}: there is no {' or '.join(paths)} in it")
    return found


def _text(uri: str) -> str:
    with prefixed(f"{uri}: "):
        return decoded(storage.read_bytes(uri))


def _csv_rows(uri: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, stripped cells by column) of a CSV that has the columns."""
    reader = csv.DictReader(io.StringIO(_text(uri), newline=""))
    there = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = there
    missing = next((name for name in columns if name not in there), None)
    if missing is not None:
        raise UserError(f"{uri}: no column `{missing}` (has: {', '.join(there)})")
    return [(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]


def _lines(uri: str, fields: int) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of a space-separated list; spaces in the first field, a file name, are kept."""
    for number, text in enumerate(_text(uri).splitlines(), start=1):
        if not text.strip():
            continue
        parts = text.strip().rsplit(maxsplit=fields - 1)
        if len(parts) != fields:
            raise UserError(f"{uri}: row {number}: {len(parts)} fields instead of {fields}")
        yield number, parts


def _integer(uri: str, line: int, text: str) -> int:
    if (number := parse_int(text.strip())) is None:
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
