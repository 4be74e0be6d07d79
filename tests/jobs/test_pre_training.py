"""Pre-training on unlabeled faces: what the job need not be given, and what it publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs import train_backbone as job
from ray_fer.jobs.backbone_context import build_method, build_model, plain_weights
from ray_fer.jobs.backbone_inputs import Start, open_inputs
from ray_fer.jobs.held_out import list_unlabeled, read_unlabeled
from ray_fer.training.run_folder import RUN
from ray_fer.training.runner import Outcome
from ray_fer.training.world import World
from tests.training.epochs import run_epochs
from tests.training.toy import CLASSES, write_sets


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("faces"), (20, 20, 20))


def told(faces: Path, *arguments: str) -> Any:
    given = ["method=masked", f"unlabeled={faces / 'more'}", f"out={faces / 'pretrained'}", "backbone=test_resnet"]
    return load_config("train_backbone", [*given, "batch_size=16", "epochs=1", *arguments])


def test_labels_and_a_validation_set_may_be_missing(faces: Path) -> None:
    inputs = open_inputs(told(faces))
    assert (len(inputs.labeled), len(inputs.val), inputs.labeled.classes) == (0, 0, ())
    assert inputs.config.image_size == 48, "the unlabeled faces have 40 pixels"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["labeled={faces}/train/manifest.csv"], "^method=masked: needs val=$"),
        (["method=online", "labeled=null", "val=null"], "^method=online: needs "),
        (["pseudo=there"], "^method=masked: takes neither pseudo= nor feedback=$"),
        (["method.ratio=1"], "^method=masked: method.ratio=1"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], said: str, faces: Path) -> None:
    with pytest.raises(UserError, match=said):
        open_inputs(told(faces, *(each.format(faces=faces) for each in arguments)))


def test_other_methods_must_be_given_both() -> None:
    with pytest.raises(UserError, match=r"labeled: required, .*; val: required"):
        load_config("train_backbone", ["out=o"])


def test_what_it_publishes_is_a_start(faces: Path) -> None:
    inputs = open_inputs(told(faces))
    out = str(faces / "pretrained")
    count, digest = list_unlabeled(inputs, f"{out}/{RUN}")
    method = build_method(inputs, World(), *read_unlabeled(f"{out}/{RUN}"))
    run_epochs(method, range(1))
    _, metrics = method.validate(0)
    weights = method.ema_model.state_dict()
    outcome = Outcome({**metrics, "epoch": 1}, [{"loss": 1.0}], weights, [])
    job._publish(out, inputs, outcome, {"arguments": {}, "contents": {}}, Start("run", None, count, digest))
    summary = job._summary(out)
    assert summary == {
        **{"model": out, "reconstruction": metrics["reconstruction"], "best_epoch": 1, "epochs": 1, "unlabeled": 60}
    }
    assert "label_names" not in json.loads((faces / "pretrained" / "config.json").read_text())
    places = [f"labeled={faces / 'train/manifest.csv'}", f"val={faces / 'val/manifest.csv'}", f"out={faces / 'model'}"]
    start = open_inputs(load_config("train_backbone", [*places, f"pretrained={out}"]))
    model, *_ = build_model(start)
    kept = plain_weights(inputs, weights, build_model(inputs)[0])
    assert (model.body.layer1[0].conv1.weight == kept["layer1.0.conv1.weight"]).all()
    assert start.labeled.classes == CLASSES


def test_with_labels_it_publishes_a_model(faces: Path) -> None:
    both = (f"labeled={faces / 'train/manifest.csv'}", f"val={faces / 'val/manifest.csv'}")
    inputs = open_inputs(told(faces, *both))
    list_unlabeled(inputs, str(faces / "run"))
    method = build_method(inputs, World(), *read_unlabeled(str(faces / "run")))
    run_epochs(method, range(1))
    score, metrics = method.validate(0)
    assert score == metrics["choice"]["macro_f1"]
    assert metrics["reconstruction"] > 0
