"""What lies where a teacher is: its files, brought to this node, and what a model folder says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError as NotAMessage
from safetensors import SafetensorError, safe_open

from ray_fer import storage
from ray_fer.errors import UserError, one_line

PROCESSOR = "preprocessor_config.json"


def folder_facts(config: dict[str, Any], processor: dict[str, Any]) -> dict[str, Any]:
    """What a folder says of itself, in a sidecar's terms: timm's configuration, else the image processor's."""
    names = config.get("label_names")
    if not names and "id2label" in config:
        names = [config["id2label"][index] for index in sorted(config["id2label"], key=int)]
    # timm's older folders have the keys at the top.
    timm = config.get("pretrained_cfg") or processor.get("pretrained_cfg") or config
    size = (timm.get("input_size") or [None])[-1] or _side(processor)
    facts = {
        "architecture": config.get("architecture"),
        "classes": list(names) if names else None,
        "image_size": size,
        "mean": timm.get("mean") or processor.get("image_mean"),
        "std": timm.get("std") or processor.get("image_std"),
        "crop": timm.get("crop_pct"),
        "temperature": config.get("temperature"),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _side(processor: dict[str, Any]) -> int | None:
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    if isinstance(size, dict):
        return size.get("height") or size.get("shortest_edge")
    return size


def local_files(uri: str) -> list[Path]:
    """The file at ``uri`` and, of an ONNX file that keeps its weights outside, those, beside one another."""
    parent, _, name = uri.rpartition("/")
    path = storage.local_copy(parent, only=[name]) / name
    outside = _weights_outside(path, uri) if name.lower().endswith(".onnx") else []
    try:
        folder = storage.local_copy(parent, only=[name, *outside]) if outside else path.parent
    except FileNotFoundError as error:
        raise UserError(f"{uri}: its weights are in another file, which is missing ({error})") from None
    files = [folder / part for part in (name, *outside)]
    if absent := [part for part in files if not part.exists()]:
        raise UserError(f"{uri}: its weights are in {absent[0].name}, which is missing")
    return files


def _weights_outside(path: Path, uri: str) -> list[str]:
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except NotAMessage as error:
        raise UserError(f"{uri}: cannot be read as ONNX ({one_line(error)})") from None
    places = {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if strange := [place for place in places if "/" in place or place.startswith(".")]:
        raise UserError(f"{uri}: its weights are in {strange[0]!r}, not beside it")
    return sorted(places)


def check_readable(uri: str, path: Path) -> None:
    """Raises `UserError` when a .safetensors file is none."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None


def read_json(path: Path, uri: str) -> dict[str, Any]:
    """The JSON object in ``path``; a `UserError` names ``uri`` when it is none."""
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{uri}: not JSON ({error})") from None
    return dict(document)
