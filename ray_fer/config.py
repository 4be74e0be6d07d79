"""The config of a job: loading, merging, and reporting what is wrong with it.

The defaults and their explanations are in ``conf/NAME.yaml`` and nowhere else. Which keys exist and what a value may be
says a schema, which stands in the room that it configures. The config of a run is the YAML, then ``config=FILE`` if
given, then ``key=value`` arguments. How text becomes values is in `ray_fer.config_values`.
"""

from __future__ import annotations

import difflib
import importlib
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from ray_fer.argument_text import Plain
from ray_fer.config_values import KeysOf, merged, parse_yaml, read_yaml, typed_fields
from ray_fer.errors import UserError, prefixed

Minutes = Annotated[float, Field(ge=0)] | None
Fraction = Annotated[float, Field(ge=0, le=1)]
# A share of 1 would leave nothing of what it is taken from.
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
LargeCount = Annotated[int, Field(ge=1, le=2**63 - 1)]
NonNegative = Annotated[float, Field(ge=0)]
# What torch and numpy both take.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
# What is longer overflows timers and dates.
Seconds = Annotated[float, Field(ge=0, le=366 * 86400)]
Uri = Annotated[str, Field(min_length=1), AfterValidator(lambda uri: _no_zero_byte(uri))]
Uris = Annotated[
    list[Uri], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), Field(min_length=1)
]
Device = Literal["auto", "cpu", "cuda"]


ACTORS = {"actors": "workers"}
"""What ``workers`` was called."""


def one_of(names: Iterable[str]) -> AfterValidator:
    """The check that a text is one of ``names``, with the message of a `Literal`."""
    known = [f"'{name}'" for name in names]

    def check(value: str) -> str:
        if f"'{value}'" not in known:
            raise PydanticCustomError("one_of", f"input should be {', '.join(known[:-1])} or {known[-1]}")
        return value

    return AfterValidator(check)


def _no_zero_byte(uri: str) -> str:
    if "\0" in uri:
        raise PydanticCustomError("zero", "has a zero byte, which no path may have")
    return uri


def as_argument(key: str, values: Sequence[str]) -> str:
    """A list as a user gives it: ``key=a``, ``key=[a,b]``."""
    return f"{key}={values[0] if len(values) == 1 else '[' + ','.join(values) + ']'}"


class JobConfig(BaseModel):
    """What the configs of all jobs share: unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True, allow_inf_nan=False
    )
    written: ClassVar[tuple[str, ...]] = ("out",)
    """The keys of the places that the job writes to."""
    aliases: ClassVar[dict[str, str]] = {}
    """Other names of keys."""
    writes_file: ClassVar[bool] = False
    """Whether these are files rather than folders."""
    shorthand: ClassVar[dict[str, str]] = {}
    """Sections that may be given as one value, with the key in the section that it is for."""
    renamed: ClassVar[dict[str, str]] = {}
    """Keys of earlier versions, and what they are called now."""

    @classmethod
    def further_help(cls, arguments: Sequence[str]) -> str:
        """What the help says after the job's YAML, given the other arguments."""
        return ""

    def outputs(self) -> dict[str, str]:
        """By key, the folders and files that this run will write to."""
        if getattr(self, "dry_run", False):
            return {}
        return {key: uri for key in self.written if (uri := getattr(self, key, None)) is not None}


_SHOWN = 200  # characters of a wrong value


_SECTION = re.compile(r"^(\w+): (\w+)\.yaml\b.*", re.MULTILINE)
REQUIRED = "???"
"""What ``conf/`` has in place of the default of a key that must be given."""

_SCHEMAS = {
    "draw_faces": "ray_fer.synthetic.config:DrawFacesConfig",
    "train_backbone": "ray_fer.methods.config:TrainBackboneConfig",
    "pseudo_label": "ray_fer.labeling.config:PseudoLabelConfig",
    "select_pseudo_labels": "ray_fer.labeling.config:SelectPseudoLabelsConfig",
    "vacuum": "ray_fer.labeling.config:VacuumConfig",
    "evaluate": "ray_fer.jobs.config:EvaluateConfig",
    "extract_features": "ray_fer.video.config:ExtractFeaturesConfig",
    "train_temporal": "ray_fer.video.config:TrainTemporalConfig",
    "predict_video": "ray_fer.video.config:PredictVideoConfig",
    "train_head": "ray_fer.jobs.config:TrainHeadConfig",
    "self_train": "ray_fer.jobs.config:SelfTrainConfig",
    "lineage": "ray_fer.jobs.config:LineageConfig",
    "export_onnx": "ray_fer.jobs.config:ExportOnnxConfig",
    "inspect_teacher": "ray_fer.jobs.config:InspectTeacherConfig",
}
JOBS = tuple(_SCHEMAS)
"""The names of all jobs."""


def schema_of(job: str) -> type[JobConfig]:
    """The schema of a job, which stands in the room that it configures."""
    module, name = _SCHEMAS[job].split(":")
    schema: type[JobConfig] = getattr(importlib.import_module(module), name)
    return schema


def conf_file(job: str) -> Path:
    """The YAML of a job: ``conf/`` of a checkout, or the copy inside an installed wheel."""
    package = Path(__file__).parent
    checkout = package.parent / "conf"
    return (checkout if checkout.is_dir() else package / "conf") / f"{job}.yaml"


def load_config(job: str, arguments: Sequence[str]) -> Any:
    """The validated config of one run of ``job``.

    Args:
        job: a name in `JOBS`.
        arguments: ``key=value`` strings; nested keys with dots, lists as ``[a,b]``, ``config=FILE`` for a YAML file.

    Returns:
        An instance of the job's schema.

    Raises:
        UserError: naming every wrong key and value at once, in one line.
    """
    schema = schema_of(job)
    values: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or not key:
            raise UserError(f"{job}: {argument!r} is not of the form key=value")
        if key == "config":
            values = layered(schema, values, _read_file(job, value))
        else:
            given = _expanded(schema, typed_fields(schema, _nested(key, Plain(value))))
            overrides = merged(overrides, given)
    given = _by_name(job, schema, layered(schema, values, overrides))
    return validate(job, schema, layered(schema, _defaults(job), given))


def section_config(section: str, job: str, values: Mapping[str, Any]) -> Any:
    """The config of ``job`` as another job runs it: the defaults of its YAML under ``values``.

    Args:
        section: the key of the other job that the values come from; errors name it.
        job: a name in `JOBS`.
        values: nested as in the YAML.

    Raises:
        UserError: as `load_config`.
    """
    schema = schema_of(job)
    given = _by_name(section, schema, typed_fields(schema, values))
    return validate(section, schema, layered(schema, _defaults(job), given))


def layered(schema: type[BaseModel], base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``; what ``base`` says of a section that ``over`` gives another name is dropped."""
    base, over = _expanded(schema, base), _expanded(schema, over)
    for key, name in _shorthand(schema).items():
        known, given = base.get(key, {}).get(name), over.get(key, {}).get(name)
        if given is not None and known is not None and given != known:
            base = {**base, key: {}}
    for key, section in _sections(schema):
        if isinstance(base.get(key), Mapping) and isinstance(over.get(key), Mapping):
            base = {**base, key: layered(section, base[key], over[key])}
    return dict(merged(base, over))


def _expanded(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the sections that are given as one value spelt out, also in the configs of other jobs."""
    shorthand, sections = _shorthand(schema), dict(_sections(schema))
    expanded = {}
    for key, value in values.items():
        if key in shorthand and not isinstance(value, Mapping):
            value = {shorthand[key]: value}
        expanded[key] = _expanded(sections[key], value) if key in sections and isinstance(value, Mapping) else value
    return expanded


def _shorthand(schema: type[BaseModel]) -> dict[str, str]:
    return schema.shorthand if issubclass(schema, JobConfig) else {}


def _sections(schema: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The fields that hold keys of other jobs."""
    for key, field in schema.model_fields.items():
        for each in field.metadata:
            if isinstance(each, KeysOf):
                yield key, each.schema


def _by_name(where: str, schema: type[JobConfig], values: dict[str, Any]) -> dict[str, Any]:
    for alias in schema.aliases.keys() & values.keys():
        name = schema.aliases[alias]
        if name in values:
            raise UserError(f"{where}: {alias} and {name}: give one of them")
        values = {name if key == alias else key: value for key, value in values.items()}
    return values


def _defaults(job: str) -> dict[str, Any]:
    values = typed_fields(schema_of(job), parse_yaml(conf_text(job)))
    return {key: value for key, value in values.items() if value != REQUIRED}


def _read_file(job: str, uri: str) -> Any:
    with prefixed(f"{job}: config={uri}: "):
        values = read_yaml(uri)
    if not isinstance(values, Mapping | None):
        raise UserError(f"{job}: config={uri}: not a YAML mapping of keys to values")
    return typed_fields(schema_of(job), values or {})


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def validate(where: str, schema: type[JobConfig], values: dict[Any, Any], assign: str = "=") -> Any:
    """An instance of ``schema``, or a `UserError` that names every wrong key in one line.

    Args:
        where: what the line starts with.
        schema: of the values.
        values: nested as in YAML.
        assign: what stands between key and value where the user wrote them.
    """
    try:
        return schema.model_validate(typed_fields(schema, values))
    except ValidationError as error:
        problems = "; ".join(_explain(schema, problem, assign) for problem in error.errors())
        raise UserError(f"{where}: {problems}") from None


def _explain(schema: type[JobConfig], problem: Any, assign: str) -> str:
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    for key, name in schema.shorthand.items():
        where = key if where == f"{key}.{name}" else where
    if problem["type"] == "missing":
        return f"{where}: required, say {where}{assign}…"
    if problem["type"] == "extra_forbidden":
        if where in schema.renamed:
            keys = problem["input"] if isinstance(problem["input"], Mapping) else {}
            now = schema.renamed[where]
            told = [f"{where}.{key}: is called {now.replace('NAME', str(key))} now" for key in keys]
            return "; ".join(told or [f"{where}: is called {now} now"])
        known = [key for key in _dotted_keys(schema) if not where.startswith(f"{key}.")]
        close = difflib.get_close_matches(where, known, n=1)
        return f"{where}: no such key" + (f", did you mean {close[0]}?" if close else "")
    value = "null" if problem["input"] is None else repr(problem["input"])[:_SHOWN]
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{where}{assign}{value}: input should be keys and values, such as {where}.KEY{assign}VALUE"
    return f"{where}{assign}{value}: {problem['msg'].lower()}"


def _dotted_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _dotted_keys(field.annotation, f"{prefix}{name}.")
    return keys


def job_help(job: str, arguments: Sequence[str] = ()) -> str:
    """The commented YAML of a job, which is its documentation, and what depends on ``arguments``."""
    return "\n".join(filter(None, [conf_text(job), schema_of(job).further_help(arguments)]))


def conf_text(job: str) -> str:
    """The YAML of a job with the sections that it shares with other jobs."""
    return _SECTION.sub(_section, conf_file(job).read_text())


def _section(found: re.Match[str]) -> str:
    text = conf_file(found[2]).read_text()
    return f"{found[1]}:\n" + textwrap.indent(text, "  ").rstrip("\n")
