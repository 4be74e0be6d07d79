"""What every job can be told: the typed schema of ``conf/``.

The defaults and their explanations are in ``conf/NAME.yaml`` and nowhere else; the classes here only say which keys
exist and what a value may be. A run's config is the YAML, then ``config=FILE`` if given, then ``key=value`` arguments.
How text becomes values is in `ray_fer.config_values`.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from ray_fer.config_values import KeysOf, Plain, merged, read_yaml, typed, typed_fields
from ray_fer.errors import UserError
from ray_fer.training.recipe_names import RECIPES, is_there

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
# Of 32 bits, one for each tells whether it lacks an image.
Teachers = Annotated[Uris, Field(max_length=32)]
Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Rule = Literal["threshold", "top_k", "flexmatch", "freematch", "softmatch", "alignment", "ada_cm", "debiaspl", "crest"]
Faces = Literal["none", "detect"]
Device = Literal["auto", "cpu", "cuda"]
FeedbackPart = Literal["loss_weights", "sampling_weights", "thresholds", "debiasing"]
SourceFormat = Literal["auto", "images", "webdataset", "parquet", "lance", "list", "inventory", "s3_metadata", "events"]


def _no_zero_byte(uri: str) -> str:
    if "\0" in uri:
        raise PydanticCustomError("zero", "has a zero byte, which no path may have")
    return uri


def as_argument(key: str, values: Sequence[str]) -> str:
    """A list as a user gives it: ``key=a``, ``key=[a,b]``."""
    return f"{key}={values[0] if len(values) == 1 else '[' + ','.join(values) + ']'}"


_ACTORS = {"actors": "workers"}


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

    def outputs(self) -> dict[str, str]:
        """By key, the folders and files that this run will write to."""
        if getattr(self, "dry_run", False):
            return {}
        return {key: uri for key in self.written if (uri := getattr(self, key, None)) is not None}


class SourceConfig(JobConfig):
    """One entry of ``source`` that is more than a URI."""

    uri: Uri
    format: SourceFormat = "auto"
    column: str | None = None
    include: Patterns = []
    exclude: Patterns = []


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


def _known_recipe(name: str) -> str:
    if not is_there(name):
        ours = ", ".join(f"'{each}'" for each in RECIPES)
        raise PydanticCustomError(
            "recipe", f"input should be {ours} or a module such as my.recipe, in the current folder or installed"
        )
    return name


def _recorded(value: Any) -> Any:
    """What a run records of ``settings``, whose types their recipe alone knows: numbers where text can be no other."""
    if isinstance(value, Mapping):
        return {key: _recorded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_recorded(each) for each in value]
    if not isinstance(value, Plain):
        return value
    read = typed(dict[str, Any] if value.startswith("{") else list[Any], value)
    if not isinstance(read, str):
        return _recorded(read)
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if str(kind(value)) == value:
                return kind(value)
    return {"true": True, "false": False, "null": None}.get(value, str(value))


_SHOWN = 200  # characters of a wrong value
Settings = Annotated[dict[str, Any] | None, AfterValidator(lambda given: given or None), PlainSerializer(_recorded)]


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


class SupervisedConfig(JobConfig):
    """What the recipe ``supervised`` has alone."""

    head: Literal["main", "balanced"]


class OnlineConfig(JobConfig):
    """What the recipe ``online`` does with unlabeled faces."""

    rule: Rule
    threshold: Annotated[float, Field(gt=0, le=1)]
    ratio: Count
    weight: NonNegative
    targets: Literal["soft", "hard"]
    head: Literal["main", "balanced", "debiased"]
    calibrate: bool


class MetaConfig(JobConfig):
    """What the recipe ``meta_feedback`` does with unlabeled faces."""

    ratio: Count
    consistency: NonNegative
    strength: Annotated[float, Field(ge=0, le=0.5)]
    finetune: Share


class TrainBackboneConfig(JobConfig):
    """``jobs/train_backbone.py``"""

    labeled: Uri
    val: Uri
    feedback_val: Uri | None
    out: Uri
    backbone: Annotated[str, Field(min_length=1)] | None
    pretrained: Uri | None
    image_size: Annotated[int, Field(ge=16, le=1024)] | None
    classes: list[str] | None
    epochs: Count
    batch_size: Count
    accumulate: Count
    class_sampling: Literal["uniform", "natural"]
    labeled_view: Literal["weak", "strong"]
    logit_adjustment: NonNegative
    learning_rate: Annotated[float, Field(gt=0)]
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    weight_decay: NonNegative
    warmup_epochs: NonNegative
    label_smoothing: Share
    ema_decay: Share
    seed: Seed
    init: Uri | None
    pseudo: Uri | None
    pseudo_ratio: Count
    pseudo_weight: NonNegative
    recipe: Annotated[str, AfterValidator(_known_recipe)]
    settings: Settings
    unlabeled: Sources | None
    supervised: SupervisedConfig
    online: OnlineConfig
    meta: MetaConfig
    feedback: Uri | None
    feedback_parts: list[FeedbackPart]
    device: Device
    workers: Count | None
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    checkpoint_activations: bool
    precision: Literal["auto", "float32", "bfloat16"]
    wait_minutes: Minutes
    max_failures: Annotated[int, Field(ge=0)]
    on_bad_loss: Literal["stop", "skip"]


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


class PseudoLabelConfig(JobConfig):
    """``jobs/pseudo_label.py``"""

    written = ("table", "select")
    aliases = _ACTORS

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
        """Whether pictures are searched for faces, rather than being crops."""
        return self.faces == "detect"


class SelectPseudoLabelsConfig(JobConfig):
    """``jobs/select_pseudo_labels.py``"""

    table: Uri
    teacher: Uris
    out: Uri
    feedback: Uri | None
    precision: Literal["auto", "float32", "bfloat16"]
    flip: bool | None
    faces: Faces | None
    selection: SelectionConfig


class VacuumConfig(JobConfig):
    """``jobs/vacuum.py``"""

    written = ("table",)

    table: Uri
    retain_hours: Annotated[int, Field(ge=0, le=100 * 366 * 24)]
    dry_run: bool


class EvaluateConfig(JobConfig):
    """``jobs/evaluate.py``"""

    model: Uri
    data: Uri
    out: Uri
    split: str | None
    device: Device
    batch_size: Count


class ExtractFeaturesConfig(JobConfig):
    """``jobs/extract_features.py``"""

    aliases = _ACTORS

    data: Uri
    model: Uri
    out: Uri
    device: Device
    workers: Count | None
    wait_minutes: Minutes
    batch_size: Count


class TrainTemporalConfig(JobConfig):
    """``jobs/train_temporal.py``"""

    features: Uri
    val: Uri
    out: Uri
    window: Annotated[int, Field(ge=2)]
    stride: Count
    width: Count
    layers: Annotated[int, Field(ge=1, le=1000)]
    heads: Count
    dropout: Fraction
    epochs: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: NonNegative
    label_smoothing: Share
    smoothing: list[Annotated[int, Field(ge=0)]]
    seed: Seed
    device: Device
    workers: Count | None
    wait_minutes: Minutes
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    max_failures: Annotated[int, Field(ge=0)]


class PredictVideoConfig(JobConfig):
    """``jobs/predict_video.py``"""

    source: Uris
    model: Uri
    out: Uri
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


class SelfTrainConfig(JobConfig):
    """``jobs/self_train.py``: the loop; ``train``, ``student`` and ``label`` hold keys of the jobs it runs."""

    labeled: Uri
    val: Uri
    feedback_val: Uri | None
    source: Sources
    out: Uri
    rounds: Annotated[int, Field(ge=0)]
    patience: Count
    seed: Seed
    feedback_parts: list[FeedbackPart]
    device: Device
    workers: Count | None
    train: Annotated[dict[str, Any], KeysOf(TrainBackboneConfig)]
    student: Annotated[dict[str, Any], KeysOf(TrainBackboneConfig)]
    label: Annotated[dict[str, Any], KeysOf(PseudoLabelConfig)]
    selection: Annotated[dict[str, Any], KeysOf(SelectionConfig)]


class LineageConfig(JobConfig):
    """``jobs/lineage.py``"""

    model: Uri


REQUIRED = "???"
"""What ``conf/`` has in place of the default of a key that must be given."""

SCHEMAS: dict[str, type[JobConfig]] = {
    "draw_faces": DrawFacesConfig,
    "train_backbone": TrainBackboneConfig,
    "pseudo_label": PseudoLabelConfig,
    "select_pseudo_labels": SelectPseudoLabelsConfig,
    "vacuum": VacuumConfig,
    "evaluate": EvaluateConfig,
    "extract_features": ExtractFeaturesConfig,
    "train_temporal": TrainTemporalConfig,
    "predict_video": PredictVideoConfig,
    "self_train": SelfTrainConfig,
    "lineage": LineageConfig,
    "export_onnx": ExportOnnxConfig,
    "inspect_teacher": InspectTeacherConfig,
}


def conf_file(job: str) -> Path:
    """The YAML of a job: ``conf/`` of a checkout, or the copy inside an installed wheel."""
    package = Path(__file__).parent
    checkout = package.parent / "conf"
    return (checkout if checkout.is_dir() else package / "conf") / f"{job}.yaml"


def load_config(job: str, arguments: Sequence[str]) -> Any:
    """The validated config of one run of ``job``.

    Args:
        job: a name in `SCHEMAS`.
        arguments: ``key=value`` strings; nested keys with dots, lists as ``[a,b]``, ``config=FILE`` for a YAML file.

    Returns:
        An instance of ``SCHEMAS[job]``.

    Raises:
        UserError: naming every wrong key and value at once, in one line.
    """
    schema = SCHEMAS[job]
    values: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or not key:
            raise UserError(f"{job}: {argument!r} is not of the form key=value")
        if key == "config":
            values = merged(values, _read_file(job, value))
        else:
            overrides = merged(overrides, typed_fields(schema, _nested(key, Plain(value))))
    return validate(job, schema, merged(_defaults(job), _by_name(job, schema, merged(values, overrides))))


def section_config(section: str, job: str, values: Mapping[str, Any]) -> Any:
    """The config of ``job`` as another job runs it: the defaults of its YAML under ``values``.

    Args:
        section: the key of the other job that the values come from; errors name it.
        job: a name in `SCHEMAS`.
        values: nested as in the YAML.

    Raises:
        UserError: as `load_config`.
    """
    schema = SCHEMAS[job]
    return validate(section, schema, merged(_defaults(job), _by_name(section, schema, typed_fields(schema, values))))


def _by_name(where: str, schema: type[JobConfig], values: dict[str, Any]) -> dict[str, Any]:
    for alias in schema.aliases.keys() & values.keys():
        name = schema.aliases[alias]
        if name in values:
            raise UserError(f"{where}: {alias} and {name}: give one of them")
        values = {name if key == alias else key: value for key, value in values.items()}
    return values


def _defaults(job: str) -> dict[str, Any]:
    values = typed_fields(SCHEMAS[job], read_yaml(str(conf_file(job))))
    return {key: value for key, value in values.items() if value != REQUIRED}


def _read_file(job: str, uri: str) -> Any:
    try:
        values = read_yaml(uri)
    except UserError as error:
        raise UserError(f"{job}: config={uri}: {error}") from None
    if not isinstance(values, Mapping | None):
        raise UserError(f"{job}: config={uri}: not a YAML mapping of keys to values")
    return typed_fields(SCHEMAS[job], values or {})


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
    if problem["type"] == "missing":
        return f"{where}: required, say {where}{assign}…"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, _dotted_keys(schema), n=1)
        return f"{where}: no such key" + (f", did you mean {close[0]}?" if close else "")
    return f"{where}{assign}{repr(problem['input'])[:_SHOWN]}: {problem['msg'].lower()}"


def _dotted_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _dotted_keys(field.annotation, f"{prefix}{name}.")
    return keys


def job_help(job: str) -> str:
    """The commented YAML of a job, which is its documentation."""
    return conf_file(job).read_text()
