"""The model artifact: a folder in timm's own hub layout, so that any timm user can open it without ray-fer.

``model.safetensors`` and ``config.json`` are what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads.
``metrics.json`` and ``provenance.json`` say how good it is and where it comes from. ``config.json`` is copied last: a
folder that has one is whole. Nothing in it is a pickle.

Importing torch and timm takes seconds, so only saving and loading do it: a driver opens an artifact and leaves loading
it to its workers.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from ray_fer import storage
from ray_fer.documents import Schema, check_document, parse_document
from ray_fer.errors import UserError, one_line
from ray_fer.models.face_detector import DETECTOR
from ray_fer.models.folder_facts import NO_PROCESSOR, folder_facts, read_json
from ray_fer.models.outputs import Outputs
from ray_fer.models.sidecar import IN_FOLDER, TimmSidecar, check_sidecar
from ray_fer.models.weights import check_safetensors

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
_FACES = "-faces-"


class Metrics(TypedDict, total=False):
    """What is read of ``metrics.json``, as far as it is there: another's artifact may say anything else."""

    val: dict[str, Any]
    history: list[Any]
    resumed: list[int]
    labelled_counts: list[float]


@dataclass(frozen=True)
class Artifact:
    """A model on disk, opened but not loaded.

    Attributes:
        uri: where it was opened.
        folder: a local copy.
        id: content hash (16 hex digits) of weights and configuration: what the model computes, not where it lies.
        config: ``config.json``.
    """

    uri: str
    folder: Path
    id: str
    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The backbone as ``backbone=`` takes it: timm's name, after ``MODULE:`` for a net that a module registers."""
        module = self.config.get("module")
        return f"{module}:{self.config['architecture']}" if module else str(self.config["architecture"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.config["label_names"])

    @property
    def image_size(self) -> int:
        """Side in pixels of the square crops that the model sees."""
        return int(self.config["pretrained_cfg"]["input_size"][-1])

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean of the normalisation, for pixels in [0, 1]."""
        return tuple(self.config["pretrained_cfg"]["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation of the normalisation, for pixels in [0, 1]."""
        return tuple(self.config["pretrained_cfg"]["std"])

    @property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``, empty where there is none."""
        path = self.folder / METRICS
        return dict(parse_document(path.read_bytes(), self._metrics_uri, Metrics)) if path.exists() else {}

    def trained_metrics(self, schema: type[Schema]) -> Schema:
        """``metrics.json`` with what a model that a job of ours trained says there.

        Raises:
            UserError: naming the first key of ``schema`` that is missing or no such value.
        """
        return check_document(self.metrics, self._metrics_uri, schema)

    @property
    def _metrics_uri(self) -> str:
        return storage.join(self.uri, METRICS)

    @property
    def temperature(self) -> float:
        """What the logits are divided by before the softmax; 1 for artifacts that were never calibrated."""
        return float(self.config.get("temperature", 1.0))

    @property
    def net_size(self) -> int:
        """Side in pixels of what enters the net: the whole crop."""
        return self.image_size

    @property
    def outputs(self) -> Outputs:
        """From the net's logits to calibrated ones."""
        return Outputs(tuple(range(len(self.classes))), temperature=self.temperature)

    def model_id(self, precision: str, flip: bool = False, faces: bool = False) -> str:
        """See `model_id`."""
        return model_id(self.id, precision, flip, faces)


def model_id(content: str, precision: str, flip: bool, faces: bool) -> str:
    """The id that predictions carry: content (weights, preprocessing, class order), number format, flip, detector.

    Two models, or one model in two number formats or behind two face detectors, never share it.

    Args:
        content: hash of what the model computes.
        precision: number format.
        flip: test-time flip.
        faces: whether it saw crops that the face detector had found, rather than whole pictures.
    """
    return f"{content}-{precision}" + ("-flip" if flip else "") + (f"{_FACES}{DETECTOR}" if faces else "")


def sees_faces(model: str) -> bool:
    """Whether the predictions of the model with this id are of faces in pictures: any number of rows for a picture."""
    return _FACES in model


def made_with(model: str) -> dict[str, Any]:
    """What the predictions of the model with this id were made with, as `pseudo_label` is asked for it."""
    _, precision, *others = model.partition(_FACES)[0].split("-")
    return {"precision": precision, "flip": "flip" in others, "faces": "detect" if sees_faces(model) else "none"}


def resolve_precision(precision: str, on_gpu: bool) -> str:
    """``auto`` is float32 on a CPU and bfloat16 on a GPU, unless this machine has one that would only emulate it.

    A driver without a GPU cannot ask those of its cluster: they are taken to have the format.
    """
    if precision != "auto":
        return precision
    if not on_gpu:
        return "float32"
    import torch

    # Emulated, as before Ampere, bfloat16 is slower than float32 and no more exact.
    lacking = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float32" if lacking else "bfloat16"


def save_artifact(
    uri: str,
    model: torch.nn.Module,
    *,
    classes: tuple[str, ...],
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    metrics: dict[str, Any],
    provenance: dict[str, Any],
    temperature: float = 1.0,
    extra: dict[str, bytes] | None = None,
) -> Artifact:
    """Writes ``model`` (a timm model with its head) to ``uri``.

    Args:
        uri: the folder, local or ``s3://``.
        model: what ``timm.create_model`` made.
        classes: names in the order of the logits.
        image_size: side of the square input in pixels.
        mean: normalisation mean per channel, pixels in [0, 1].
        std: normalisation standard deviation per channel.
        metrics: what becomes ``metrics.json``.
        provenance: what becomes ``provenance.json``.
        temperature: calibrated on held-out pictures; see `Artifact.temperature`.
        extra: further files by name.
    """
    from safetensors.torch import save_file

    from ray_fer.compat.timm import save_config
    from ray_fer.models.nets import module_of

    preprocessing = {
        "input_size": (len(mean), image_size, image_size),
        "mean": mean,
        "std": std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
        facts: dict[str, Any] = {"label_names": list(classes), "temperature": temperature}
        if module := module_of(model):
            facts["module"] = module
        save_config(model, str(folder / CONFIG), facts, preprocessing)
        (folder / METRICS).write_text(storage.to_json(metrics, indent=2))
        (folder / PROVENANCE).write_text(storage.to_json(provenance, indent=2))
        for file_name, data in (extra or {}).items():
            (folder / file_name).write_bytes(data)
        storage.upload_folder(folder, uri, last=CONFIG)
    return open_artifact(uri)


def open_artifact(uri: str) -> Artifact:
    """Opens the artifact at ``uri`` (downloaded once per node if remote) without loading its weights.

    Raises:
        UserError: when ``uri`` holds no artifact, naming what is missing or broken.
    """
    uri = storage.normalise(uri)
    for name in (CONFIG, WEIGHTS):
        if not storage.exists(storage.join(uri, name)):
            raise UserError(f"{uri}: no model artifact there ({name} is missing)")
    folder = storage.local_copy(uri)
    config = _checked_config(f"{uri}/{CONFIG}", folder / CONFIG)
    check_safetensors(f"{uri}/{WEIGHTS}", folder / WEIGHTS)
    return Artifact(uri, folder, _content_hash(folder / WEIGHTS, config), config)


def _checked_config(uri: str, path: Path) -> dict[str, Any]:
    document = read_json(path, uri)
    for key in ("architecture", "label_names", "pretrained_cfg"):
        if not document.values.get(key):
            raise UserError(f"{uri}: no {key!r}, so its classes or preprocessing are unknown")
    # Of our own there may be a single class, and classes of any name.
    facts = folder_facts(document, NO_PROCESSOR, said={"classes"})
    sidecar = check_sidecar(uri, TimmSidecar, {"classes": ["neutral", "other"]}, facts)
    if sidecar.channels != 3:
        raise UserError(f"{uri}: a net that sees grey can only be a teacher, with a {IN_FOLDER} beside it")
    # As timm writes it; what others write by hand is only understood of a teacher.
    for key in ("label_names", "pretrained_cfg.input_size", "pretrained_cfg.mean", "pretrained_cfg.std"):
        value: Any = document.values
        for part in key.split("."):
            value = value[part]
        names = key == "label_names"
        if not isinstance(value, list) or not (
            all(isinstance(name, str) for name in value) if names else len(value) == 3
        ):
            raise UserError(f"{uri}: {key}: {value!r}: not a list of {'names' if names else 'three numbers'}")
    return document.values


def load_model(artifact: Artifact) -> torch.nn.Module:
    """The timm model with its weights, on the CPU, in evaluation mode.

    Raises:
        UserError: when the weights are not those of the model that ``config.json`` names.
    """
    import timm

    from ray_fer.models.nets import timm_name

    timm_name(artifact.architecture)
    try:
        model: torch.nn.Module = timm.create_model(f"local-dir:{artifact.folder}", pretrained=True)
    except Exception as error:  # as many as timm has modules
        what = f"its weights do not fit the {artifact.architecture} of its {CONFIG}: {one_line(error)}"
        raise UserError(f"{artifact.uri}: {what}") from None
    return model.eval()


def _content_hash(weights: Path, config: dict[str, Any]) -> str:
    # Only what decides the output: a renamed license field in config.json makes no new model.
    decisive = {key: config.get(key) for key in ("architecture", "model_args", "label_names", "global_pool")}
    decisive["preprocessing"] = {
        key: config["pretrained_cfg"].get(key) for key in ("input_size", "mean", "std", "interpolation", "crop_mode")
    }
    # The probabilities are another's with another temperature. Without one it is 1: older artifacts keep their id.
    if config.get("temperature", 1.0) != 1.0:
        decisive["temperature"] = config["temperature"]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    update_from_file(digest, weights)
    return digest.hexdigest()[:16]


def update_from_file(digest: hashlib._Hash, path: Path) -> None:
    """Adds the contents of a file to ``digest``."""
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
