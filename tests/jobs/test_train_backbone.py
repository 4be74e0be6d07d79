"""What the arguments of a training point at: which faces choose, which are fed back, and what is refused."""

import logging
import shutil
from pathlib import Path

import pytest

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_inputs import open_inputs, warn_of_doubts
from ray_fer.jobs.train_backbone import train_backbone
from tests.system.jobs import refusal
from tests.training.toy import config, write_faces, write_selection


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder / "train", (4, 4, 4), seed=1)
    write_faces(folder / "val", (20, 10, 1), seed=2)
    write_faces(folder / "more", (6, 6, 6), seed=3)
    write_selection(folder / "selection", folder / "more")
    return folder


def test_one_set_is_cut_in_two(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs = open_inputs(config(faces))
    assert inputs.val.take(inputs.feedback_rows).counts().tolist()[:2] == [10, 5]
    assert len(inputs.val) == 31
    warn_of_doubts(inputs)
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        " only one half of it has any of happiness: feedback or choice is blind there"
    ]


def test_a_feedback_on_too_few_faces_is_said(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    warn_of_doubts(open_inputs(config(faces, f"pseudo={faces / 'selection'}")))
    assert "faces in its feedback half; the feedback acts on no less than 100" in caplog.text


def test_two_sets_are_not_cut(faces: Path) -> None:
    inputs = open_inputs(config(faces, f"feedback_val={faces / 'more' / 'manifest.csv'}"))
    chosen, fed_back = inputs.val.take(~inputs.feedback_rows), inputs.val.take(inputs.feedback_rows)
    assert {Path(uri).parent.name for uri in chosen.uris} == {"val"}
    assert {Path(uri).parent.name for uri in fed_back.uris} == {"more"}
    assert (len(chosen), len(fed_back)) == (31, 18)


@pytest.mark.parametrize("other", ["train", "val"])
def test_the_feedback_set_is_no_other_set(faces: Path, other: str) -> None:
    name = {"train": "labeled", "val": "val"}[other]
    with pytest.raises(UserError, match=rf"picture .* in both {name} and feedback_val: the score would be a leak"):
        open_inputs(config(faces, f"feedback_val={faces / other / 'manifest.csv'}"))


def test_a_set_of_one_subject_cannot_be_cut(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces / "val", tmp_path / "val")
    manifest = tmp_path / "val" / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{header},subject", *(f"{row},ada" for row in rows)]) + "\n")
    with pytest.raises(UserError, match="all pictures are of one subject"):
        open_inputs(config(faces, f"val={manifest}"))


@pytest.mark.parametrize("parts", ["[loss]", "thresholds"])
def test_parts_of_the_feedback_have_names(parts: str) -> None:
    with pytest.raises(UserError, match="feedback_parts"):
        load_config("train_backbone", ["labeled=a", "val=b", "out=c", f"feedback_parts={parts}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["batch_size=1"],
            "batch_size=1: backbone=test_resnet cannot learn from one picture of 32 px a step and worker",
        ),
        (["batch_size=3", "workers=2"], "batch_size=3: backbone=test_resnet cannot learn from one picture"),
        (["batch_size=1", "workers=2"], "batch_size=1: fewer labelled faces in a step than workers=2"),
    ],
)
def test_steps_of_too_few_faces(
    arguments: list[str], message: str, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = [f"labeled={faces}/train/manifest.csv", f"val={faces}/val/manifest.csv", f"out={tmp_path}/out"]
    given = [*places, "backbone=test_resnet", "image_size=32", *arguments]
    assert refusal("train_backbone", train_backbone, given, caplog).startswith(message)
    assert not (tmp_path / "out").exists(), "the next command would be refused as another"
