"""What a model is validated on is not what it is trained on, whatever the pictures are called."""

import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_fer.errors import UserError
from ray_fer.training.inputs import list_unlabeled, open_inputs, read_unlabeled
from tests.training.toy import config, write_faces


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    for seed, name in enumerate(("train", "val", "halves", "more")):
        write_faces(tmp_path / name, (4, 4, 4), seed)
    return tmp_path


def unlabeled(faces: Path, *sources: Path) -> list[str]:
    """Names of the faces that a run would be given."""
    places = f"unlabeled=[{','.join(map(str, sources))}]"
    inputs = open_inputs(config(faces, "recipe=online", places, f"feedback_val={faces / 'halves' / 'manifest.csv'}"))
    count = list_unlabeled(inputs, str(faces / "run"))
    listed = read_unlabeled(str(faces / "run"))
    assert len(listed) == count
    return [Path(uri).name for uri in listed]


def test_copies_of_labelled_faces_are_not_unlabeled(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    expected = unlabeled(faces, faces / "more")
    assert len(expected) == 12
    assert "copies" not in caplog.text
    for name in ("train", "val", "halves"):
        shutil.copy(faces / name / "anger-0.png", faces / "more" / f"as-if-new-{name}.png")
    assert unlabeled(faces, faces / "more") == expected
    assert "unlabeled: 3 faces that are copies of faces of labeled or val are left out" in caplog.text


def test_copies_in_a_table_are_found(faces: Path) -> None:
    pictures = [faces / "more" / "anger-1.png", faces / "val" / "anger-1.png"]
    pq.write_table(pa.table({"image": [path.read_bytes() for path in pictures]}), faces / "faces.parquet")
    assert unlabeled(faces, faces / "faces.parquet") == ["faces.parquet#column=image&row=0"]


def test_nothing_but_copies(faces: Path) -> None:
    shutil.copytree(faces / "val", faces / "copy")
    with pytest.raises(UserError, match="unlabeled: no face beside those with a label"):
        unlabeled(faces, faces / "copy")
