"""What the jobs that go through several rooms can be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ray_fer.config import Count, Device, JobConfig, Seed, Uri, Uris
from ray_fer.config_values import KeysOf
from ray_fer.data.source_config import Sources
from ray_fer.feedback.config import FeedbackPart
from ray_fer.labeling.config import PseudoLabelConfig
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.selection.config import SelectionConfig


class TrainHeadConfig(JobConfig):
    """``jobs/train_head.py``; ``label`` holds keys of ``pseudo_label``, which it runs."""

    labeled: Uri
    val: Uri
    feedback_val: Uri | None
    out: Uri
    teacher: Uris | None
    pretrained: Uri | None
    table: Uri | None
    source: Sources | None
    also: Annotated[list[Uri], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    classes: list[str] | None
    image_size: Count | None
    rounds: Annotated[int, Field(ge=0)]
    folds: Annotated[int, Field(ge=2)]
    steps: Count
    pseudo_sampling: Literal["natural", "sqrt", "uniform"]
    seed: Seed
    device: Device
    workers: Count | None
    label: Annotated[dict[str, Any], KeysOf(PseudoLabelConfig)]


class SelfTrainConfig(JobConfig):
    """``jobs/self_train.py``: the loop; ``train``, ``student``, ``label``, ``head`` hold keys of the jobs it runs."""

    labeled: Uri
    val: Uri
    feedback_val: Uri | None
    source: Sources
    out: Uri
    loop: Literal["backbone", "head"]
    distil: str | None
    pretrained: Uri | None
    rounds: Annotated[int, Field(ge=0)]
    patience: Count
    seed: Seed
    feedback_parts: list[FeedbackPart]
    device: Device
    workers: Count | None
    train: Annotated[dict[str, Any], KeysOf(TrainBackboneConfig)]
    student: Annotated[dict[str, Any], KeysOf(TrainBackboneConfig)]
    teachers: list[dict[str, Any] | Uri]
    label: Annotated[dict[str, Any], KeysOf(PseudoLabelConfig)]
    selection: Annotated[dict[str, Any], KeysOf(SelectionConfig)]
    head: Annotated[dict[str, Any], KeysOf(TrainHeadConfig)]


class LineageConfig(JobConfig):
    """``jobs/lineage.py``"""

    model: Uri


class EvaluateConfig(JobConfig):
    """``jobs/evaluate.py``"""

    model: Uri
    data: Uri
    out: Uri
    split: str | None
    device: Device
    batch_size: Count


class ExportOnnxConfig(JobConfig):
    """``jobs/export_onnx.py``"""

    writes_file = True

    model: Uri
    out: Uri


class InspectTeacherConfig(JobConfig):
    """``jobs/inspect_teacher.py``"""

    writes_file = True

    teacher: Uri
    image: Uri
    out: Uri
