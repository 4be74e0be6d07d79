from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.decode import decode_into
from ray_fer.errors import UserError
from ray_fer.jobs.evaluate import evaluate, labelled_for
from ray_fer.models.artifact import Artifact, load_model
from ray_fer.models.teacher import open_teacher
from tests.images import picture, tiny_model
from tests.onnx_nets import ferplus

CLASSES = ("anger", "happiness", "neutral")  # not the package's order


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("model") / "m"), classes=CLASSES)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(7):
        (folder / f"{seed}.jpg").write_bytes(picture(seed))
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


def manifest(pictures: Path, rows: list[tuple[str, ...]], header: str = "path,label") -> str:
    text = "\n".join([header, *(",".join((str(pictures / row[0]), *row[1:])) for row in rows)])
    uri = f"{pictures}/{abs(hash(text))}.csv"
    storage.write_bytes(uri, text.encode())
    return uri


def run(model: Artifact, data: str, out: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    given = (f"model={model.uri}", f"data={data}", f"out={out}", "batch_size=3", *arguments)
    summary = evaluate(load_config("evaluate", given))
    return summary, storage.read_json(f"{out}/metrics.json"), pq.read_table(out / "predictions.parquet")


def directly(model: Artifact, path: Path) -> np.ndarray:
    """Probabilities of one picture as plain torch computes them."""
    pixels = np.empty((32, 32, 3), np.uint8)
    decode_into(path.read_bytes(), pixels)
    x = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    with torch.no_grad():
        return torch.softmax(load_model(model)(x), dim=1)[0].numpy()


def test_everything_about_an_evaluation(model: Artifact, pictures: Path, tmp_path: Path) -> None:
    rows = [("0.jpg", "anger"), ("bad.jpg", "anger"), ("1.jpg", "Happy"), ("gone.jpg", "neutral"), ("2.jpg", "")]
    rows += [(f"{seed}.jpg", "neutral") for seed in range(3, 7)]
    summary, metrics, predictions = run(model, manifest(pictures, rows), tmp_path / "out")

    assert predictions["uri"].to_pylist() == [str(pictures / row[0]) for row in rows]
    assert predictions["label"].to_pylist() == ["anger", "anger", "happiness", "neutral", None] + ["neutral"] * 4
    probs = predictions["probs"].to_pylist()
    for (name, _), ours, label, error in zip(
        rows, probs, predictions["prediction"].to_pylist(), predictions["error"].to_pylist(), strict=True
    ):
        if name in ("bad.jpg", "gone.jpg"):
            assert ours is None
            assert label is None
            assert error
        else:
            wanted = directly(model, pictures / name)
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
            assert label == CLASSES[wanted.argmax()]
            assert error is None

    assert summary["unreadable"] == metrics["n_unreadable"] == 2
    assert [entry["uri"].rsplit("/", 1)[1] for entry in metrics["unreadable"]] == ["bad.jpg", "gone.jpg"]
    assert all(entry["error"] for entry in metrics["unreadable"])
    assert summary["n"] == metrics["n"] == 6
    scored = [(row[1], label) for row, label in zip(rows, predictions["prediction"].to_pylist(), strict=True) if label]
    right = sum(label.lower().replace("happy", "happiness") == found for label, found in scored if label)
    assert summary["accuracy"] == pytest.approx(right / 6)
    assert metrics["classes"] == list(CLASSES)
    assert metrics["model_id"] == model.id
    assert summary["f1"].keys() == set(CLASSES)
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} >= {
        "class_mix.png", "confusion_matrix.png", "coverage.png", "per_class_f1.png", "reliability.png",
    }  # fmt: skip


def test_the_temperature_of_a_model_is_applied(model: Artifact, pictures: Path, tmp_path: Path) -> None:
    data = manifest(pictures, [(f"{seed}.jpg", CLASSES[seed % 3]) for seed in range(7)])
    _, plain, before = run(model, data, tmp_path / "plain")
    calibrated = tiny_model(str(tmp_path / "m"), classes=CLASSES, temperature=3.0)
    summary, metrics, after = run(calibrated, data, tmp_path / "calibrated")
    p = np.array(before["probs"].to_pylist()) ** (1 / 3)
    np.testing.assert_allclose(after["probs"].to_pylist(), p / p.sum(axis=1, keepdims=True), atol=1e-5)
    assert after["prediction"].to_pylist() == before["prediction"].to_pylist()
    assert "temperature" not in plain
    assert metrics["temperature"] == summary["temperature"] == 3.0
    assert metrics["ece_uncalibrated"] == pytest.approx(plain["ece"], abs=1e-4)
    assert metrics["ece"] != pytest.approx(plain["ece"], abs=1e-3)


def test_a_model_of_another_make_is_evaluated(pictures: Path, tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    data = manifest(pictures, [("0.jpg", "sad"), ("1.jpg", "happy")])
    given = (f"model={uri}", f"data={data}", f"out={tmp_path / 'out'}")
    assert evaluate(load_config("evaluate", given))["n"] == 2
    assert storage.read_json(f"{tmp_path}/out/metrics.json")["model_id"] == open_teacher(uri).id


def test_nothing_to_score_is_an_error(model: Artifact, pictures: Path, tmp_path: Path) -> None:
    for rows in ([("bad.jpg", "anger")], [("0.jpg", ""), ("bad.jpg", "neutral")]):
        data = manifest(pictures, rows)
        with pytest.raises(UserError, match=rf"data={data}: no labelled row could be evaluated \(.+\)"):
            run(model, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- labels ---


def labels(pictures: Path, *names: str, classes: tuple[str, ...] = CLASSES) -> list[int]:
    rows = [(f"{number}.jpg", name) for number, name in enumerate(names)]
    found = labelled_for(classes, manifest(pictures, rows), None)
    assert found.classes == classes
    return found.labels.tolist()  # type: ignore[no-any-return]


def test_labels_are_counted_in_the_order_of_the_model(pictures: Path) -> None:
    assert labels(pictures, "neutral", "ANGER", "happy", "", "-1") == [2, 0, 1, -1, -1]


def test_labels_by_index_are_the_model_s(pictures: Path) -> None:
    assert labels(pictures, "0", "2", "1", "") == [0, 2, 1, -1]


def test_custom_classes(pictures: Path) -> None:
    assert labels(pictures, "pain", "anger", "1", classes=("pain", "anger")) == [0, 1, 1]


def test_a_class_that_the_model_lacks_is_named(pictures: Path) -> None:
    with pytest.raises(UserError, match=r"rows of class fear, which the model lacks \(it has anger, happiness, neu"):
        labels(pictures, "neutral", "fear")
    with pytest.raises(UserError, match="row 3: unknown class 'pain'"):
        labels(pictures, "neutral", "pain")
    with pytest.raises(UserError, match="row 2: label 3 is beyond the 3 classes"):
        labels(pictures, "3")


def test_only_the_rows_of_a_split_count(pictures: Path) -> None:
    rows = [("0.jpg", "anger", "val"), ("1.jpg", "fear", "train"), ("2.jpg", "neutral", "val")]
    data = manifest(pictures, rows, "path,label,split")
    found = labelled_for(CLASSES, data, "val")
    assert [uri.rsplit("/", 1)[1] for uri in found.uris] == ["0.jpg", "2.jpg"]
    assert found.labels.tolist() == [0, 2]
    known = manifest(pictures, [("0.jpg", "anger", "val"), ("1.jpg", "neutral", "train")], "path,label,split")
    with pytest.raises(UserError, match=r"no row of split 'test' \(there are: train, val\)"):
        labelled_for(CLASSES, known, "test")


def test_a_folder_per_class(pictures: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("neutral", "angry")):
        storage.write_bytes(f"{tmp_path}/{name}/{number}.jpg", (pictures / f"{number}.jpg").read_bytes())
    found = labelled_for(CLASSES, str(tmp_path), None)
    assert {Path(uri).parent.name: label for uri, label in zip(found.uris, found.labels.tolist(), strict=True)} == {
        "angry": 0,
        "neutral": 2,
    }
