"""The model artifact: a folder in timm's own hub layout, so that any timm user can open it without ray-fer.

``model.safetensors`` and ``config.json`` are what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads.
``metrics.json`` and ``provenance.json`` hold its validation metrics and its origin, and ``README.md`` says both in
words. ``config.json`` is copied last, so a folder that has one is complete. No file is a pickle.

Importing torch and timm takes seconds, so only saving and loading import them. A driver opens an artifact, and its
workers load it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_fer import storage
from ray_fer.documents import Schema, check_document, parse_document
from ray_fer.errors import UserError, one_line
from ray_fer.models.folder_facts import NO_PROCESSOR, folder_facts, read_json
from ray_fer.models.model_id import model_id
from ray_fer.models.outputs import Outputs
from ray_fer.models.records import Metrics
from ray_fer.models.sidecar import IN_FOLDER, TimmSidecar, check_sidecar
from ray_fer.models.weights import check_safetensors

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
_FILES = (WEIGHTS, CONFIG, METRICS, PROVENANCE, "README.md")
_DEPTH_NET = "ray_fer.models.depth_net:depth_net"
# What timm says of the weights that it has for the architecture, which are not those of an artifact.
_OF_OTHER_WEIGHTS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")


@dataclass(frozen=True)
class Artifact:
    """A model on disk, opened but not loaded.

    Attributes:
        uri: The URI that was opened.
        folder: The local copy.
        id: Hash (16 hex digits) of the weights and of the configuration that decides what the model computes.
        config: The contents of ``config.json``.
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
    def takes_depths(self) -> bool:
        """Whether the classifier takes several depths of the backbone; see `ray_fer.models.depth_net`."""
        return self.architecture == _DEPTH_NET

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes in the order of the logits."""
        return tuple(self.config["label_names"])

    @property
    def image_size(self) -> int:
        """Side in pixels of the square crops that the model takes."""
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
        """The contents of ``metrics.json``; empty if there is none."""
        path = self.folder / METRICS
        return dict(parse_document(path.read_bytes(), self._metrics_uri, Metrics)) if path.exists() else {}

    def trained_metrics(self, schema: type[Schema]) -> Schema:
        """``metrics.json`` of a model that one of the package's jobs trained.

        Raises:
            UserError: If a key of ``schema`` is missing or has a wrong value; the message names the first.
        """
        return check_document(self.metrics, self._metrics_uri, schema)

    @property
    def _metrics_uri(self) -> str:
        return storage.join(self.uri, METRICS)

    @property
    def temperature(self) -> float:
        """The number that divides the logits before the softmax; 1 for artifacts that were never calibrated."""
        return float(self.config.get("temperature", 1.0))

    @property
    def net_size(self) -> int:
        """Side in pixels of the input of the net, which is the whole crop."""
        return self.image_size

    @property
    def outputs(self) -> Outputs:
        """The map from the net's logits to calibrated ones."""
        return Outputs(tuple(range(len(self.classes))), temperature=self.temperature)

    def model_id(self, precision: str, flip: bool = False, faces: bool = False) -> str:
        """The id that predictions carry; see `ray_fer.models.model_id.model_id`."""
        return model_id(self.id, precision, flip, faces)


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
) -> Artifact | None:
    """Writes ``model`` (a timm model with its head, or without one where there are no classes), with a model card.

    Args:
        uri: The folder, local or ``s3://``.
        model: A model that ``timm.create_model`` made.
        classes: Names of the K classes in the order of the logits.
        image_size: Side of the square input in pixels.
        mean: Normalisation mean per channel, for pixels in [0, 1].
        std: Normalisation standard deviation per channel.
        metrics: The contents of ``metrics.json``.
        provenance: The contents of ``provenance.json``.
        temperature: The temperature that was calibrated on held-out pictures; see `Artifact.temperature`.
        extra: The contents of further files by name.
    """
    from safetensors.torch import save_file

    from ray_fer.compat.timm import save_config
    from ray_fer.models.model_card import model_card
    from ray_fer.models.nets import module_of
    from ray_fer.models.pretrained import CARD

    preprocessing = {
        "input_size": (len(mean), image_size, image_size),
        "mean": mean,
        "std": std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
        facts: dict[str, Any] = {"label_names": list(classes), "temperature": temperature}
        facts["pretrained_cfg"] = dict.fromkeys(_OF_OTHER_WEIGHTS)
        if module := module_of(model):
            facts["module"] = module
        save_config(model, str(folder / CONFIG), facts, preprocessing)
        (folder / METRICS).write_text(storage.to_json(metrics, indent=2))
        (folder / PROVENANCE).write_text(storage.to_json(provenance, indent=2))
        name = uri.rstrip("/").rpartition("/")[2]
        (folder / CARD).write_text(model_card(name, storage.read_json(str(folder / CONFIG)), metrics, provenance))
        for file_name, data in (extra or {}).items():
            (folder / file_name).write_bytes(data)
        storage.upload_folder(folder, uri, last=CONFIG)
    # Without classes it is a start for ``pretrained=``, which no job can label with.
    return open_artifact(uri) if classes else None


def open_artifact(uri: str) -> Artifact:
    """Opens the artifact at ``uri`` (downloaded once per node if remote) without loading its weights.

    Raises:
        UserError: If ``uri`` holds no artifact; the message names what is missing or broken.
    """
    uri = storage.normalise(uri)
    for name in (CONFIG, WEIGHTS):
        if not storage.exists(storage.join(uri, name)):
            raise UserError(f"{uri}: no model artifact there ({name} is missing)")
    # A folder of a head holds tables too.
    there = storage.list_dir(uri)
    folder = storage.local_copy(uri, only=[name for name in _FILES if name in there])
    config = _checked_config(f"{uri}/{CONFIG}", folder / CONFIG)
    check_safetensors(f"{uri}/{WEIGHTS}", folder / WEIGHTS)
    return Artifact(uri, folder, _content_hash(folder / WEIGHTS, config), config)


def _checked_config(uri: str, path: Path) -> dict[str, Any]:
    document = read_json(path, uri)
    for key in ("architecture", "label_names", "pretrained_cfg"):
        if not document.values.get(key):
            raise UserError(f"{uri}: no {key!r}, so its classes or preprocessing are unknown")
    # The stand-in for the classes skips their check: an artifact may have a single class, and classes of any name.
    facts = folder_facts(document, NO_PROCESSOR, said={"classes"})
    sidecar = check_sidecar(uri, TimmSidecar, {"classes": ["neutral", "other"]}, facts)
    if sidecar.channels != 3:
        raise UserError(f"{uri}: a net that sees grey can only be a teacher, with a {IN_FOLDER} beside it")
    # An artifact has these as timm writes them; other forms are understood only in the folder of a teacher.
    names = document.values["label_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{uri}: label_names: {names!r}: not a list of names")
    for key in ("input_size", "mean", "std"):
        value = document.values["pretrained_cfg"][key]
        if not isinstance(value, list) or len(value) != 3:
            raise UserError(f"{uri}: pretrained_cfg.{key}: {value!r}: not a list of three numbers")
    return document.values


def load_model(artifact: Artifact) -> torch.nn.Module:
    """The timm model with its weights, on the CPU, in evaluation mode.

    Raises:
        UserError: If the weights do not fit the model that ``config.json`` names.
    """
    import timm

    from ray_fer.models.nets import timm_name

    timm_name(artifact.architecture)
    try:
        model: torch.nn.Module = timm.create_model(f"local-dir:{artifact.folder}", pretrained=True)
    except Exception as error:  # every module of timm may raise its own
        what = f"its weights do not fit the {artifact.architecture} of its {CONFIG}: {one_line(error)}"
        raise UserError(f"{artifact.uri}: {what}") from None
    return model.eval()


def _content_hash(weights: Path, config: dict[str, Any]) -> str:
    # Only keys that decide the output count: a renamed license field in config.json makes no new model.
    decisive = {key: config.get(key) for key in ("architecture", "model_args", "label_names", "global_pool")}
    decisive["preprocessing"] = {
        key: config["pretrained_cfg"].get(key) for key in ("input_size", "mean", "std", "interpolation", "crop_mode")
    }
    # Another temperature gives other probabilities. A temperature of 1 is left out, so older artifacts keep their id.
    if config.get("temperature", 1.0) != 1.0:
        decisive["temperature"] = config["temperature"]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    update_from_file(digest, weights)
    return digest.hexdigest()[:16]


def update_from_file(digest: hashlib._Hash, path: Path) -> None:
    """Feeds the contents of a file to ``digest``."""
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
