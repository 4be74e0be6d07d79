"""From the name of a method to its numbers, their documentation, and what earlier versions recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_fer.config import conf_file, job_help, load_config
from ray_fer.errors import UserError
from ray_fer.methods.config import METHODS, as_yaml, upgraded
from ray_fer.methods.registry import find_method, numbers_of, resolved

PLACES = ["labeled=a", "val=b", "out=c"]


@pytest.mark.parametrize("name", METHODS)
def test_the_files_in_conf_are_what_the_methods_say(name: str) -> None:
    """The numbers stand in the class alone; the files are what `as_yaml` makes of it."""
    assert conf_file(f"methods/{name}").read_text() == as_yaml(name, find_method(name).Config)


def test_the_help_has_every_number_with_its_text() -> None:
    text = job_help("train_backbone")
    for name in METHODS:
        for key, field in find_method(name).Config.model_fields.items():
            assert f"\n  {key}: " in text
            assert field.description
    assert "# weight of the feedback from the student" in text
    assert "name: online" not in job_help("train_backbone", ["method=supervised"])


def test_numbers_have_the_types_of_their_method() -> None:
    config = load_config("train_backbone", [*PLACES, "method=online", "method.ratio=3", "method.calibrate=no"])
    numbers = numbers_of(config.method)
    assert (numbers.ratio, numbers.calibrate, numbers.weight) == (3, False, 1.0)
    everything = resolved(config).method.model_dump()
    assert (everything["name"], everything["ratio"], everything["rule"]) == ("online", 3, "softmatch")
    assert resolved(resolved(config)) == resolved(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=online", "method.ratoi=3"], "method=online: method.ratoi: no such key, did you mean method.ratio?"),
        (["method.ratio=3"], "method=supervised: method.ratio: no such key, did you mean method.pseudo_ratio?"),
        (["method=online", "method.weight=-1"], "method=online: method.weight=-1: input should be greater than or eq"),
        (
            ["method=meta_feedback", "method.finetune=1"],
            "method=meta_feedback: method.finetune=1: input should be less",
        ),
    ],
)
def test_wrong_numbers_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        numbers_of(load_config("train_backbone", [*PLACES, *arguments]).method)
    assert str(caught.value).startswith(message)


def test_what_an_earlier_version_recorded_is_read_by_the_names_of_now(tmp_path: Path) -> None:
    own = {"supervised": {"head": "main"}, "online": {"ratio": 3}, "meta": {"strength": 0.1}}
    old = {"epochs": 5, "recipe": "online", "settings": None, "pseudo_ratio": 2, "pseudo_weight": 1.0, **own}
    online = {"name": "online", "pseudo_ratio": 2, "pseudo_weight": 1.0, "ratio": 3}
    assert upgraded(old) == {"epochs": 5, "method": online}
    assert upgraded({**old, "recipe": "meta_feedback"})["method"] == {"name": "meta_feedback", "strength": 0.1}
    mine = {**old, "recipe": "mine", "settings": {"penalty": 2}}
    assert upgraded(mine)["method"] == {"name": "mine", "penalty": 2}
    assert upgraded(upgraded(old)) == upgraded(old)
