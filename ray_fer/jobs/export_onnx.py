"""The job that exports an artifact as an ONNX file with its sidecar, which together are a teacher again.

The graph takes normalised float32 (B, 3, S, S), any B, and gives logits; size, normalisation, classes and temperature
are in the sidecar. The TorchScript exporter needs no package but onnx and writes one file. Before the file gets its
name, the artifact's probabilities are compared with those of the file and sidecar, opened as any other ONNX teacher.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from ray_fer import storage
from ray_fer.errors import UserError, prefixed
from ray_fer.expressions import EXPRESSIONS
from ray_fer.jobs.config import ExportOnnxConfig
from ray_fer.models.artifact import Artifact, load_model, open_artifact
from ray_fer.models.engines import make_engine
from ray_fer.models.pretrained import CARD
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import open_teacher
from ray_fer.synthetic.action_units import sample_action_units
from ray_fer.synthetic.face import render_face
from ray_fer.synthetic.identity import draw_identity
from ray_fer.synthetic.nuisance import draw_nuisance
from ray_fer.synthetic.plan import CLASSES

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference of a probability: both sides compute in float32 and differ by the order of their sums."""
_CROPS = 16


def export_onnx(config: ExportOnnxConfig) -> dict[str, Any]:
    """Write ``out`` (``NAME.onnx``), and ``NAME.yaml`` and the model card ``NAME.md`` beside it.

    Returns:
        ``onnx``, ``sidecar``, ``model_id`` of the artifact, ``teacher_id`` of the file, ``max_difference`` of the
        probabilities by kind of crop.

    Raises:
        UserError: When there is no artifact, when ``out`` does not end in ``.onnx``, and when file and artifact
            disagree; then nothing is kept.
    """
    out = storage.normalise_argument("out", config.out)
    if not out.endswith(".onnx"):
        raise UserError(f"out={config.out}: not the name of an .onnx file")
    with prefixed("model="):
        artifact = open_artifact(config.model)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "model.onnx"
        write_onnx(artifact, file)
        sidecar = sidecar_of(artifact)
        file.with_suffix(".yaml").write_text(sidecar)
        teacher_id, differences = compare(artifact, file)
        if not max(differences.values()) <= TOLERANCE:
            raise UserError(f"out={out}: not written, its probabilities differ from the artifact's: {differences}")
        sidecar_uri = f"{out.removesuffix('.onnx')}.yaml"
        storage.write_bytes(sidecar_uri, sidecar.encode())
        if (card := artifact.folder / CARD).exists():  # models of earlier versions have none
            storage.write_bytes(f"{out.removesuffix('.onnx')}.md", card.read_bytes())
        storage.write_bytes(out, file.read_bytes())
    return {
        "onnx": out,
        "sidecar": sidecar_uri,
        "model_id": artifact.id,
        "teacher_id": teacher_id,
        "max_difference": differences,
    }


def write_onnx(artifact: Artifact, file: Path) -> None:
    """Write the net of ``artifact`` as an ONNX file with a dynamic batch axis."""
    example = torch.zeros(2, 3, artifact.image_size, artifact.image_size)
    with warnings.catch_warnings():  # the exporter is called deprecated, and tracing always warns
        warnings.simplefilter("ignore")
        torch.onnx.export(
            load_model(artifact),
            (example,),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )


def sidecar_of(artifact: Artifact) -> str:
    """Return the YAML that makes the exported file a teacher."""
    document = {
        "classes": list(artifact.classes),
        "map": {name: name for name in artifact.classes if name not in EXPRESSIONS},
        "image_size": artifact.image_size,
        "mean": list(artifact.mean),
        "std": list(artifact.std),
        "scale": 1,
        "colour": "rgb",
        "layout": "nchw",
        "output": "logits",
        "temperature": artifact.temperature,
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def compare(artifact: Artifact, file: Path) -> tuple[str, dict[str, float]]:
    """Return the file's id as a teacher, and the largest difference of a probability between both by kind of crop."""
    teacher = open_teacher(str(file))
    order = [teacher.classes.index(name) for name in artifact.classes]
    how: dict[str, Any] = {"batch_size": _CROPS, "device": "cpu", "precision": "float32"}
    ours, theirs = make_engine(artifact, "torch", **how), make_engine(teacher, "auto", **how)
    crops = {
        "random": np.random.default_rng(0).integers(0, 256, (_CROPS, *[artifact.image_size] * 2, 3), np.uint8),
        "faces": drawn_faces(_CROPS, artifact.image_size),
    }
    # NaN stays NaN, which no comparison accepts.
    return teacher.id, {
        kind: float(np.abs(softmax(ours(pixels)) - softmax(theirs(pixels))[:, order]).max())
        for kind, pixels in crops.items()
    }


def drawn_faces(count: int, side: int) -> npt.NDArray[np.uint8]:
    """Draw faces uint8 (count, side, side, 3), which look like crops but are of nobody."""
    rng = np.random.default_rng(0)
    faces = []
    for number in range(count):
        vector = sample_action_units(CLASSES[number % len(CLASSES)], rng, difficulty=0.5)
        faces.append(render_face(draw_identity(rng), vector, draw_nuisance(rng, 0.5), side))
    return np.stack(faces)
