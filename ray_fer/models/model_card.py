"""The model card of an artifact (``README.md``), in the format of the Hugging Face Hub.

It says nothing that ``config.json``, ``metrics.json`` and ``provenance.json`` do not say, so whatever saves an artifact
has a card. Of a path it gives the last part alone, as a card is what is shown around.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from ray_fer.models.pretrained import is_on_hub

_TAGS = ["image-classification", "timm", "facial-expression-recognition", "ray-fer"]
# A path up to its last part; what stands before a colon is a layout, or `timm` and the like.
_PARENTS = re.compile(r"(?:\w+://)?[^:]*/")
_DATA = ("labeled", "val", "feedback_val", "pseudo", "unlabeled", "table", "also")
_PLACES = {*_DATA, "out", "teacher", "source", "pretrained", "init", "feedback", "classes", "backbone", "image_size"}
_MACHINE = {"device", "workers", "wait_minutes", "zero_stage", "max_failures", "checkpoint_activations"}


def model_card(name: str, config: Mapping[str, Any], metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        name: The name of the model.
        config: The contents of ``config.json``.
        metrics: The contents of ``metrics.json``; a part that is missing is called so.
        provenance: The contents of ``provenance.json``, likewise.
    """
    arguments, parents = provenance.get("config") or {}, provenance.get("parents") or {}
    val = metrics.get("val") or {}
    start = arguments.get("pretrained") or arguments.get("init") or arguments.get("teacher")
    text = _TEMPLATES.get_template("model_card.md.j2").render(
        name=name,
        architecture=_backbones(config),
        module=config.get("module"),
        classes=config.get("label_names", []),
        image_size=config["pretrained_cfg"]["input_size"][-1],
        temperature=config.get("temperature", 1.0),
        data=_data(arguments, provenance),
        selection=parents.get("selection"),
        start=start and _shown_place(start),
        licence=parents.get("licence"),
        arguments={key: value for key, value in arguments.items() if key not in _PLACES | _MACHINE},
        val=val,
    )
    return f"---\n{_front_matter(name, start, parents.get('licence'), arguments, val)}\n---\n{text}"


def _backbones(config: Mapping[str, Any]) -> str:
    """The name of the architecture, with those of the nets in it where it is one of ours."""
    own, given = str(config["architecture"]), config.get("model_args") or {}
    within = [given] if "backbone" in given else given.get("backbones") or []
    return f"{own} of {' and '.join(str(each['backbone']) for each in within)}" if within else own


def _front_matter(
    name: str, start: Any, licence: str | None, arguments: Mapping[str, Any], val: Mapping[str, Any]
) -> str:
    measured = {"f1": ("macro-F1", val.get("macro_f1")), "accuracy": ("accuracy", val.get("accuracy"))}
    data = _shown_place(arguments.get("val") or "validation")
    results = [
        EvalResult("image-classification", "faces", data, kind, value, metric_name=shown)
        for kind, (shown, value) in measured.items()
        if value is not None
    ]
    base = start if isinstance(start, str) and start.startswith("hf-hub:") else None
    card = ModelCardData(
        library_name="timm",
        license=licence,
        base_model=base and base.removeprefix("hf-hub:").partition("@")[0],
        tags=_TAGS,
        model_name=name,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _data(arguments: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts, contents = dict(provenance.get("counts") or {}), (provenance.get("identity") or {}).get("contents") or {}
    if arguments.get("feedback_val") and counts:
        counts["val"] -= counts["feedback_val"]
    digests = {**contents, "unlabeled": (provenance.get("parents") or {}).get("unlabeled")}
    return [
        {
            "what": key,
            "name": _shown_place(arguments[key]),
            "count": counts.get(key),
            "digest": (digests.get(key) or "")[:16],
        }
        for key in _DATA
        if arguments.get(key)
    ]


def _shown_place(place: Any) -> str:
    if isinstance(place, list):
        return ", ".join(map(_shown_place, place))
    uri = str(place["uri"] if isinstance(place, dict) else place)
    return uri if is_on_hub(uri) else _PARENTS.sub("", uri.rstrip("/"))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "n/a" if value is None else " ".join(str(value).split()) or "n/a"


def _shown(value: Any) -> str:
    # Names come from users: nothing in them is markup.
    return re.sub(r"([\\`*{}\[\]<>|])", r"\\\1", _plain(value))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.ChainableUndefined,
)
