"""Teachers by URI: an artifact of the package, a timm folder or checkpoint, or an ONNX file.

A teacher is opened without loading it and without torch or timm, whose import takes seconds. A driver opens it and
checks it against its sidecar; `ray_fer.models.engines.make_engine` loads it on a worker. Two teachers share nothing, so
a worker may hold several, of different sizes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.models.artifact import CONFIG, PROVENANCE, Artifact, open_artifact, update_from_file
from ray_fer.models.folder_facts import NO_PROCESSOR, PROCESSOR, folder_facts, model_arguments, read_json
from ray_fer.models.model_id import model_id
from ray_fer.models.onnx_net import check_graph, constants, onnx_engine, read_onnx
from ray_fer.models.outputs import Outputs
from ray_fer.models.probe import check_outputs
from ray_fer.models.sidecar import (
    IN_FOLDER,
    OnnxSidecar,
    Sidecar,
    TimmSidecar,
    check_sidecar,
    crop_side,
    map_classes,
    read_sidecar,
)
from ray_fer.models.teacher_files import local_files
from ray_fer.models.weights import check_finite, check_safetensors

CHECKPOINTS = (".safetensors", ".pth", ".pt")
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Foreign:
    """A model that was trained elsewhere; a sidecar describes everything but the net.

    Attributes:
        uri: The URI that was opened.
        path: The local file of the weights.
        id: Hash (16 hex digits) of weights and sidecar, which decide what the model computes.
        classes: The K classes in the order of an engine's logits.
        outputs: The map from the model's M outputs to logits over the K classes.
        sidecar: The description of the model.
        sidecar_uri: The URI of the sidecar, whether or not the file exists.
    """

    uri: str
    path: Path
    id: str
    classes: tuple[str, ...]
    outputs: Outputs
    sidecar: Sidecar
    sidecar_uri: str

    @property
    def image_size(self) -> int:
        """Side in pixels of the crops that an engine takes."""
        return crop_side(self.sidecar)

    @property
    def net_size(self) -> int:
        """Side in pixels of the centre of the crops, which enters the net."""
        return self.sidecar.image_size

    def model_id(self, precision: str, flip: bool = False, faces: bool = False) -> str:
        """The id that predictions carry; see `ray_fer.models.model_id.model_id`."""
        return model_id(self.id, precision, flip, faces)


@dataclass(frozen=True)
class TimmTeacher(Foreign):
    """A timm checkpoint.

    Attributes:
        sidecar: The sidecar of the file or folder, completed by the folder's ``config.json``.
        model_args: Further arguments of ``timm.create_model``.
    """

    sidecar: TimmSidecar
    model_args: dict[str, Any]

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean of the normalisation, for pixels in [0, 1]."""
        return self.sidecar.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation of the normalisation, for pixels in [0, 1]."""
        return self.sidecar.std


@dataclass(frozen=True)
class OnnxTeacher(Foreign):
    """An ONNX file, which runs on the CPU through OpenVINO in float32."""

    sidecar: OnnxSidecar


Teacher = Artifact | TimmTeacher | OnnxTeacher
"""A model that can label, opened but not loaded.

Each kind has `uri`, `id`, `classes` (K names in the order of an engine's logits), `image_size` (side in pixels of the
crops that an engine takes), `net_size` (side of their centre, which enters the net), `outputs` (from the net's outputs
to logits over the classes) and `model_id`.
"""


def open_teacher(uri: str) -> Teacher:
    """Opens the model at ``uri``, local or ``s3://`` (downloaded once per node).

    A model is one of

    - a folder with ``config.json`` and weights: an artifact of the package, or another timm model, whose
      ``teacher.yaml`` completes and overrides ``config.json``;
    - ``NAME.safetensors``, ``NAME.pth`` or ``NAME.pt``: a state dict of a timm model, with ``NAME.yaml`` beside it;
    - ``NAME.onnx``, with ``NAME.yaml`` beside it.

    Raises:
        UserError: If there is no model, or a fact about it is missing, wrong or contradicted by its graph; the message
            names file and key.
    """
    uri = storage.normalise(uri)
    suffix = Path(uri).suffix.lower()
    if suffix not in (".onnx", *CHECKPOINTS) or storage.is_dir(uri):
        return _open_folder(uri)
    if not storage.exists(uri):
        raise UserError(f"{uri}: no such file")
    sidecar_uri = f"{uri[: -len(suffix)]}.yaml"
    said = read_sidecar(sidecar_uri)
    if not said:
        raise UserError(f"{sidecar_uri}: no such file, or empty; it has to describe {uri} (classes, image_size, …)")
    if suffix == ".onnx":
        return _open_onnx(uri, sidecar_uri, check_sidecar(sidecar_uri, OnnxSidecar, said))
    path = local_files(uri)[0]
    if suffix == ".safetensors":
        check_safetensors(uri, path)
    return _foreign(TimmTeacher, uri, [path], check_sidecar(sidecar_uri, TimmSidecar, said), sidecar_uri, model_args={})


def check_teacher(teacher: Teacher, engine: str = "auto", device: str = "auto", precision: str = "auto") -> None:
    """Checks that ``teacher`` can run on a worker, without torch; an ONNX net is run once.

    Args:
        teacher: The model.
        engine: ``auto``, ``openvino`` or ``torch``.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``float32`` or ``bfloat16``.

    Raises:
        UserError: If it cannot run; the message names the key or the file.
    """
    check_place(teacher, engine, device, precision)
    if isinstance(teacher, OnnxTeacher):
        where = (teacher.uri, teacher.sidecar_uri)
        check_outputs(onnx_engine(teacher.path, teacher.sidecar, *where, batch_size=2), teacher.sidecar, *where)


def check_together(teachers: Sequence[Teacher]) -> None:
    """Raises `UserError` if the classes of ``teachers`` differ, or two of them are the same model."""
    first = teachers[0]
    seen: dict[str, str] = {}
    for teacher in teachers:
        if teacher.classes != first.classes:
            theirs, ours = ", ".join(teacher.classes), ", ".join(first.classes)
            raise UserError(f"teacher={teacher.uri}: its classes are {theirs}; those of teacher={first.uri} are {ours}")
        if teacher.id in seen:
            raise UserError(f"teacher={teacher.uri}: the same model as teacher={seen[teacher.id]}")
        seen[teacher.id] = teacher.uri


def check_place(teacher: Teacher, engine: str, device: str, precision: str) -> None:
    """Raises `UserError` if ``teacher`` cannot run with this engine, on this device or in this number format."""
    if not isinstance(teacher, OnnxTeacher):
        return
    if engine == "torch":
        raise UserError(f"engine=torch: {teacher.uri} is an ONNX net, which runs through OpenVINO")
    if device == "cuda" or precision == "bfloat16":
        key = f"device={device}" if device == "cuda" else f"precision={precision}"
        raise UserError(f"{key}: {teacher.uri} is an ONNX net, which runs on the CPU in float32")


def _open_folder(uri: str) -> Teacher:
    names = storage.list_dir(uri)
    if CONFIG not in names or (PROVENANCE in names and IN_FOLDER not in names):
        return open_artifact(uri)
    weights = [name for name in _IN_FOLDER if name in names]
    if not weights:
        raise UserError(f"{uri}: no weights there (looked for {', '.join(_IN_FOLDER)})")
    folder = storage.local_copy(uri, only=[name for name in (CONFIG, PROCESSOR, weights[0]) if name in names])
    config = read_json(folder / CONFIG, storage.join(uri, CONFIG))
    processor = read_json(folder / PROCESSOR, storage.join(uri, PROCESSOR)) if PROCESSOR in names else NO_PROCESSOR
    sidecar_uri = storage.join(uri, IN_FOLDER)
    said = read_sidecar(sidecar_uri)
    if config.get("architecture") is None and "architecture" not in said:
        family = config.values.get("model_type") or "model of an unknown kind"
        raise UserError(
            f"{uri}/{CONFIG}: a {family} without a timm architecture; supported are timm's models in this layout, "
            "others as ONNX (optimum-cli export onnx) with a sidecar YAML"
        )
    sidecar = check_sidecar(sidecar_uri, TimmSidecar, said, folder_facts(config, processor, said))
    if weights[0].endswith(".safetensors"):
        check_safetensors(storage.join(uri, weights[0]), folder / weights[0])
    held = config.get("num_classes")
    if held is not None and held.value != len(sidecar.classes):
        shown = f"num_classes {held.value!r} of {CONFIG}"
        raise UserError(f"{sidecar_uri}: classes: {len(sidecar.classes)} names for {shown}")
    return _foreign(TimmTeacher, uri, [folder / weights[0]], sidecar, sidecar_uri, model_args=model_arguments(config))


def _open_onnx(uri: str, sidecar_uri: str, sidecar: OnnxSidecar) -> OnnxTeacher:
    paths = local_files(uri)
    teacher = _foreign(OnnxTeacher, uri, paths, sidecar, sidecar_uri)
    graph = read_onnx(paths[0], uri)
    check_graph(graph, sidecar, uri, sidecar_uri)
    check_finite(uri, constants(graph))
    return teacher


AnyForeign = TypeVar("AnyForeign", bound=Foreign)


def _foreign(
    kind: type[AnyForeign], uri: str, paths: list[Path], sidecar: Sidecar, sidecar_uri: str, **further: Any
) -> AnyForeign:
    classes, columns = map_classes(sidecar_uri, sidecar)
    # Sidecars from before nets could be grey have no colour, and their teachers keep their id.
    older = isinstance(sidecar, TimmSidecar) and sidecar.channels == 3
    said = sidecar.model_dump(exclude={"embedding", "colour"} if older else {"embedding"})
    digest = hashlib.sha256(json.dumps([said, further], sort_keys=True).encode())
    for path in paths:
        update_from_file(digest, path)
    probabilities = isinstance(sidecar, OnnxSidecar) and sidecar.output == "probabilities"
    outputs = Outputs(columns, probabilities, sidecar.temperature)
    return kind(uri, paths[0], digest.hexdigest()[:16], classes, outputs, sidecar, sidecar_uri, **further)
