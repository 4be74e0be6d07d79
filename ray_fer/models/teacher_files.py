"""Local copies of a teacher's file and of the files beside it in which an ONNX net may keep its weights."""

from __future__ import annotations

import posixpath
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError as NotAMessage
from onnx.external_data_helper import _get_all_tensors, uses_external_data

from ray_fer import storage
from ray_fer.errors import UserError, one_line


def local_files(uri: str) -> list[Path]:
    """Local copies of the file at ``uri`` and of the external weights of an ONNX file, in one folder.

    Raises:
        UserError: If an ONNX file cannot be read, or its weights are missing or outside its folder.
    """
    parent, _, name = uri.rpartition("/")
    path = storage.local_copy(parent, only=[name]) / name
    outside = _weights_outside(path, uri) if name.lower().endswith(".onnx") else []
    if absent := [part for part in outside if not storage.exists(f"{parent}/{part}")]:
        raise UserError(f"{uri}: its weights are in {absent[0]}, which is missing")
    folder = storage.local_copy(parent, only=[name, *outside]) if outside else path.parent
    return [folder / part for part in (name, *outside)]


def _weights_outside(path: Path, uri: str) -> list[str]:
    """The files with external weights of the ONNX file ``path``, relative to its folder, in which all have to be."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (NotAMessage, OSError, ValueError) as error:
        raise UserError(f"{uri}: cannot be read as ONNX ({one_line(error)})") from None
    places = {
        posixpath.normpath(entry.value)
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if strange := [place for place in sorted(places) if place.startswith(("/", "..")) or place == "." or "\\" in place]:
        raise UserError(f"{uri}: its weights are in {strange[0]!r}, which is not within its folder")
    return sorted(places)
