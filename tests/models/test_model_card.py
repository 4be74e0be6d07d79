from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from ray_fer.evaluation.halves import evaluate_halves
from ray_fer.models.artifact import open_artifact
from ray_fer.models.model_card import model_card
from tests.images import tiny_model

CLASSES = ("neutral", "anger", "my | own")
CONFIG = {
    "architecture": "resnet10t",
    "label_names": list(CLASSES),
    "pretrained_cfg": {"input_size": [3, 48, 48]},
    "temperature": 1.25,
}
ARGUMENTS: dict[str, Any] = {
    "labeled": "/home/ann/secret/labeled.csv",
    "val": "rafdb:/home/ann/RAF-DB#test",
    "feedback_val": "s3://secret/prefix/halves.csv",
    "unlabeled": ["s3://secret/faces", {"uri": "/home/ann/more"}],
    "pretrained": "hf-hub:org/net@v1",
    "init": None,
    "pseudo": None,
    "out": "/home/ann/out",
    "method": {"name": "online", "ratio": 3},
    "epochs": 12,
}


def validation() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    return evaluate_halves(rng.dirichlet(np.ones(3), 600), labels, np.arange(600) % 2 == 0, CLASSES)


def rows(card: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.replace(r"\|", "¦").strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def card() -> str:
    provenance = {
        "config": ARGUMENTS,
        "counts": {"labeled": 10, "val": 600, "feedback_val": 300, "unlabeled": 7, "pseudo": 0},
        "identity": {"contents": {"labeled": "ab" * 32}},
        "parents": {"licence": "cc-by-nc-4.0", "unlabeled": "cd" * 32, "selection": None},
    }
    return model_card("student", CONFIG, {"val": validation()}, provenance)


def test_the_hub_reads_its_front_matter(card: str) -> None:
    data, val = ModelCard(card).data, validation()
    assert (data.library_name, data.license, data.base_model) == ("timm", "cc-by-nc-4.0", "org/net")
    results = {each.metric_type: (each.metric_value, each.dataset_name) for each in data.eval_results}
    assert results == {kind: (val[key], "rafdb:RAF-DB#test") for kind, key in (("f1", "macro_f1"), ("accuracy",) * 2)}


def test_what_it_says_of_the_data(card: str) -> None:
    assert rows(card, "Training data") == [
        ["labeled", "labeled.csv", "10", "ab" * 8],
        ["val", "rafdb:RAF-DB#test", "300", "n/a"],
        ["feedback_val", "halves.csv", "300", "n/a"],
        ["unlabeled", "faces, more", "7", "cd" * 8],
    ]
    assert "/ann" not in card
    assert "secret" not in card


def test_what_it_says_of_the_training(card: str) -> None:
    assert rows(card, "Training") == [["method", "name=online, ratio=3"], ["epochs", "12"]]
    assert "- Started from: hf-hub:org/net@v1\n- Licence of the start: cc-by-nc-4.0\n" in card


def test_what_it_says_of_the_scores(card: str) -> None:
    val = validation()
    assert rows(card, "Validation") == [
        [name.replace("|", "¦"), *(f"{scores[key]:.4g}" for key in ("precision", "recall", "f1", "support"))]
        for name, scores in val["per_class"].items()
    ]
    assert f"Macro-F1 {val['macro_f1']:.4g}" in card
    assert "a temperature of 1.25" in card
    assert f"{val['choice']['ece']:.4g} before and {val['choice']['ece_calibrated']:.4g} after" in card


def test_what_it_excludes(card: str) -> None:
    excluded = card.partition("## Excluded use")[2]
    for words in ("inner states", "Regulation (EU) 2024/1689", "workplace and in education", "identification"):
        assert words in excluded


def test_what_is_not_known_is_called_so() -> None:
    nothing = model_card("m", CONFIG, {}, {})
    assert nothing.count("Not recorded.") == 3
    assert "- Started from: not recorded\n" in nothing
    assert ModelCard(nothing).data.license is None
    scratch = model_card("m", CONFIG, {"val": {"macro_f1": 0.5}}, {"config": ARGUMENTS | {"pretrained": None}})
    assert "- Started from: random weights\n" in scratch
    unknown = model_card("m", CONFIG, {}, {"config": {"init": "/home/ann/teacher"}, "parents": {"licence": None}})
    assert "- Started from: teacher\n- Licence of the start: unknown: check the terms of the start\n" in unknown


def test_pseudo_labels_name_their_teachers() -> None:
    selection = {"accepted": 5, "considered": 9, "teachers": ["01", "23"]}
    provenance = {"config": {"pseudo": "/a/selection"}, "counts": {"pseudo": 5}, "parents": {"selection": selection}}
    assert "The pseudo-labels are 5 of 9 predictions by 01, 23." in model_card("m", CONFIG, {}, provenance)


def test_it_is_no_part_of_the_model(tmp_path: Path) -> None:
    """Neither of its id, nor of what has to be there."""
    saved = tiny_model(str(tmp_path / "mine"), metrics={"val": validation()})
    assert (tmp_path / "mine" / "README.md").read_text() == model_card("mine", saved.config, saved.metrics, {})
    older = Path(shutil.copytree(saved.uri, tmp_path / "older"))
    (older / "README.md").unlink()
    assert open_artifact(str(older)).id == saved.id
