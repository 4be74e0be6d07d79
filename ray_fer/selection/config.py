"""How predictions become pseudo-labels: the keys under ``selection``, which every job that selects shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ray_fer.config import Count, JobConfig, Uri, one_of
from ray_fer.selection import RULES

Rule = Annotated[str, one_of(RULES)]


class SelectionConfig(JobConfig):
    """How predictions become pseudo-labels; shared by the jobs that select."""

    rule: Rule
    threshold: Annotated[float, Field(gt=0, le=1)]
    per_class: Count | None
    max_copies: Annotated[float, Field(ge=1)]
    targets: Literal["soft", "hard"]
    ensemble: Literal["mean", "agreement"]
    exclude: Annotated[list[Uri], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    exclude_unreadable: Literal["error", "skip"]
