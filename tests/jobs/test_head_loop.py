"""The fast form of the loop: whose configs it makes, what it refuses, and the soft labels that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from timm.models import save_for_hf

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.evaluate import predict_pictures
from ray_fer.jobs.head_loop import HeadLoop, write_soft_labels
from ray_fer.jobs.lineage import lineage
from ray_fer.jobs.self_train import self_train
from ray_fer.jobs.train_head import train_head
from ray_fer.models.artifact import open_artifact
from ray_fer.selection.file import read_selection
from tests.images import tiny_model
from tests.jobs.test_train_head import QUICK, arguments
from tests.training.toy import CLASSES, write_faces


def asked(folder: Path, *more: str) -> Any:
    places = [f"labeled={folder}/l.csv", f"val={folder}/v.csv", f"source={folder}/more", f"out={folder}/out"]
    return load_config("self_train", [*places, "loop=head", *more])


def test_the_network_starts_from_the_same_net_only_where_it_is_of_its_kind(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=0), str(tmp_path / "net"))
    given = (f"pretrained={tmp_path}/net", "rounds=4", "head.steps=9", "train={epochs: 3}", "teachers=[x.onnx]")
    same = HeadLoop(asked(tmp_path, *given, "distil=test_resnet"))
    head = same.head_config()
    assert (head.rounds, head.steps, head.also, head.out) == (4, 9, ["x.onnx"], f"{tmp_path}/out/head")
    assert head.pretrained == same.distilled_config().pretrained == f"{tmp_path}/net"
    other = HeadLoop(asked(tmp_path, *given, "distil=resnet10t")).distilled_config()
    assert (other.backbone, other.pretrained, other.epochs, other.feedback) == ("resnet10t", None, 3, "none")
    assert other.pseudo == f"{tmp_path}/out/selection"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "loop=head: pretrained: required"),
        (["pretrained=p", "selection.threshold=.5"], "loop=head: selection.threshold: it learns from all faces"),
        (
            ["pretrained=p", "teachers=[{image_size: 64}]"],
            r"loop=head: teachers\[0\]: it takes only models",
        ),
        (["pretrained=p", "head.rounds=3"], "head.rounds: set by the loop"),
        (["pretrained=p", "loop=backbone", "distil=resnet10t"], "distil and head: keys of loop=head"),
    ],
)
def test_what_it_has_no_use_for_is_refused(given: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        self_train(asked(tmp_path, *given))


def test_the_soft_labels_are_those_of_the_heads(tmp_path: Path) -> None:
    for number, place in enumerate(("train", "val", "more"), 1):
        write_faces(tmp_path / place, (6, 6, 6), seed=number)
    tiny_model(str(tmp_path / "a"), 0, CLASSES)
    given = (*QUICK, f"teacher={tmp_path}/a", f"source=[{tmp_path}/more,{tmp_path}/val]", "rounds=1")
    head = open_artifact(train_head(arguments(tmp_path, tmp_path / "head", *given))["model"])
    assert write_soft_labels(head, f"{tmp_path}/selection") == 18
    written = (tmp_path / "selection" / "selection.parquet").stat().st_mtime_ns
    assert write_soft_labels(head, f"{tmp_path}/selection") == 18
    assert (tmp_path / "selection" / "selection.parquet").stat().st_mtime_ns == written
    selection = read_selection(f"{tmp_path}/selection", CLASSES)
    assert selection.uris == sorted(str(path) for path in (tmp_path / "more").glob("*.png"))
    probs, _ = predict_pictures(head, selection.uris, 16)
    assert np.abs(selection.targets - probs).max() < 0.01
    assert selection.plain_weights.tolist() == [1.0] * 18
    told = lineage(load_config("lineage", [f"model={tmp_path}/selection"]))
    assert told["missing"] == []
    assert [(node["kind"], node["uri"]) for node in told["lineage"]["parents"]] == [
        ("predictions", f"{tmp_path}/head/predictions"),
        ("model", str(tmp_path / "head")),
    ]
