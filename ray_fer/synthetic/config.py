"""What drawing a data set can be told; defaults and explanations are in ``conf/draw_faces.yaml``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ray_fer.config import Count, Fraction, JobConfig, Seed, Uri


class DrawFacesConfig(JobConfig):
    """``jobs/draw_faces.py``"""

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
