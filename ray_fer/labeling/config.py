"""The configs of the jobs around the predictions table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ray_fer.config import ACTORS, Count, Device, Fraction, JobConfig, LargeCount, Minutes, Seconds, Uri, Uris
from ray_fer.data.source_config import Sources
from ray_fer.selection.config import SelectionConfig

# One bit of 32 for each teacher tells whether it lacks an image.
Teachers = Annotated[Uris, Field(max_length=32)]
Faces = Literal["none", "detect"]


class PseudoLabelConfig(JobConfig):
    """The config of ``jobs/pseudo_label.py``."""

    written = ("table", "select")
    aliases = ACTORS

    source: Sources
    teacher: Teachers
    table: Uri
    unit_rows: Count
    batch_size: Count
    device: Device
    workers: Count | None
    wait_minutes: Minutes
    engine: Literal["auto", "torch", "openvino"]
    precision: Literal["auto", "float32", "bfloat16"]
    flip: bool
    embed: bool
    faces: Faces
    commit_seconds: Seconds
    max_pixels: LargeCount
    max_bytes: LargeCount
    max_attempts: Count
    max_failure_share: Fraction
    max_failures: Annotated[int, Field(ge=0)] | None
    watch: Annotated[Seconds, Field(gt=0)] | None
    dry_run: bool
    select: Uri | None
    feedback: Uri | None
    selection: SelectionConfig

    @property
    def detects_faces(self) -> bool:
        """Whether faces are detected in the pictures, which are crops otherwise."""
        return self.faces == "detect"


class SelectPseudoLabelsConfig(JobConfig):
    """The config of ``jobs/select_pseudo_labels.py``."""

    table: Uri
    teacher: Uris
    out: Uri
    feedback: Uri | None
    precision: Literal["auto", "float32", "bfloat16"]
    flip: bool | None
    faces: Faces | None
    selection: SelectionConfig


class VacuumConfig(JobConfig):
    """The config of ``jobs/vacuum.py``."""

    written = ("table",)

    table: Uri
    forget: Uris | None
    retain_hours: Annotated[int, Field(ge=0, le=100 * 366 * 24)]
    dry_run: bool
