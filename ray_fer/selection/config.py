"""How predictions become pseudo-labels: the keys under ``selection``, which every job that selects shares."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ray_fer.config import Count, JobConfig, Uri, one_of
from ray_fer.selection import RULES, Rule
from ray_fer.selection.ranks import Ranked

RuleName = Annotated[str, one_of(RULES)]


class SelectionConfig(JobConfig):
    """How predictions become pseudo-labels; shared by the jobs that select."""

    rule: RuleName
    threshold: Annotated[float, Field(gt=0, le=1)]
    per_class: Count | None
    max_copies: Annotated[float, Field(ge=1)]
    targets: Literal["soft", "hard"]
    ensemble: Literal["mean", "agreement"]
    exclude: Annotated[list[Uri], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    exclude_unreadable: Literal["error", "skip"]


def make_rule(config: SelectionConfig) -> Rule:
    """Returns the rule that ``config`` names, with those of its constants that are keys of ``config``."""
    rule = RULES[config.rule]
    constants = {field.name: getattr(config, field.name) for field in fields(rule) if hasattr(config, field.name)}
    # Of a whole table, so finely that no neighbour of the last one wanted is let in.
    return rule(**constants | ({"bins": 1 << 20} if issubclass(rule, Ranked) else {}))
