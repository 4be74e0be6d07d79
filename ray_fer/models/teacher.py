"""What a teacher URI is, decided here alone: an artifact of ours, a timm folder or checkpoint, or an ONNX file.

A teacher is opened without loading it and without torch or timm, whose import takes seconds: a driver opens it, checks
it against its sidecar, and leaves the rest to `ray_fer.models.engines.make_engine` on a worker. Nothing is shared
between two of them, so a worker may hold several, of different sizes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ray_fer import storage
from ray_fer.errors import UserError, one_line
from ray_fer.models.artifact import CONFIG, PROVENANCE, model_id, open_artifact, update_from_file
from ray_fer.models.folder_facts import NO_PROCESSOR, PROCESSOR, Section, folder_facts, read_json, wrong
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
from ray_fer.models.weights import check_finite, check_safetensors, state_of

if TYPE_CHECKING:
    import torch

CHECKPOINTS = (".safetensors", ".pth", ".pt")
_NO_MODEL_ARGUMENTS = (
    *("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("scriptable", "exportable", "no_jit", "features_only"),
)
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")


class Teacher(Protocol):
    """A model that can label, opened but not loaded."""

    @property
    def uri(self) -> str:
        """Where it was opened."""
        ...

    @property
    def id(self) -> str:
        """Content hash (16 hex digits) of weights and sidecar: what the model computes, not where it lies."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Ours, in the order of an engine's logits."""
        ...

    @property
    def image_size(self) -> int:
        """Side in pixels of the square crops that an engine takes."""
        ...

    @property
    def net_size(self) -> int:
        """Side in pixels of their centre, which is what enters the net."""
        ...

    @property
    def outputs(self) -> Outputs:
        """From the net's outputs to logits over the classes."""
        ...

    def model_id(self, precision: str, flip: bool = False, faces: bool = False) -> str:
        """The id that predictions carry; see `ray_fer.models.artifact.model_id`."""
        ...


@dataclass(frozen=True)
class Foreign:
    """What timm checkpoints and ONNX files share: everything but the net comes from the sidecar.

    Attributes:
        uri: where it was opened.
        path: the local file of the weights.
        id: content hash.
        classes: ours.
        outputs: from the model's classes to ours.
        sidecar: what is said of it.
        sidecar_uri: where that is, or would be.
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
        """Side in pixels of the crops, of which the net sees the centre."""
        return crop_side(self.sidecar)

    @property
    def net_size(self) -> int:
        """Side in pixels of what enters the net."""
        return self.sidecar.image_size

    def model_id(self, precision: str, flip: bool = False, faces: bool = False) -> str:
        """See `ray_fer.models.artifact.model_id`."""
        return model_id(self.id, precision, flip, faces)


@dataclass(frozen=True)
class TimmTeacher(Foreign):
    """A timm checkpoint.

    Attributes:
        sidecar: of the file or folder, under it what the folder's ``config.json`` says.
        model_args: further arguments of ``timm.create_model``.
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
    """An ONNX file. It runs on the CPU, through OpenVINO, in float32."""

    sidecar: OnnxSidecar


def open_teacher(uri: str) -> Teacher:
    """Opens whatever model is at ``uri``, local or ``s3://`` (downloaded once per node).

    - a folder with ``config.json`` and weights: an artifact of ours, or anybody's timm model; ``teacher.yaml`` in it
      says what ``config.json`` does not, and stands above it;
    - ``NAME.safetensors``, ``NAME.pth``, ``NAME.pt``: a state dict of a timm model, ``NAME.yaml`` beside it;
    - ``NAME.onnx``: ``NAME.yaml`` beside it.

    Raises:
        UserError: naming file and key, when there is no model, or something about it is missing, wrong or contradicted
            by its graph.
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
    """Looks for what would stop ``teacher`` on a worker, as far as that needs no torch: an ONNX net is run once.

    Raises:
        UserError: naming the key or the file.
    """
    check_place(teacher, engine, device, precision)
    if isinstance(teacher, OnnxTeacher):
        where = (teacher.uri, teacher.sidecar_uri)
        check_outputs(onnx_engine(teacher.path, teacher.sidecar, *where, batch_size=2), teacher.sidecar, *where)


def check_together(teachers: Sequence[Teacher]) -> None:
    """Raises `UserError` when ``teachers`` cannot label one table, or two of them are the same model."""
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
    """Raises `UserError` when ``teacher`` cannot run there, so."""
    if not isinstance(teacher, OnnxTeacher):
        return
    if engine == "torch":
        raise UserError(f"engine=torch: {teacher.uri} is an ONNX net, which runs through OpenVINO")
    if device == "cuda" or precision == "bfloat16":
        key = f"device={device}" if device == "cuda" else f"precision={precision}"
        raise UserError(f"{key}: {teacher.uri} is an ONNX net, which runs on the CPU in float32")


def load_timm(teacher: TimmTeacher) -> torch.nn.Module:
    """The timm model with the checkpoint's weights, on the CPU, in evaluation mode.

    Raises:
        UserError: when timm has no such architecture, or the weights are not its.
    """
    import timm
    from timm.models import load_checkpoint

    from ray_fer.models.backbone import check_backbone, check_forward

    said = teacher.sidecar
    try:
        check_backbone(said.architecture)
    except UserError as error:
        raise UserError(f"{teacher.sidecar_uri}: architecture: {error}") from None
    what = f"a {said.architecture} of {len(said.classes)} classes at {said.image_size} px"
    arguments = teacher.model_args | {"num_classes": len(said.classes)}
    if said.channels != 3:
        arguments |= {"in_chans": said.channels}
    try:
        model: torch.nn.Module = timm.create_model(
            said.architecture,
            pretrained_cfg_overlay={"input_size": (said.channels, said.image_size, said.image_size)},
            **arguments,
        )
    except Exception as error:  # as many as timm has modules
        place = f"{teacher.uri}/{CONFIG}: model_args: {teacher.model_args}" if teacher.model_args else teacher.uri
        raise UserError(f"{place}: there is no such {what[2:]}: {one_line(error)}") from None
    try:
        load_checkpoint(model, str(teacher.path), use_ema=True, weights_only=True)
        check_forward(model, len(said.classes), said.image_size, said.channels)
    except Exception as error:
        raise UserError(f"{teacher.uri}: its weights do not fit {what}: {one_line(error)}") from None
    check_finite(teacher.uri, state_of(model))
    return model.eval()


# --- opening ---


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
    return _foreign(TimmTeacher, uri, [folder / weights[0]], sidecar, sidecar_uri, model_args=_model_arguments(config))


def _model_arguments(config: Section) -> dict[str, Any]:
    """Further arguments of ``timm.create_model``, of which a folder may say what a model is but not what is loaded."""
    found = config.section("model_args")
    if found is None:
        return {}
    for key in _NO_MODEL_ARGUMENTS:
        if (fact := found.get(key)) is not None:
            raise wrong(fact, "does not make a model")
    return dict(found.values)


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
    # What was there before nets could be grey keeps its id.
    said = sidecar.model_dump(
        exclude={"colour"} if isinstance(sidecar, TimmSidecar) and sidecar.channels == 3 else None
    )
    digest = hashlib.sha256(json.dumps([said, further], sort_keys=True).encode())
    for path in paths:
        update_from_file(digest, path)
    probabilities = isinstance(sidecar, OnnxSidecar) and sidecar.output == "probabilities"
    outputs = Outputs(columns, probabilities, sidecar.temperature)
    return kind(uri, paths[0], digest.hexdigest()[:16], classes, outputs, sidecar, sidecar_uri, **further)
