from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models import save_for_hf

from ray_fer.errors import UserError
from ray_fer.jobs.inspect_teacher import seen_by_net
from ray_fer.models.artifact import Artifact
from ray_fer.models.engines import Flipped, make_engine
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import OnnxTeacher, Teacher, TimmTeacher, check_teacher, open_teacher
from tests.images import tiny_model
from tests.onnx_nets import FERPLUS_CLASSES, FERPLUS_SIDECAR, ferplus, write_net, write_sidecar

OURS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")


def crops(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def probs(
    teacher: Teacher, pixels: np.ndarray, batch_size: int = 4, flip: bool = False, engine: str = "auto"
) -> np.ndarray:
    how: dict[str, Any] = {"batch_size": batch_size, "device": "cpu", "precision": "float32", "flip": flip}
    logits = make_engine(teacher, engine, **how)(pixels)
    assert logits.dtype == np.float32
    return softmax(logits)


def refusal(uri: Path | str, check: bool = False) -> str:
    teacher = open_teacher(str(uri)) if check else None
    with pytest.raises(UserError) as refused:
        check_teacher(teacher) if teacher else open_teacher(str(uri))
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


# --- ONNX ---


def test_a_net_in_the_style_of_ferplus(tmp_path: Path) -> None:
    uri, weights = ferplus(tmp_path)
    teacher = open_teacher(uri)
    check_teacher(teacher)
    assert isinstance(teacher, OnnxTeacher)
    assert teacher.classes == OURS
    assert teacher.image_size == 64
    pixels = crops(6, 64)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    all_eight = softmax(grey.reshape(6, -1) @ weights)
    kept = [FERPLUS_CLASSES.index(name) for name in OURS]
    wanted = all_eight[:, kept] / all_eight[:, kept].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs(teacher, pixels), wanted, atol=2e-3)
    assert np.ptp(wanted, axis=0).max() > 0.1, "predictions that do not differ would prove nothing"


BGR = {
    "classes": ["Angry", "Happy", "joy", "Not a face"],
    "map": {"Not a face": None},
    "image_size": 24,
    "mean": [100, 110, 120],
    "std": [50, 60, 70],
    "scale": 255,
    "colour": "bgr",
    "layout": "nhwc",
    "output": "probabilities",
}


def test_a_net_that_takes_bgr_nhwc_and_gives_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    weights = write_net(path, ["N", 24, 24, 3], 4, probabilities=True, gain=2)
    write_sidecar(path, BGR)
    teacher = open_teacher(str(path))
    check_teacher(teacher)
    assert teacher.classes == ("anger", "happiness")
    pixels = crops(5, 24)
    inputs = (pixels[..., ::-1] - np.array(BGR["mean"])) / np.array(BGR["std"])
    four = softmax(inputs.reshape(5, -1) @ weights)
    wanted = np.stack([four[:, 0], four[:, 1] + four[:, 2]], axis=1)
    np.testing.assert_allclose(probs(teacher, pixels), wanted / wanted.sum(axis=1, keepdims=True), atol=1e-5)


def test_batch_sizes_do_not_matter(tmp_path: Path) -> None:
    one_by_one = open_teacher(ferplus(tmp_path)[0])
    path = tmp_path / "free.onnx"
    write_net(path, ["N", 24, 24, 3], 4, probabilities=True)
    write_sidecar(path, BGR)
    for teacher in (one_by_one, open_teacher(str(path))):
        pixels = crops(7, teacher.image_size)
        whole = probs(teacher, pixels, 7)
        for batch_size in (1, 3, 16):
            np.testing.assert_allclose(probs(teacher, pixels, batch_size), whole, atol=1e-5)


def test_one_worker_holds_several(tmp_path: Path) -> None:
    path = tmp_path / "free.onnx"
    write_net(path, ["N", 24, 24, 3], 4, probabilities=True)
    write_sidecar(path, BGR)
    teachers = [open_teacher(ferplus(tmp_path)[0]), open_teacher(str(path)), tiny_model(str(tmp_path / "own"))]
    how: dict[str, Any] = {"batch_size": 2, "device": "cpu", "precision": "float32"}
    engines = [
        make_engine(teacher, "torch" if isinstance(teacher, Artifact) else "openvino", **how) for teacher in teachers
    ]
    first = [engine(crops(2, teacher.image_size)) for engine, teacher in zip(engines, teachers, strict=True)]
    again = [engine(crops(2, teacher.image_size)) for engine, teacher in zip(engines, teachers, strict=True)]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": None}, "layout: null: "),
        ({"classes": [*FERPLUS_CLASSES, "unknown"]}, "classes: unknown class 'unknown' .* say in map what it counts"),
        ({"classes": FERPLUS_CLASSES[:7], "map": {}}, r"classes: 7 names: the output of .* is \[1,8\]"),
        ({"classes": ["happy"] * 8, "map": {}}, "classes: 'happy' is there twice"),
        ({"map": {"contempt": "othr"}}, "map: contempt: unknown class 'othr'"),
        ({"map": {"NF": None}}, "map: 'NF' is not one of the classes"),
        ({"map": dict.fromkeys(FERPLUS_CLASSES[1:])}, "map: leaves fewer than two classes"),
        ({"image_size": 48}, r"image_size: 48: the input of .* is \[1,1,64,64\]"),
        ({"colour": "rgb"}, r"colour: rgb: the input of .* is \[1,1,64,64\]"),
        ({"layout": "nhwc", "image_size": 1}, r"colour: grey|layout: nhwc"),
        ({"output": "probabilities"}, "output: probabilities: by what .* puts out, they are not probabilities"),
        ({"output_name": "softmax"}, r"output_name: 'softmax' is not an output of .* \(output\)"),
        ({"std": [1, 1, 1]}, "std: 3 numbers for 1 channel$"),
        ({"std": 0}, "std: 0: .*must be above 0"),
        ({"colr": "grey"}, "colr: no such key, did you mean colour"),
        ({"scale": 128}, "scale: 128: "),
        ({"scale": True}, "scale: 'true': "),
        (
            {"scale": 1, "mean": 123.7},
            r"mean: 123.7: not within the pixels' range, 0 to 1 \(for pixels up to 255 say sc",
        ),
        ({"mean": -1}, "mean: -1: not within the pixels' range, 0 to 255$"),
        ({"mean": 256}, "mean: 256: not within the pixels' range, 0 to 255$"),
        ({"mean": math.nan}, "mean.*: nan: .*finite number"),
        ({"mean": "0.5"}, "mean.*: '0.5': .*valid number"),
        ({"mean": True}, "mean.*: 'true': .*valid number"),
        ({"mean": [1, 2, 3, 4]}, "mean: .*at most 3"),
        ({"mean": []}, "mean: .*at least 1"),
        ({"mean": {"r": 1}}, "mean.*: .*valid number"),
        ({"std": math.inf}, "std.*: inf: .*finite number"),
        ({"std": -1}, "std: -1: .*must be above 0"),
        ({"scale": 1, "std": 58}, "std: 58: of pixels from 0 to 1 it makes a range of 0.01724, which no net"),
        ({"std": 0.229}, "std: 0.229: of pixels from 0 to 255 it makes a range of 1114, which no net"),
        ({"temperature": math.inf}, "temperature: inf: "),
        ({"temperature": math.nan}, "temperature: nan: "),
        ({"temperature": 0}, "temperature: 0: "),
        ({"temperature": -1}, "temperature: -1: "),
        ({"temperature": 1e-30}, "temperature: 1e-30: "),
        ({"crop": 1.5}, "crop: 1.5: "),
        ({"crop": 0}, "crop: 0: "),
        ({"crop": math.nan}, "crop: nan: "),
        ({"crop": 0.01}, "crop: 0.01: crops of 6400 pixels, more than 2048$"),
        ({"image_size": 0}, "image_size: 0: "),
        ({"image_size": "64"}, "image_size: '64': "),
        ({"image_size": 10**6}, "image_size: 1000000: "),
        ({"image_size": True}, "image_size: 'true': "),
        ({"image_size": [64, 64]}, r"image_size: \['64', '64'\]: "),
        ({"classes": "happy"}, "classes: 'happy': "),
        ({"classes": [*FERPLUS_CLASSES[:7], None]}, "classes.7: null: "),
        ({"map": ["contempt"]}, "map: "),
    ],
)
def test_a_wrong_entry_is_one_line_that_names_file_and_key(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    uri, _ = ferplus(tmp_path, **changes)
    found = refusal(uri, check=message.endswith("are not probabilities"))
    assert found.startswith(f"{tmp_path}/ferplus.yaml: ")
    assert re.search(message, found), found


@pytest.mark.parametrize("key", ["classes", "image_size", "mean", "std", "scale", "colour", "layout", "output"])
def test_a_missing_entry_is_one_line_too(key: str, tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    write_sidecar(Path(uri), {name: value for name, value in FERPLUS_SIDECAR.items() if name != key})
    assert f"{tmp_path}/ferplus.yaml: {key}: required, say {key}: …" == refusal(uri)


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_net(path, ["N", 24, 24, 3], 4)
    write_sidecar(path, BGR | {"layout": "nchw", "output": "logits"})
    assert refusal(path).startswith(f"{tmp_path}/net.yaml: layout: nchw: the input of {path} is ")


def test_probabilities_do_not_pass_for_logits(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_net(path, ["N", 24, 24, 3], 4, probabilities=True)
    write_sidecar(path, BGR | {"output": "logits"})
    assert refusal(path, check=True).endswith(f"output: logits: by what {path} puts out, they are probabilities")


def test_files_that_are_no_teacher(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.onnx") == f"{tmp_path}/gone.onnx: no such file"
    uri, _ = ferplus(tmp_path)
    sidecar = tmp_path / "ferplus.yaml"
    sidecar.write_text("- a list")
    assert refusal(uri) == f"{sidecar}: not a YAML mapping of keys to values"
    sidecar.write_text("a: [")
    assert refusal(uri).startswith(f"{sidecar}: not YAML (")
    sidecar.unlink()
    assert refusal(uri).startswith(f"{sidecar}: no such file, or empty; it has to describe {uri}")
    write_sidecar(Path(uri), FERPLUS_SIDECAR)
    Path(uri).write_bytes(b"no protobuf at all")
    assert refusal(uri).startswith(f"{uri}: cannot be read as ONNX (")


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    whole = probs(open_teacher(uri), crops(2, 64))
    model = onnx.load(uri)
    onnx.save(model, uri, save_as_external_data=True, location="ferplus.onnx.data", size_threshold=0)
    outside = open_teacher(uri)
    np.testing.assert_array_equal(probs(outside, crops(2, 64)), whole)
    data = tmp_path / "ferplus.onnx.data"
    weights = bytearray(data.read_bytes())
    weights[5] ^= 1
    data.write_bytes(weights)
    assert open_teacher(uri).id != outside.id
    data.unlink()
    assert refusal(uri) == f"{uri}: its weights are in ferplus.onnx.data, which is missing"


def test_weights_within_the_folder_by_whatever_spelling(tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    whole = probs(open_teacher(uri), crops(2, 64))
    (tmp_path / "parts").mkdir()
    for place in ("./d.data", "parts/d.data", "parts/../d.data"):
        model = onnx.load(uri)
        onnx.save(model, uri, save_as_external_data=True, location="d.data", size_threshold=0)
        (tmp_path / "d.data").rename(tmp_path / place)
        relocate(uri, place)
        np.testing.assert_array_equal(probs(open_teacher(uri), crops(2, 64)), whole)
        model.ParseFromString(Path(uri).read_bytes())
        onnx.external_data_helper.load_external_data_for_model(model, str(tmp_path))
        onnx.save(model, uri)


@pytest.mark.parametrize("place", ["../d.data", "/etc/hostname", "parts/../../d.data", ".", ".."])
def test_weights_outside_the_folder_are_refused(place: str, tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    onnx.save(onnx.load(uri), uri, save_as_external_data=True, location="d.data", size_threshold=0)
    relocate(uri, place)
    assert re.search(r"^.*ferplus.onnx: its weights are in '.*', which is not within its folder$", refusal(uri))


def relocate(uri: str, place: str) -> None:
    model = onnx.load(uri, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    Path(uri).write_bytes(model.SerializeToString())


def test_external_data_that_is_cut_is_refused(tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    onnx.save(onnx.load(uri), uri, save_as_external_data=True, location="d.data", size_threshold=0)
    (tmp_path / "d.data").write_bytes((tmp_path / "d.data").read_bytes()[:1000])
    assert refusal(uri).startswith(f"{uri}: cannot be read as ONNX (")


def test_broken_weights_are_refused_with_their_name(tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    model = onnx.load(uri)
    (tensor,) = (each for each in model.graph.initializer if each.name == "weights")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[7, 3] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "weights"))
    onnx.save(model, uri)
    assert refusal(uri) == f"{uri}: its weights are broken: 1 of {values.size} numbers of weights are NaN"


@pytest.mark.parametrize("colour", ["rgb", "grey"])
def test_a_net_of_integers_gets_the_picture_s_own(colour: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    channels = 1 if colour == "grey" else 3
    weights = write_net(path, ["N", channels, 24, 24], 4, gain=0.05, kind=onnx.TensorProto.UINT8)
    said = BGR | {"colour": colour, "layout": "nchw", "output": "logits", "mean": 0, "std": 1}
    write_sidecar(path, said)
    teacher = open_teacher(str(path))
    check_teacher(teacher)
    pixels = crops(5, 24).astype(float)
    seen = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))[..., None] if colour == "grey" else pixels
    four = softmax(seen.transpose(0, 3, 1, 2).reshape(5, -1) @ weights)
    wanted = np.stack([four[:, 0], four[:, 1] + four[:, 2]], axis=1)
    np.testing.assert_allclose(probs(teacher, crops(5, 24)), wanted / wanted.sum(axis=1, keepdims=True), atol=2e-3)
    for change, message in (
        ({"scale": 1}, r"scale: 1: the input of .* is of integers \(u8\), so white is 255$"),
        ({"std": 2}, r"std: 2: the input of .* is of integers"),
        ({"mean": 128}, r"mean: 128: the input of .* is of integers \(u8\) from 0 to 255$"),
    ):
        write_sidecar(path, said | change)
        assert re.search(f"^{path.with_suffix('.yaml')}: {message}", refusal(path))


def test_a_net_whose_pictures_depend_on_one_another_sees_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_net(path, ["N", 24, 24, 3], 4, by_batch=True)
    write_sidecar(path, BGR | {"output": "logits"})
    teacher = open_teacher(str(path))
    pixels = crops(7, 24)
    whole = probs(teacher, pixels, 7)
    np.testing.assert_array_equal(whole, probs(teacher, pixels, 3))
    np.testing.assert_array_equal(whole[2:3], probs(teacher, pixels[2:3], 4))


def test_a_net_for_a_fixed_number_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    weights = write_net(path, [3, 24, 24, 3], 4, flat=3)
    write_sidecar(path, BGR | {"output": "logits"})
    inputs = (crops(5, 24)[..., ::-1] - np.array(BGR["mean"])) / np.array(BGR["std"])
    four = softmax(inputs.reshape(5, -1) @ weights)
    wanted = np.stack([four[:, 0], four[:, 1] + four[:, 2]], axis=1)
    teacher = open_teacher(str(path))
    check_teacher(teacher)
    np.testing.assert_allclose(probs(teacher, crops(5, 24)), wanted / wanted.sum(axis=1, keepdims=True), atol=1e-5)


def test_where_an_onnx_net_runs(tmp_path: Path) -> None:
    teacher = open_teacher(ferplus(tmp_path)[0])
    for how, key in (
        ({"engine": "torch"}, "engine=torch"),
        ({"device": "cuda"}, "device=cuda"),
        ({"precision": "bfloat16"}, "precision=bfloat16"),
    ):
        with pytest.raises(UserError, match=f"{key}: .*ferplus.onnx is an ONNX net"):
            check_teacher(teacher, **how)


# --- identity ---


def test_the_id_is_of_weights_and_sidecar(tmp_path: Path) -> None:
    uri, _ = ferplus(tmp_path)
    first = open_teacher(uri)
    sidecar = tmp_path / "ferplus.yaml"
    sidecar.write_text(f"# a comment\n{sidecar.read_text()}")
    assert open_teacher(uri).id == first.id
    ids = {first.id}
    for changes in ({"map": {"contempt": "other"}}, {"mean": 1}, {"std": 2}, {"crop": 0.9}, {"temperature": 1.5}):
        write_sidecar(Path(uri), FERPLUS_SIDECAR | changes)
        ids.add(open_teacher(uri).id)
    write_sidecar(Path(uri), FERPLUS_SIDECAR)
    assert open_teacher(uri).id == first.id
    write_net(Path(uri), [1, 1, 64, 64], 8, flat=1, seed=1)
    ids.add(open_teacher(uri).id)
    assert len(ids) == 7
    assert first.model_id("float32") == f"{first.id}-float32"
    assert first.model_id("float32", flip=True) == f"{first.id}-float32-flip"


# --- timm ---


def timm_folder(folder: Path, seed: int = 0, **config: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=4).eval()
    with torch.no_grad():
        model.get_classifier().weight.mul_(4)
    facts = {"label_names": ["sad", "Angry", "surprised", "neutral"]} | config
    save_for_hf(model, str(folder), {key: value for key, value in facts.items() if value is not None})
    return model


NORMALISED = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "input_size": (3, 40, 40), "crop_pct": 0.8}


def test_a_timm_folder_speaks_for_itself(tmp_path: Path) -> None:
    model = timm_folder(tmp_path / "m", pretrained_cfg=NORMALISED)
    teacher = open_teacher(str(tmp_path / "m"))
    assert isinstance(teacher, TimmTeacher)
    assert teacher.classes == ("neutral", "anger", "sadness", "surprise")
    assert (teacher.image_size, teacher.net_size) == (50, 40)
    pixels = crops(5, 50)
    inputs = (pixels[:, 5:45, 5:45] / 255 - np.array(NORMALISED["mean"])) / np.array(NORMALISED["std"])
    with torch.inference_mode():
        logits = model(torch.from_numpy(inputs.astype(np.float32)).permute(0, 3, 1, 2)).numpy()
    wanted = softmax(logits)[:, [3, 1, 0, 2]]
    np.testing.assert_allclose(probs(teacher, pixels), wanted, atol=1e-4)
    np.testing.assert_allclose(probs(teacher, pixels, engine="torch"), wanted, atol=1e-4)
    assert np.ptp(wanted, axis=0).max() > 0.005


def test_a_folder_in_the_layout_of_hugging_face(tmp_path: Path) -> None:
    model = timm_folder(tmp_path, label_names=None)
    assert refusal(tmp_path) == f"{tmp_path}/teacher.yaml: classes: required, say classes: …"
    config = json.loads((tmp_path / "config.json").read_text())
    del config["pretrained_cfg"]
    labels = {"10": "fear", "2": "neutral", "0": "happy", "1": "sad"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": labels, "model_type": "timm_wrapper"}))
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    teacher = open_teacher(str(tmp_path))
    assert teacher.classes == ("neutral", "fear", "happiness", "sadness")
    pixels = crops(3, 32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    np.testing.assert_allclose(probs(teacher, pixels, engine="torch"), softmax(logits)[:, [2, 3, 0, 1]], atol=1e-4)


def test_a_sidecar_stands_above_the_folder(tmp_path: Path) -> None:
    timm_folder(tmp_path, label_names=["a", "b", "c", "my own"])
    assert refusal(tmp_path).startswith(f"{tmp_path}/teacher.yaml: classes: unknown class 'a'")
    mapped = {"map": {"a": "happy", "b": "anger", "c": None, "my own": "my own"}, "crop": 1, "image_size": 48}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(mapped))
    teacher = open_teacher(str(tmp_path))
    assert teacher.classes == ("anger", "happiness", "my own")
    assert teacher.image_size == teacher.net_size == 48


def test_a_checkpoint_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 3},
               tmp_path / "w.pth")  # fmt: skip
    said = {"architecture": "test_vit", "classes": ["sad", "happy", "angry"], "image_size": 32, "mean": 0.5, "std": 0.5}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(said))
    pixels = crops(3, 32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    for name in ("w.safetensors", "w.pth"):
        teacher = open_teacher(str(tmp_path / name))
        assert teacher.classes == ("anger", "happiness", "sadness")
        np.testing.assert_allclose(probs(teacher, pixels, engine="torch"), softmax(logits)[:, [2, 1, 0]], atol=1e-5)


def broken(folder: Path, change: dict[str, Any], weights: Any = None) -> str:
    model = timm.create_model("test_resnet", num_classes=3)
    torch.save(model.state_dict() if weights is None else weights, folder / "w.pt")
    said = {"architecture": "test_resnet", "classes": ["sad", "happy", "angry"], "image_size": 32, "mean": 0, "std": 1}
    (folder / "w.yaml").write_text(yaml.safe_dump(said | change))
    with pytest.raises(UserError) as refused:
        probs(open_teacher(str(folder / "w.pt")), crops(1, 32), engine="torch")
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


class Unpickled:
    """What weights-only loading must not make."""


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    w = f"{tmp_path}/w"
    assert broken(tmp_path, {"classes": ["sad", "happy"]}).startswith(
        f"{w}.pt: its weights do not fit a test_resnet of 2 classes at 32 px: "
    )
    assert broken(tmp_path, {"architecture": "test_resnett"}).startswith(f"{w}.yaml: architecture: backbone=test_res")
    assert broken(tmp_path, {"architecture": None}).startswith(f"{w}.yaml: architecture: null: ")
    assert "weights_only" in broken(tmp_path, {}, Unpickled())


def test_a_model_of_another_library_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": {"0": "sad"}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert refusal(tmp_path).startswith(f"{tmp_path}/config.json: a vit without a timm architecture; supported are ")
    (tmp_path / "model.safetensors").unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path}: no weights there (looked for model.safetensors, ")


def test_our_own_artifact_is_opened_as_such(tmp_path: Path) -> None:
    own = tiny_model(str(tmp_path / "own"), classes=("happiness", "my own", "anger"))
    teacher = open_teacher(own.uri)
    assert isinstance(teacher, Artifact)
    assert (teacher.id, teacher.classes) == (own.id, own.classes)
    (tmp_path / "own" / "teacher.yaml").write_text(yaml.safe_dump({"map": {"my own": None}}))
    assert open_teacher(own.uri).classes == ("anger", "happiness")


# --- what every engine can ---


def test_flip_is_the_mean_of_both_sides(tmp_path: Path) -> None:
    teacher = open_teacher(ferplus(tmp_path)[0])
    pixels = crops(5, 64)
    wanted = (probs(teacher, pixels) + probs(teacher, pixels[:, :, ::-1])) / 2
    np.testing.assert_allclose(probs(teacher, pixels, flip=True), wanted, atol=1e-6)
    np.testing.assert_allclose(probs(teacher, pixels[:, :, ::-1], flip=True), wanted, atol=1e-6)
    assert np.abs(probs(teacher, pixels) - wanted).max() > 1e-3


def test_flip_of_a_certain_net_stays_a_number() -> None:
    certain = Flipped(lambda pixels: np.tile(np.array([1000.0, 0.0], np.float32), (len(pixels), 1)))
    assert np.isfinite(certain(crops(2, 8))).all()


@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_what_the_net_sees_is_the_crop(colour: str, layout: str, tmp_path: Path) -> None:
    channels = 1 if colour == "grey" else 3
    shape = ["N", channels, 24, 24] if layout == "nchw" else ["N", 24, 24, channels]
    write_net(tmp_path / "net.onnx", shape, 4, gain=0.1)
    numbers = {"mean": 0.4, "std": 0.2, "scale": 1} if colour == "grey" else {}
    said = BGR | {"output": "logits", "colour": colour, "layout": layout, "crop": 0.75} | numbers
    write_sidecar(tmp_path / "net.onnx", said)
    teacher = open_teacher(str(tmp_path / "net.onnx"))
    assert (teacher.image_size, teacher.net_size) == (32, 24)
    pixels = crops(2, 32)
    seen = seen_by_net(teacher, pixels)
    centre = pixels[:, 4:28, 4:28]
    if colour == "grey":
        grey = centre @ np.array([0.299, 0.587, 0.114])
        assert np.abs(seen - grey[..., None]).max() <= 1
    else:
        np.testing.assert_array_equal(seen, centre)


def test_what_our_own_net_sees(tmp_path: Path) -> None:
    pixels = crops(2, 32)
    np.testing.assert_array_equal(seen_by_net(tiny_model(str(tmp_path)), pixels), pixels)
