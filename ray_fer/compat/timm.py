"""Private and undocumented names of timm, which loads only when a function is called. Checked against `CHECKED`."""

from __future__ import annotations

from typing import Any

CHECKED = "1.0.31"


def save_config(model: Any, path: str, facts: dict[str, Any], preprocessing: dict[str, Any]) -> None:
    """Writes the ``config.json`` of a model as the Hugging Face Hub's timm integration expects it.

    Args:
        model: a model of timm.
        path: of the file.
        facts: what it says besides the architecture, for example ``label_names``.
        preprocessing: ``input_size``, ``mean``, ``std`` and the like, which go into ``pretrained_cfg``.
    """
    from timm.models._hub import save_config_for_hf

    save_config_for_hf(model, path, dict(facts), data_config=dict(preprocessing))


def model_arguments(model: Any) -> dict[str, Any]:
    """Returns the arguments with which ``timm.create_model`` makes a model of the same shape again."""
    from timm.models._input import get_model_args

    return get_model_args(model)


def classifier_name(model: Any) -> Any:
    """Returns the name of the layer that makes logits of features, a tuple of names for a model with several heads."""
    return getattr(model, "default_cfg", {}).get("classifier", "fc")
