"""The schema of ``source``: URIs, and entries that say more than a URI."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ray_fer.config import JobConfig, Uri, one_of
from ray_fer.config_values import read_yaml, typed
from ray_fer.data.formats import FORMATS
from ray_fer.errors import UserError

Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class SourceConfig(JobConfig):
    """One entry of ``source`` that is more than a URI."""

    uri: Uri
    format: Annotated[str, one_of(FORMATS)] = "auto"
    column: str | None = None
    include: Patterns = Field(default_factory=list)
    exclude: Patterns = Field(default_factory=list)


def _read_sources(value: Any) -> Any:
    """``source`` as a list: one entry, or the entries that a YAML file lists."""
    if not isinstance(value, str):
        return [value] if isinstance(value, dict) else value
    if not value.lower().endswith((".yaml", ".yml")):
        return [value]
    try:
        found = typed(list[str | SourceConfig], read_yaml(value))
    except UserError as error:
        raise ValueError(f"cannot be read ({error})") from None
    if not isinstance(found, list):
        raise ValueError("no list of sources")
    return found


Sources = Annotated[
    list[
        Annotated[
            Annotated[Uri, Tag("function-uri")] | Annotated[SourceConfig, Tag("function-source")],
            Discriminator(lambda value: "function-uri" if isinstance(value, str) else "function-source"),
        ]
    ],
    BeforeValidator(_read_sources),
    Field(min_length=1),
]
