"""Damage of every kind to a feedback's folder: one line that names the file and the last good version."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_fer.errors import UserError
from ray_fer.feedback.history import StoredState, read_history
from ray_fer.feedback.state import FeedbackState
from ray_fer.feedback.store import FeedbackStore, load_snapshot

CLASSES = ("neutral", "anger", "happiness")
WEAK_ANGER = np.array([[90, 5, 5], [40, 50, 10], [5, 5, 90]])
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of three versions."""
    store = FeedbackStore(str(tmp_path / "f"), CLASSES)
    for number in range(1, 4):
        store.update(WEAK_ANGER, f"run/epoch-{number}", q_hat=[0.6, 0.2, 0.2], accepted_share=0.01)
    return tmp_path / "f"


def edit(file: Path, change: Change) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def refused(folder: Path, name: str, last: int) -> str:
    """What is said of a damaged ``name``, by all who read it alike."""
    later = "" if name == "v000003.json" else " and the later ones"
    end = f"go on from version {last}, the last good one" if last else "begin anew: no version is good"
    with pytest.raises(UserError) as by_selection:
        load_snapshot(str(folder), CLASSES)
    with pytest.raises(UserError) as by_training:
        FeedbackStore(str(folder), CLASSES)
    said = str(by_selection.value)
    assert said == str(by_training.value)
    assert said.startswith(f"feedback={folder}: {name}")
    assert said.endswith(f"; remove {name}{later} to {end}")
    assert len(said.splitlines()) == 1
    return said.removeprefix(f"feedback={folder}: {name}").partition("; remove")[0]


def test_the_schema_knows_every_field_of_the_state() -> None:
    assert list(StoredState.__annotations__) == [field.name for field in dataclasses.fields(FeedbackState)]


@pytest.mark.parametrize(("number", "name"), [(1, "v000001.json"), (2, "v000002.json"), (3, "v000003.json")])
@pytest.mark.parametrize("kept", [0, 200])
def test_a_file_that_is_cut(kept: int, number: int, name: str, folder: Path) -> None:
    (folder / name).write_text((folder / name).read_text()[:kept])
    assert "not JSON" in refused(folder, name, number - 1)
    for path in sorted(folder.iterdir())[number - 1 :]:
        path.unlink()
    assert load_snapshot(str(folder), CLASSES).version == number - 1, "as it was told"


def state(**values: Any) -> Change:
    return lambda document: document["state"].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (state(thresholds=[None] * 3), "state.thresholds.0: input should be a valid number, not None"),
        (state(thresholds=[0.8, float("nan"), 0.8]), "state.thresholds.1: input should be a finite number, not nan"),
        (state(thresholds=[0.8, 0.8, 1.2]), "state.thresholds.2: input should be less than or equal to 0.95"),
        (state(thresholds=[0.0, 0.8, 0.8]), "state.thresholds.0: input should be greater than or equal to 0.6"),
        (state(thresholds=[0.8]), "state.thresholds has 1 numbers for 3 classes"),
        (state(thresholds=["0.8"] * 3), "state.thresholds.0: input should be a valid number, not '0.8'"),
        (state(log_weights=[0.0, 0.0, 0.7]), "state.log_weights.2: input should be less than or equal to 0.69314"),
        (state(log_weights=[-0.41, 0.0, 0.0]), "state.log_weights.0: input should be greater than or equal to -0.405"),
        (state(log_weights=[0.0] * 4), "state.log_weights has 4 numbers for 3 classes"),
        (state(log_debias=[0.0, -0.51, 0.0]), "state.log_debias.1: input should be greater than or equal to -0.5"),
        (state(log_debias=[0.0, 0.0, float("inf")]), "state.log_debias.2: input should be a finite number, not inf"),
        (state(log_debias=[]), "state.log_debias has 0 numbers for 3 classes"),
        (state(tau0=0.3), "state.tau0: input should be greater than or equal to 0.6"),
        (state(loss_share=-0.5), "state.loss_share: input should be greater than or equal to 0, not -0.5"),
        (state(best_macro_f1=1.5), "state.best_macro_f1: input should be less than or equal to 1, not 1.5"),
        (state(version=7), "state.version is 7, which does not fit the file's name"),
        (state(tau1=0.5), "state.tau1: extra inputs are not permitted"),
        (lambda document: document["state"].pop("tau0"), "state.tau0: is missing"),
        (lambda document: document.pop("state"), "state: is missing"),
        (lambda document: document.pop("source"), "source: is missing"),
        (lambda document: document.update(version=2.5), "version: input should be a valid integer, not 2.5"),
        (lambda document: document.update(version=1), "version is 1, which does not fit the file's name"),
        (lambda document: document.update(classes="neutral"), "classes: input should be a valid list, not 'neutral'"),
        (lambda document: document.update(parts=["loss"]), "parts.0: input should be 'loss_weights', "),
        (
            lambda document: document.update(classes=["a", "b", "c"]),
            "its classes a, b, c are not those of the versions before",
        ),
    ],
)
def test_values_that_cannot_be(change: Change, said: str, folder: Path) -> None:
    edit(folder / "v000003.json", change)
    assert refused(folder, "v000003.json", 2).startswith(f": {said}")


def test_a_version_that_is_missing(folder: Path) -> None:
    (folder / "v000002.json").unlink()
    with pytest.raises(
        UserError, match=r"v000002\.json is missing, though v000003\.json is there; remove v000003\.json"
    ):
        load_snapshot(str(folder), CLASSES)


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "v000003.json").unlink()
    (folder / "v000003.json").mkdir()
    assert "cannot be read (" in refused(folder, "v000003.json", 2)


def test_foreign_files_are_passed_over(folder: Path) -> None:
    whole = load_snapshot(str(folder), CLASSES).to_json()
    names = ["view.json", "v.json", "v2.json", "v000000.json", "v0000004.json", "v000004.json.tmp", "v000004 (1).json"]
    for name in [*names, "V000004.json", ".v000004.json", "vx00004.json", "v000003-copy.json", "vocabulary.json"]:
        (folder / name).write_text("{}")
    assert load_snapshot(str(folder), CLASSES).to_json() == whole
    assert FeedbackStore(str(folder), CLASSES).update(WEAK_ANGER, "run/epoch-4").version == 4


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="a file, not the folder of a feedback state"):
        load_snapshot(str(folder / "v000001.json"), CLASSES)


def test_other_classes_are_told_before_damage_that_follows(folder: Path) -> None:
    (folder / "v000003.json").write_text("")
    with pytest.raises(UserError, match="it is about the classes neutral, anger, happiness, not a, b"):
        read_history(str(folder), ("a", "b"))


def test_what_an_earlier_version_wrote_is_read(folder: Path) -> None:
    """It said neither which parts were moved nor whether the prior helps."""
    for path in folder.iterdir():
        edit(path, lambda document: [document.pop(key) for key in ("parts", "prior_helps")])
    assert load_snapshot(str(folder), CLASSES).version == 3
    assert FeedbackStore(str(folder), CLASSES).snapshot().version == 3
