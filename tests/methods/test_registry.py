"""From the name of a method to its numbers, their documentation, and what earlier versions recorded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ray_fer.config import conf_file, job_help, load_config
from ray_fer.errors import UserError
from ray_fer.methods.config import METHODS, as_yaml, upgraded
from ray_fer.methods.registry import find_method, numbers_of, resolved

PLACES = ["labeled=a", "val=b", "out=c"]


@pytest.mark.parametrize("name", [name for name in METHODS if conf_file(f"methods/{name}").exists()])
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
        (["method.x.y=3"], "method=supervised: method.x: no such key"),
        (["method=online", "method.weight=null"], "method=online: method.weight=null: input should be a valid number"),
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
    assert "did you mean method?" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "method=odd: has no METHOD with a Config that is a MethodConfig"),
        ("METHOD = 3", "method=odd: has no METHOD with a Config that is a MethodConfig"),
        ("import a_package_that_is_missing", "method=odd: its module cannot be imported: No module named"),
        ("def", "method=odd: its module cannot be imported: "),
    ],
)
def test_help_with_a_module_that_is_no_method_is_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(UserError) as caught:
        job_help("train_backbone", ["method=odd"])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("Config = dict", "method=odder: its Config is no MethodConfig"),
        (
            "needs = ('labels',)",
            "method=odder: it needs or takes labels; there are labeled, ",
        ),
    ],
)
def test_a_method_that_is_put_together_wrongly_is_one_line(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odder", raising=False)
    text = f"from ray_fer.methods.supervised import SupervisedMethod\n\n\nclass METHOD(SupervisedMethod):\n    {body}\n"
    (tmp_path / "odder.py").write_text(text)
    with pytest.raises(UserError) as caught:
        find_method("odder")
    assert str(caught.value).startswith(said)


def test_what_an_earlier_version_recorded_is_read_by_the_names_of_now(tmp_path: Path) -> None:
    own = {"supervised": {"head": "main"}, "online": {"ratio": 3}, "meta": {"strength": 0.1}}
    old = {"epochs": 5, "recipe": "online", "settings": None, "pseudo_ratio": 2, "pseudo_weight": 1.0, **own}
    online = {"name": "online", "pseudo_ratio": 2, "pseudo_weight": 1.0, "ratio": 3}
    since = {"depths": False, "batch_norm": "learn", "backbone_rate": 1.0}
    assert upgraded(old) == {"epochs": 5, "method": online, **since}
    assert upgraded({**old, "recipe": "meta_feedback"})["method"] == {"name": "meta_feedback", "strength": 0.1}
    mine = {**old, "recipe": "mine", "settings": {"penalty": 2}}
    assert upgraded(mine)["method"] == {"name": "mine", "penalty": 2}
    assert upgraded(upgraded(old)) == upgraded(old)
