"""Names of files that are not meant as pictures: companions, thumbnails, rubbish, and the files of programs.

macOS puts ``._a.jpg`` beside every ``a.jpg`` that it copies or packs, Jupyter keeps ``.ipynb_checkpoints/``, file
managers ``.thumbnails/`` and ``@eaDir/``, and Spark and Delta Lake ``_temporary/`` and ``_delta_log/``. What lies there
is often called like a picture, and is none, or a copy of one.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_fer.data.decode import IMAGE_EXTENSIONS

_EXTENSIONS = "|".join(extension[1:] for extension in sorted(IMAGE_EXTENSIONS))
IMAGE_NAME = rf"(?i)\.({_EXTENSIONS})$"
"""The pattern of what a listing takes for an image by its name, for columns of URIs."""
# "." and ".." are no names, and "a/.jpg" is what a program writes whose picture has an empty name.
_DOTTED = rf"\.(?!\.?(?:/|\Z))(?!\.*(?:{_EXTENSIONS})\Z)"
_FOLDERS = (
    "__MACOSX",
    "_change_data",
    "_delta_index",
    "_delta_log",
    "_spark_metadata",
    "_temporary",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
)
_PICTURE = re.compile(rf"(?:^|/)(?:(?i:{_DOTTED})|(?:{'|'.join(map(re.escape, _FOLDERS))})/)")
_SUSPECT = r"(^|/)[._@#$]"  # no other name can be hidden
_TABLE = re.compile(r"(?:^|/)(?:\.(?!\.?(?:/|\Z))|_[^/=]*(?:/|\Z))")


def is_hidden(path: str, *, table: bool = False) -> bool:
    """Whether a name in ``path`` hides the file, so that it counts only where somebody names it.

    Of pictures, names that begin with a dot are hidden, and the folders of some programs. An underscore hides nothing,
    because cameras write ``_DSC1234.JPG``. Of tables and lists all names that begin with a dot or an underscore are
    hidden, as for Spark, Hive and Arrow, except partitions, like ``_year=2024``.

    Args:
        path: of the file below the root of its source, shard or data set; the root's own path does not count.
        table: whether the file would be a table's or a list, rather than a picture or a shard of pictures.
    """
    return (_TABLE if table else _PICTURE).search(path) is not None


def are_hidden(paths: pa.Array | pa.ChunkedArray) -> pa.Array:
    """`is_hidden` of the paths of pictures, bool (N,)."""
    hidden = pc.match_substring_regex(paths, _SUSPECT).to_numpy(zero_copy_only=False).copy()
    suspects = np.flatnonzero(hidden)
    hidden[suspects] = [is_hidden(path) for path in paths.take(pa.array(suspects)).to_pylist()]
    return pa.array(hidden)
