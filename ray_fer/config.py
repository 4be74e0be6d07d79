"""What every job can be told: the typed schema of ``conf/``.

The defaults and their explanations are in ``conf/NAME.yaml`` and nowhere else; the classes here only say which keys
exist and what a value may be. A run's config is the YAML, then ``config=FILE`` if given, then ``key=value`` arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from botocore.exceptions import BotoCoreError
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from ray_fer import storage
from ray_fer.errors import UserError, one_line
from ray_fer.training.recipe_names import RECIPES, is_there

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
# A folder may be called 2024.
Uris = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str | int | float) else value),
    Field(min_length=1),
]
# Of 32 bits, one for each tells whether it lacks an image.
Teachers = Annotated[Uris, Field(max_length=32)]
Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Rule = Literal["threshold", "top_k", "flexmatch", "freematch", "softmatch", "alignment", "ada_cm", "debiaspl", "crest"]
Faces = Literal["none", "detect"]
FeedbackPart = Literal["loss_weights", "sampling_weights", "thresholds", "debiasing"]
SourceFormat = Literal["auto", "images", "webdataset", "parquet", "lance", "list", "inventory", "s3_metadata", "events"]


def as_argument(key: str, values: Sequence[str]) -> str:
    """A list as a user gives it: ``key=a``, ``key=[a,b]``."""
    return f"{key}={values[0] if len(values) == 1 else '[' + ','.join(values) + ']'}"


class JobConfig(BaseModel):
    """What the configs of all jobs share: unknown keys are errors, values are never silently converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)


class SourceConfig(JobConfig):
    """One entry of ``source`` that is more than a URI."""

    uri: str
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
        return yaml.safe_load(storage.read_bytes(value))
    except (OSError, UserError, ValueError, yaml.YAMLError, BotoCoreError) as error:
        raise ValueError(f"cannot be read ({one_line(error)})") from None


Sources = Annotated[
    list[
        Annotated[
            Annotated[str, Tag("function-uri")] | Annotated[SourceConfig, Tag("function-source")],
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


class DrawFacesConfig(JobConfig):
    """``jobs/draw_faces.py``"""

    out: str
    seed: int
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
    finetune: Annotated[float, Field(ge=0, lt=1)]


class TrainBackboneConfig(JobConfig):
    """``jobs/train_backbone.py``"""

    labeled: str
    val: str
    feedback_val: str | None
    out: str
    backbone: str | None
    pretrained: str | None
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
    label_smoothing: Fraction
    ema_decay: Fraction
    seed: int
    init: str | None
    pseudo: str | None
    pseudo_ratio: Count
    pseudo_weight: NonNegative
    recipe: Annotated[str, AfterValidator(_known_recipe)]
    settings: Annotated[dict[str, Any] | None, AfterValidator(lambda given: given or None)]
    unlabeled: Sources | None
    supervised: SupervisedConfig
    online: OnlineConfig
    meta: MetaConfig
    feedback: str | None
    feedback_parts: list[FeedbackPart]
    workers: Count | None
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    checkpoint_activations: bool
    precision: Literal["auto", "float32", "bfloat16"]
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
    exclude: list[str]
    exclude_unreadable: Literal["error", "skip"]


class PseudoLabelConfig(JobConfig):
    """``jobs/pseudo_label.py``"""

    source: Sources
    teacher: Teachers
    table: str
    unit_rows: Count
    batch_size: Count
    actors: Count | None
    device: Literal["auto", "cpu", "cuda"]
    engine: Literal["auto", "torch", "openvino"]
    precision: Literal["auto", "float32", "bfloat16"]
    flip: bool
    faces: Faces
    commit_seconds: NonNegative
    max_pixels: Count
    max_bytes: Count
    max_attempts: Count
    max_failure_share: Fraction
    max_failures: Annotated[int, Field(ge=0)] | None
    watch: Annotated[float, Field(gt=0)] | None
    dry_run: bool
    select: str | None
    feedback: str | None
    selection: SelectionConfig

    @property
    def detects_faces(self) -> bool:
        """Whether pictures are searched for faces, rather than being crops."""
        return self.faces == "detect"


class SelectPseudoLabelsConfig(JobConfig):
    """``jobs/select_pseudo_labels.py``"""

    table: str
    teacher: Uris
    out: str
    feedback: str | None
    precision: Literal["auto", "float32", "bfloat16"]
    flip: bool | None
    faces: Faces | None
    selection: SelectionConfig


class VacuumConfig(JobConfig):
    """``jobs/vacuum.py``"""

    table: str
    retain_hours: Annotated[int, Field(ge=0)]
    dry_run: bool


class EvaluateConfig(JobConfig):
    """``jobs/evaluate.py``"""

    model: str
    data: str
    out: str
    split: str | None
    batch_size: Count


class ExtractFeaturesConfig(JobConfig):
    """``jobs/extract_features.py``"""

    data: str
    model: str
    out: str
    actors: Count | None
    batch_size: Count


class TrainTemporalConfig(JobConfig):
    """``jobs/train_temporal.py``"""

    features: str
    val: str
    out: str
    window: Annotated[int, Field(ge=2)]
    stride: Count
    width: Count
    layers: Count
    heads: Count
    dropout: Fraction
    epochs: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: NonNegative
    label_smoothing: Fraction
    smoothing: list[Annotated[int, Field(ge=0)]]
    seed: int
    workers: Count | None
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    max_failures: Annotated[int, Field(ge=0)]


class PredictVideoConfig(JobConfig):
    """``jobs/predict_video.py``"""

    source: Uris
    model: str
    out: str
    batch_size: Count


class ExportOnnxConfig(JobConfig):
    """``jobs/export_onnx.py``"""

    model: str
    out: str


class InspectTeacherConfig(JobConfig):
    """``jobs/inspect_teacher.py``"""

    teacher: str
    image: str
    out: str


class SelfTrainConfig(JobConfig):
    """``jobs/self_train.py``: the loop; ``train``, ``student`` and ``label`` hold keys of the jobs it runs."""

    labeled: str
    val: str
    feedback_val: str | None
    source: Sources
    out: str
    rounds: Annotated[int, Field(ge=0)]
    patience: Count
    seed: int
    feedback_parts: list[FeedbackPart]
    train: dict[str, Any]
    student: dict[str, Any]
    label: dict[str, Any]
    selection: dict[str, Any]


class LineageConfig(JobConfig):
    """``jobs/lineage.py``"""

    model: str


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
    layers = [OmegaConf.load(conf_file(job))]
    overrides = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or not key:
            raise UserError(f"{job}: {argument!r} is not of the form key=value")
        if key == "config":
            layers.append(_load_yaml(job, value))
        else:
            overrides.append(_override(job, key, value))
    return _resolve(job, SCHEMAS[job], [*layers, *overrides])


def section_config(section: str, job: str, values: Mapping[str, Any]) -> Any:
    """The config of ``job`` as another job runs it: the defaults of its YAML under ``values``.

    Args:
        section: the key of the other job that the values come from; errors name it.
        job: a name in `SCHEMAS`.
        values: nested as in the YAML.

    Raises:
        UserError: as `load_config`.
    """
    return _resolve(section, SCHEMAS[job], [OmegaConf.load(conf_file(job)), OmegaConf.create(dict(values))])


def _resolve(where: str, schema: type[JobConfig], layers: Sequence[Any]) -> Any:
    try:
        values = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    assert isinstance(values, dict)
    given = {key: value for key, value in values.items() if value != "???"}
    return validate(where, schema, given)


def validate(where: str, schema: type[JobConfig], values: dict[Any, Any], assign: str = "=") -> Any:
    """An instance of ``schema``, or a `UserError` that names every wrong key in one line.

    Args:
        where: what the line starts with.
        schema: of the values.
        values: nested as in YAML.
        assign: what stands between key and value where the user wrote them.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(schema, problem, assign) for problem in error.errors())
        raise UserError(f"{where}: {problems}") from None


def _override(job: str, key: str, value: str) -> Any:
    # Not OmegaConf.from_dotlist: it stops at characters that are common in paths.
    try:
        parsed = yaml.safe_load(value) if value[:1] in "[{" or _is_scalar(value) else value
    except yaml.YAMLError:
        raise UserError(f"{job}: {key}={value}: not a YAML value") from None
    document = OmegaConf.create()
    OmegaConf.update(document, key, parsed, force_add=True)
    return document


def _is_scalar(value: str) -> bool:
    if value in {"null", "true", "false"}:
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


def _load_yaml(job: str, path: str) -> Any:
    try:
        return OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{job}: config={path}: no such file") from None
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"{job}: config={path}: {' '.join(str(error).split())}") from None


def _explain(schema: type[JobConfig], problem: Any, assign: str) -> str:
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    if problem["type"] == "missing":
        return f"{where}: required, say {where}{assign}…"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, _dotted_keys(schema), n=1)
        return f"{where}: no such key" + (f", did you mean {close[0]}?" if close else "")
    return f"{where}{assign}{problem['input']!r}: {problem['msg'].lower()}"


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
