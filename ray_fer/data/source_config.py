"""What a job can be told of its sources: URIs, and what is more than a URI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ray_fer.config import JobConfig, Uri
from ray_fer.config_values import read_yaml, typed
from ray_fer.errors import UserError

SourceFormat = Literal["auto", "images", "webdataset", "parquet", "lance", "list", "inventory", "s3_metadata", "events"]
Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class SourceConfig(JobConfig):
    """One entry of ``source`` that is more than a URI."""

    uri: Uri
    format: SourceFormat = "auto"
    column: str | None = None
    include: Patterns = Field(default_factory=list)
    exclude: Patterns = Field(default_factory=list)


def _read_sources(value: Any) -> Any:
    """``source`` as a list: of one, or what a YAML file lists."""
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
