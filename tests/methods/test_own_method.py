"""A method of the user's in one file: the example, and what is said of modules and arguments that do not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_context import build_method
from ray_fer.jobs.backbone_inputs import open_inputs, warn_of_doubts
from ray_fer.methods.registry import numbers_of
from ray_fer.training.run_folder import identity_of
from ray_fer.training.world import World
from tests.training.epochs import loss_of, run_epochs
from tests.training.toy import config, write_sets

EXAMPLE = Path(__file__).parents[2] / "examples" / "entropy.py"
NUMBERED = """
from ray_fer.methods.supervised import SupervisedMethod


class METHOD(SupervisedMethod):
    class Config(SupervisedMethod.Config):
        steepness: int
        temperature: float = 2.0

    takes = ()
    from_scratch = "give init="
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
    return load_config("train_backbone", ["labeled=a", "val=b", "out=c", f"method={recipe}", *arguments])


def test_the_example_is_a_recipe(faces: Path, modules: Path) -> None:
    (modules / "of_mine").mkdir()
    (modules / "of_mine" / "entropy.py").write_text(EXAMPLE.read_text())
    unlabeled = sorted(str(path) for path in (faces / "more").glob("*.png"))
    arguments = ("method=of_mine.entropy", f"unlabeled={faces / 'more'}", "batch_size=8", "learning_rate=0.01")
    settings = config(faces, *arguments, "epochs=4", "method.weight=0.5", "checkpoint_activations=true")
    inputs = open_inputs(settings)
    assert inputs.feedback is not None
    recipe: Any = build_method(inputs, World(), unlabeled)
    assert (recipe.numbers.weight, recipe.config.learning_rate) == (0.5, 0.01)
    assert recipe.model.grad_checkpointing
    step = next(recipe.steps(0))
    assert step.inputs.shape == (16, 3, 32, 32)
    logits = torch.cat([torch.full((8, 3), 100.0), torch.zeros(8, 3)])
    assert loss_of(recipe, logits, step).item() == pytest.approx(1.5 * math.log(3), rel=1e-5)
    losses = run_epochs(recipe, range(4))
    assert losses[-1] < losses[0]
    assert recipe.validate(3)[0] > 0.8


def test_the_method_in_the_guide_is_one(faces: Path, modules: Path) -> None:
    blocks = (EXAMPLE.parents[1] / "CONTRIBUTING.md").read_text().split("```python\n")[1:]
    (modules / "modest.py").write_text(next(block for block in blocks if "class METHOD" in block).partition("```")[0])
    arguments = (f"pseudo={faces / 'selection'}", "feedback=none", "epochs=1", "batch_size=8")
    settings = config(faces, "method=modest", "method.penalty=3", *arguments)
    recipe: Any = build_method(open_inputs(settings), World())
    plain: Any = build_method(open_inputs(config(faces, *arguments)), World())
    step = next(recipe.steps(0))
    modest = loss_of(recipe, torch.zeros(24, 3), step) - loss_of(plain, torch.zeros(24, 3), step)
    assert modest.item() == pytest.approx(-3 * math.log(3), rel=1e-5)
    assert math.isfinite(run_epochs(recipe, range(1))[0])


def test_what_it_publishes_is_looked_at_before_it_trains(faces: Path, modules: Path) -> None:
    text = "from ray_fer.methods.online import OnlineMethod\n\n\nclass METHOD(OnlineMethod):\n"
    text += "    @classmethod\n    def publish(cls, weights, numbers, classifier):\n        return weights\n"
    (modules / "headed.py").write_text(text)
    inputs = open_inputs(
        config(faces, "method=headed", f"unlabeled={faces / 'more'}", "method.head=balanced", "feedback=none")
    )
    with pytest.raises(
        UserError, match=r"^method=headed: what it publishes is no test_resnet, see backbone\.bn1\.bias$"
    ):
        build_method(inputs, World(), [str(faces / "more" / "anger-0.png")])


def test_a_run_records_all_its_numbers(faces: Path, modules: Path) -> None:
    (modules / "recorded.py").write_text(NUMBERED)
    told = open_inputs(config(faces, "method=recorded", "method.steepness=2", "method.temperature=3")).config
    assert identity_of(told, {})["arguments"]["method"] == {
        "name": "recorded",
        "steepness": 2,
        "temperature": 3.0,
        "head": "main",
        "pseudo_ratio": 2,
        "pseudo_weight": 1.0,
    }


def test_its_numbers_have_its_types_and_its_names(faces: Path, modules: Path) -> None:
    text = NUMBERED.replace("steepness: int", "codes: Path\n        precision: float = 0.5\n        copies: int = 7")
    (modules / "typed.py").write_text("from pathlib import Path\n" + text)
    inputs = open_inputs(config(faces, "method=typed", "method.codes=there", "method.temperature=3"))
    numbers = numbers_of(inputs.config.method)
    assert (numbers.codes, numbers.temperature) == (Path("there"), 3.0)
    assert (numbers.precision, numbers.copies) == (0.5, 7), "neither precision=auto nor a method"


def test_its_advice_is_given(faces: Path, modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    (modules / "advised.py").write_text(NUMBERED)
    warn_of_doubts(open_inputs(config(faces, "method=advised", "method.steepness=2")))
    assert "method=advised from scratch: give init=" in caplog.text


@pytest.mark.parametrize("name", ["onlin", "os.nothing", "nothing.at.all", "mine.py", "./mine"])
def test_a_name_that_is_no_module(name: str, modules: Path) -> None:
    with pytest.raises(
        UserError, match=r"method='.*': input should be 'supervised', 'online', 'meta_feedback', 'masked' or a mo"
    ):
        named(name)


def test_what_a_module_lacks_is_not_taken_for_the_module(modules: Path) -> None:
    (modules / "lacking").mkdir()
    (modules / "lacking" / "__init__.py").write_text("import a_package_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        named("lacking.method")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=json"], r"method=json: .*/json/__init__\.py has no METHOD = … that is a BackboneMethod"),
        (["method=numbered"], "method=numbered: method.steepness: required"),
        (["unlabeled=there"], "method=numbered: takes no unlabeled="),
        (["pseudo=there"], "method=numbered: takes neither pseudo= nor feedback="),
        (["method.temprature=1"], "temprature: no such key, did you mean method.temperature"),
        (["method.steepness=many"], "method=numbered: method.steepness='many': input should be a valid integer"),
        (["method.threshold=1", "method.steepness=1"], r"method=numbered: method\.threshold: no such key"),
        (["method=supervised", "method.steps_per_epoch=1"], "method=supervised: method.steps_per_epoch: no such"),
    ],
)
def test_arguments_that_do_not_fit(arguments: list[str], message: str, faces: Path, modules: Path) -> None:
    (modules / "numbered.py").write_text(NUMBERED)
    with pytest.raises(UserError, match=message) as caught:
        open_inputs(config(faces, "method=numbered", *arguments))
    assert "\n" not in str(caught.value)


def test_a_module_that_a_worker_lacks_is_told(faces: Path, modules: Path) -> None:
    (modules / "driver_only.py").write_text(NUMBERED)
    told = config(faces, "method=driver_only")
    (modules / "driver_only.py").unlink()
    with pytest.raises(
        UserError, match=r"^method=driver_only: no such module on .*, in the current folder or installed"
    ):
        open_inputs(told)
