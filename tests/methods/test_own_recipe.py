"""A recipe of the user's in one file: the example, and what is said of modules and arguments that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_context import build_recipe
from ray_fer.jobs.backbone_inputs import open_inputs, warn_of_doubts
from ray_fer.methods.find_recipe import find_recipe
from ray_fer.methods.parts import Parts
from ray_fer.selection import RULES
from ray_fer.training.plain_engine import run_epochs
from ray_fer.training.run_folder import identity_of
from ray_fer.training.world import World
from tests.training.toy import config, write_sets

EXAMPLE = Path(__file__).parents[2] / "examples" / "entropy.py"
NUMBERED = """
from dataclasses import dataclass

from ray_fer.methods.online import OnlineSettings
from ray_fer.methods.parts import RecipeKind
from ray_fer.methods.supervised import build


@dataclass(frozen=True, kw_only=True)
class Numbers(OnlineSettings):
    steepness: int
    temperature: float = 2.0


RECIPE = RecipeKind(build=build, settings=Numbers, feedback=False, from_scratch="give init=")
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("faces"), (20, 10, 10))


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules that differ from test to test in their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def named(recipe: str, *arguments: str) -> Any:
    return load_config("train_backbone", ["labeled=a", "val=b", "out=c", f"recipe={recipe}", *arguments])


def test_the_example_is_a_recipe(faces: Path, modules: Path) -> None:
    (modules / "of_mine").mkdir()
    (modules / "of_mine" / "entropy.py").write_text(EXAMPLE.read_text())
    unlabeled = sorted(str(path) for path in (faces / "more").glob("*.png"))
    arguments = ("recipe=of_mine.entropy", f"unlabeled={faces / 'more'}", "batch_size=8", "learning_rate=0.01")
    settings = config(faces, *arguments, "epochs=4", "settings.weight=0.5", "checkpoint_activations=true")
    inputs = open_inputs(settings)
    assert inputs.feedback is not None
    recipe: Any = build_recipe(inputs, unlabeled, World(), {})
    assert (recipe.settings.weight, recipe.settings.learning_rate) == (0.5, 0.01)
    assert recipe.model.grad_checkpointing
    step = next(recipe.steps(0))
    assert step.inputs.shape == (16, 3, 32, 32)
    logits = torch.cat([torch.full((8, 3), 100.0), torch.zeros(8, 3)])
    assert recipe.loss(logits, step).item() == pytest.approx(1.5 * math.log(3), rel=1e-5)
    losses = run_epochs(recipe, range(4))
    assert losses[-1] < losses[0]
    assert recipe.validate(3)[0] > 0.8


def test_the_recipe_in_the_readme_is_one(faces: Path, modules: Path) -> None:
    text = (EXAMPLE.parents[1] / "README.md").read_text().partition("### A recipe of your own")[2]
    (modules / "modest.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    arguments = (f"pseudo={faces / 'selection'}", "feedback=none", "epochs=1", "batch_size=8")
    settings = config(faces, "recipe=modest", "settings.penalty=3", *arguments)
    recipe: Any = build_recipe(open_inputs(settings), [], World(), {})
    plain: Any = build_recipe(open_inputs(config(faces, *arguments)), [], World(), {})
    step = next(recipe.steps(0))
    modest = recipe.loss(torch.zeros(24, 3), step) - plain.loss(torch.zeros(24, 3), step)
    assert modest.item() == pytest.approx(-3 * math.log(3), rel=1e-5)
    assert math.isfinite(run_epochs(recipe, range(1))[0])


def test_what_it_publishes_is_looked_at_before_it_trains(faces: Path, modules: Path) -> None:
    text = "from dataclasses import replace\n\nfrom ray_fer.training import online, parts\n\n"
    (modules / "headed.py").write_text(f"{text}RECIPE = replace(online.RECIPE, publish=parts.whole)\n")
    inputs = open_inputs(config(faces, "recipe=headed", f"unlabeled={faces / 'more'}", "feedback=none"))
    with pytest.raises(
        UserError, match=r"^recipe=headed: what it publishes is no test_resnet, see backbone\.bn1\.bias$"
    ):
        build_recipe(inputs, [str(faces / "more" / "anger-0.png")], World(), {})


def test_a_run_records_what_it_was_told(faces: Path, modules: Path) -> None:
    (modules / "recorded.py").write_text(NUMBERED)
    told = config(faces, "recipe=recorded", "settings.steepness=2", "settings.temperature=3")
    arguments = identity_of(told, {})["arguments"]
    assert (arguments["recipe"], arguments["settings"]) == ("recorded", {"steepness": 2, "temperature": 3})
    assert config(faces).settings is None, "as good as no such key in what older versions have recorded"
    assert config(faces, "settings={}").settings is None


def test_its_numbers_have_its_types_and_its_names(faces: Path, modules: Path) -> None:
    text = NUMBERED.replace("steepness: int", "codes: Path\n    precision: float = 0.5\n    copy: int = 7")
    (modules / "typed.py").write_text("from pathlib import Path\n" + text)
    inputs = open_inputs(config(faces, "recipe=typed", "settings.codes=there", "settings.temperature=3"))
    json.dumps(inputs.config.model_dump())
    parts: Any = SimpleNamespace(config=inputs.config)
    kind = find_recipe("typed").settings
    settings: Any = Parts.settings(parts, kind, rule=RULES["threshold"]())
    assert (settings.codes, settings.temperature) == (Path("there"), 3.0)
    assert (settings.precision, settings.copy) == (0.5, 7), "neither precision=auto nor a method"
    assert settings.batch_size == inputs.config.batch_size


def test_its_advice_is_given(faces: Path, modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    (modules / "advised.py").write_text(NUMBERED)
    warn_of_doubts(open_inputs(config(faces, "recipe=advised", "settings.steepness=2")))
    assert "recipe=advised from scratch: give init=" in caplog.text


@pytest.mark.parametrize("name", ["onlin", "os.nothing", "nothing.at.all", "mine.py", "./mine"])
def test_a_name_that_is_no_module(name: str, modules: Path) -> None:
    with pytest.raises(
        UserError, match=r"recipe='.*': input should be 'supervised', 'online', 'meta_feedback' or a mo"
    ):
        named(name)


def test_what_a_module_lacks_is_not_taken_for_the_module(modules: Path) -> None:
    (modules / "lacking").mkdir()
    (modules / "lacking" / "__init__.py").write_text("import a_package_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        named("lacking.recipe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe=json"], r"recipe=json: .*/json/__init__\.py has no RECIPE = RecipeKind\(…\)"),
        (["recipe=numbered"], "recipe=numbered: settings.steepness: required"),
        (["unlabeled=there"], "recipe=numbered: takes no unlabeled="),
        (["pseudo=there"], "recipe=numbered: takes neither pseudo= nor feedback="),
        (["settings.temprature=1"], "temprature: no such key, did you mean settings.temperature"),
        (["settings.steepness=many"], "recipe=numbered: settings.steepness='many': input should be a valid integer"),
        (["settings.threshold=1", "settings.steepness=1"], r"recipe=numbered: settings\.threshold: no such key"),
        (["recipe=supervised", "settings.steps_per_epoch=1"], "recipe=supervised: settings.steps_per_epoch: no such"),
    ],
)
def test_arguments_that_do_not_fit(arguments: list[str], message: str, faces: Path, modules: Path) -> None:
    (modules / "numbered.py").write_text(NUMBERED)
    with pytest.raises(UserError, match=message) as caught:
        open_inputs(config(faces, "recipe=numbered", *arguments))
    assert "\n" not in str(caught.value)


def test_a_module_that_a_worker_lacks_is_told(faces: Path, modules: Path) -> None:
    (modules / "driver_only.py").write_text(NUMBERED)
    told = config(faces, "recipe=driver_only")
    (modules / "driver_only.py").unlink()
    with pytest.raises(
        UserError, match=r"^recipe=driver_only: no such module on .*, in the current folder or installed"
    ):
        open_inputs(told)
