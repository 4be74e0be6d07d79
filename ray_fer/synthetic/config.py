"""The schema of ``conf/draw_faces.yaml``, which holds the defaults and explains the keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ray_fer.config import Count, Fraction, JobConfig, Seed, Uri


class DrawFacesConfig(JobConfig):
    """The config of ``jobs/draw_faces.py``."""

    out: Uri
    seed: Seed
    image_size: Annotated[int, Field(ge=32, le=512)]
    difficulty: Fraction
    labeled: Count
    val: Count
    test: Count
    unlabeled: list[Count]
    clips: Annotated[int, Field(ge=0)]
    clip_frames: Count
