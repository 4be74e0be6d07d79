from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from ray_fer.config import load_config
from ray_fer.data.decode import decode
from ray_fer.errors import UserError
from ray_fer.jobs.evaluate import predict_pictures
from ray_fer.jobs.inspect_teacher import inspect_teacher
from ray_fer.models.teacher import open_teacher
from tests.images import picture, tiny_model
from tests.onnx_nets import ferplus


def inspect(teacher: str, image: Path, out: Path) -> dict[str, Any]:
    return inspect_teacher(load_config("inspect_teacher", [f"teacher={teacher}", f"image={image}", f"out={out}"]))


def test_the_crop_and_what_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(3, size=90))
    own = tiny_model(str(tmp_path / "m"))
    summary = inspect(own.uri, tmp_path / "a.jpg", tmp_path / "own.png")
    seen = np.asarray(Image.open(summary["png"]))
    np.testing.assert_array_equal(seen, decode(picture(3, size=90), 32))
    assert sum(summary["probs"].values()) == pytest.approx(1, abs=1e-3)
    assert summary["label"] == max(summary["probs"], key=summary["probs"].__getitem__)
    assert summary["model_id"] == own.model_id("float32")


def test_grey_and_crop_show(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(3, size=90))
    uri, _ = ferplus(tmp_path, crop=0.8)
    summary = inspect(uri, tmp_path / "a.jpg", tmp_path / "grey.png")
    seen = np.asarray(Image.open(summary["png"])).astype(int)
    wanted = decode(picture(3, size=90), 80)[8:72, 8:72] @ np.array([0.299, 0.587, 0.114])
    assert (summary["image_size"], summary["net_size"]) == (80, 64)
    assert np.abs(seen - wanted[..., None]).max() <= 1


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    with pytest.raises(UserError, match=r"image=.*gone.jpg: no such file"):
        inspect(uri, tmp_path / "gone.jpg", tmp_path / "x.png")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"image=.*bad.jpg: undecodable: not an image"):
        inspect(uri, tmp_path / "bad.jpg", tmp_path / "x.png")
    with pytest.raises(UserError, match=r"teacher=.*gone.onnx: no such file"):
        inspect(f"{tmp_path}/gone.onnx", tmp_path / "bad.jpg", tmp_path / "x.png")


def test_an_output_that_is_not_finite_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    uri, _ = ferplus(tmp_path)
    path = tmp_path / "ferplus.onnx"
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Div", ["before", "before"], ["output"]))
    onnx.save(model, path)
    summary = inspect(uri, tmp_path / "black.png", tmp_path / "x.png")
    assert (summary["label"], summary["probs"]) == (None, None)
    assert summary["error"] == "the model puts out NaN for every class"
    assert (tmp_path / "x.png").exists()
    pixels = np.stack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 9, np.uint8)])
    uris = []
    for number, picture_ in enumerate(pixels):
        uris.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture_).save(uris[-1])
    probs, errors = predict_pictures(open_teacher(uri), uris, 4)
    assert errors == {0: "the model puts out NaN for every class"}
    np.testing.assert_array_equal(np.isnan(probs).all(axis=1), [True, False])
