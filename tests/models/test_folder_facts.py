from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ray_fer.errors import UserError
from ray_fer.jobs.inspect_teacher import seen_by_net
from ray_fer.models.artifact import open_artifact
from ray_fer.models.engines import make_engine
from ray_fer.models.softmax import softmax
from ray_fer.models.teacher import Teacher, TimmTeacher, open_teacher

NAMES = ["sad", "happy", "angry"]
PRETRAINED: dict[str, Any] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
CONFIG: dict[str, Any] = {"architecture": "test_resnet", "num_classes": 3, "label_names": NAMES}


def folder(place: Path, config: Any, processor: Any = None, sidecar: Any = None, weights: Any = None) -> str:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, document in (("preprocessor_config.json", processor), ("teacher.yaml", sidecar)):
        if document is not None:
            (place / name).write_text(json.dumps(document))
    save_file(weights or {"w": torch.ones(2)}, place / "model.safetensors")
    return str(place)


def timm_said(**changes: Any) -> dict[str, Any]:
    return CONFIG | {"pretrained_cfg": PRETRAINED | changes}


@pytest.mark.parametrize(
    ("config", "processor", "size", "mean"),
    [
        (timm_said(), None, 32, 0.5),
        (timm_said(input_size=224), None, 224, 0.5),
        (timm_said(input_size=[3, 224.0, 224.0]), None, 224, 0.5),
        (timm_said(input_size=[96, 96]), None, 96, 0.5),
        (timm_said(input_size=None), {"size": 40}, 40, 0.5),
        (timm_said(input_size=None), {"size": {"shortest_edge": 40}}, 40, 0.5),
        (timm_said(mean=None), {"image_mean": [0.1, 0.1, 0.1]}, 32, 0.1),
        (timm_said(mean=0.25), None, 32, 0.25),
        (timm_said(mean=[0]), None, 32, 0),
        (CONFIG | PRETRAINED, None, 32, 0.5),
        (CONFIG | {"pretrained_cfg": None} | PRETRAINED, None, 32, 0.5),
        (CONFIG | {"pretrained_cfg": {}}, {"pretrained_cfg": PRETRAINED}, 32, 0.5),
        (timm_said() | {"label_names": None, "id2label": {"2": "angry", "0": "sad", "1": "happy"}}, None, 32, 0.5),
        (timm_said() | {"label_names": None, "id2label": NAMES}, None, 32, 0.5),
        (timm_said() | {"label_names": {"0": "sad", "10": "angry", "9": "happy"}}, None, 32, 0.5),
        (timm_said() | {"model_args": None, "num_classes": None, "temperature": None}, None, 32, 0.5),
    ],
)
def test_what_is_said_in_several_ways(config: Any, processor: Any, size: int, mean: float, tmp_path: Path) -> None:
    teacher = open_teacher(folder(tmp_path, config, processor))
    assert isinstance(teacher, TimmTeacher)
    assert (teacher.sidecar.classes, teacher.net_size, teacher.mean) == (NAMES, size, (mean,) * 3)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_other_encodings(encoding: str, tmp_path: Path) -> None:
    uri = folder(tmp_path, timm_said())
    (tmp_path / "config.json").write_bytes(json.dumps(timm_said()).encode(encoding))
    assert open_teacher(uri).classes == ("anger", "happiness", "sadness")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], "config.json: not a JSON object but a list"),
        ("null", "config.json: not a JSON object but a NoneType"),
        ("{", "config.json: not JSON ("),
        ("[" * 100_000, "config.json: not JSON ("),
        (timm_said(input_size=[3, 224, 192]), "config.json: pretrained_cfg.input_size: [3, 224, 192]: not square; "),
        (timm_said(input_size="224"), "config.json: pretrained_cfg.input_size: '224': not a size in pixels"),
        (timm_said(input_size=[3]), "config.json: pretrained_cfg.input_size: [3]: not a size in pixels"),
        (timm_said(input_size=[3, True, True]), "config.json: pretrained_cfg.input_size: [3, True, True]: not a size"),
        (timm_said(input_size=[4, 32, 32]), "config.json: pretrained_cfg.input_size: 4: a teacher has three"),
        (timm_said(input_size=[3, 0, 0]), "config.json: pretrained_cfg.input_size: 0: "),
        (timm_said(input_size=[3, 10**6, 10**6]), "config.json: pretrained_cfg.input_size: 1000000: "),
        (timm_said(input_size={"h": 32}), "config.json: pretrained_cfg.input_size: {'h': 32}: not a size in pixels"),
        (timm_said(mean=[0.5] * 4), "config.json: pretrained_cfg.mean: [0.5, 0.5, 0.5, 0.5]: "),
        (timm_said(mean=[0.5] * 2), "config.json: pretrained_cfg.mean: 2 numbers for 3 channels"),
        (timm_said(mean=["0.5"] * 3), "config.json: pretrained_cfg.mean: ['0.5', '0.5', '0.5']: "),
        (timm_said(mean=[123.7] * 3), "config.json: pretrained_cfg.mean: 123.7: not within the pixels' range, 0 to 1"),
        (timm_said(mean=[math.nan] * 3), "config.json: pretrained_cfg.mean: [nan, nan, nan]: "),
        (timm_said(std=[0, 0, 0]), "config.json: pretrained_cfg.std: [0, 0, 0]: "),
        (timm_said(std=58.4), "config.json: pretrained_cfg.std: 58.4: of pixels from 0 to 1 it makes a range of "),
        (timm_said(crop_pct=1.15), "config.json: pretrained_cfg.crop_pct: 1.15: "),
        (timm_said(crop_pct="1"), "config.json: pretrained_cfg.crop_pct: '1': "),
        (timm_said() | {"temperature": math.inf}, "config.json: temperature: inf: "),
        (timm_said() | {"pretrained_cfg": [1]}, "config.json: pretrained_cfg: [1]: not an object"),
        (timm_said() | {"model_args": [1]}, "config.json: model_args: [1]: not an object"),
        (timm_said() | {"model_args": {"pretrained": True}}, "config.json: model_args.pretrained: True: does not make"),
        (timm_said() | {"model_args": {"in_chans": 4}}, "config.json: model_args.in_chans: 4: a teacher has three"),
        (timm_said() | {"architecture": 7}, "config.json: architecture: 7: "),
        (timm_said() | {"num_classes": "3"}, "teacher.yaml: classes: 3 names for num_classes '3' of config.json"),
        (timm_said() | {"label_names": ["a", 1, 2]}, "config.json: label_names: ['a', 1, 2]: not a list of names"),
        (timm_said() | {"label_names": "happy"}, "config.json: label_names: 'happy': not a list of names"),
        (timm_said() | {"label_names": ["sad", "sad", "happy"]}, "config.json: label_names: "),
        (timm_said() | {"label_names": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "config.json: id2label: "),
        (timm_said() | {"label_names": None, "id2label": {"a": "sad", "b": "happy"}}, "config.json: id2label: "),
        (timm_said() | {"label_names": None, "id2label": {"0": "sad", "00": "happy"}}, "config.json: id2label: "),
        (timm_said() | {"label_names": None}, "teacher.yaml: classes: required, say classes: …"),
    ],
)
def test_what_cannot_be_understood_is_one_line_with_file_and_key(config: Any, message: str, tmp_path: Path) -> None:
    found = refusal(folder(tmp_path, config))
    assert found.startswith(f"{tmp_path}/{message}"), found
    if "LABEL_0" in str(config):
        assert found.endswith("LABEL_0 names no class; say classes, the outputs' names in their order, in a sidecar")


def test_a_sidecar_mends_a_folder(tmp_path: Path) -> None:
    bad = {
        "label_names": ["LABEL_0", "LABEL_1", "LABEL_2"],
        "pretrained_cfg": {"input_size": "?", "mean": [], "std": "x"},
    }
    said = {"classes": NAMES, "image_size": 32, "mean": 0.5, "std": 0.5, "crop": 1, "temperature": 1, "colour": "rgb"}
    teacher = open_teacher(folder(tmp_path, CONFIG | bad, sidecar=said))
    assert (teacher.classes, teacher.net_size) == (("anger", "happiness", "sadness"), 32)


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as refused:
        open_teacher(uri)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_a_folder_that_is_no_file(tmp_path: Path) -> None:
    uri = folder(tmp_path, timm_said())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert refusal(uri).startswith(f"{uri}/config.json: cannot be read (")
    shutil.rmtree(tmp_path / "config.json")
    folder(tmp_path, timm_said())
    (tmp_path / "teacher.yaml").mkdir()
    assert refusal(uri).startswith(f"{uri}/teacher.yaml: ")


# --- grey ---


def grey(place: Path) -> tuple[str, torch.nn.Module]:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3, in_chans=1).eval()
    with torch.no_grad():
        model.get_classifier().weight.mul_(4)
    config = timm_said(input_size=[1, 32, 32], mean=[0.4], std=[0.2]) | {"model_args": {"in_chans": 1}}
    return folder(place, config, weights=model.state_dict()), model


def wanted(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    seen = (pixels @ np.array([0.299, 0.587, 0.114]) / 255 - 0.4) / 0.2
    with torch.inference_mode():
        return softmax(model(torch.from_numpy(seen.astype(np.float32))[:, None]).numpy())[:, [2, 1, 0]]


def test_a_grey_net_sees_grey(tmp_path: Path) -> None:
    uri, model = grey(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    expected = wanted(model, pixels)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    said = {
        "architecture": "test_resnet",
        "classes": NAMES,
        "image_size": 32,
        "mean": 0.4,
        "std": 0.2,
        "colour": "grey",
    }
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(said))
    teachers: list[Teacher] = [open_teacher(uri), open_teacher(f"{tmp_path}/w.safetensors")]
    for teacher in teachers:
        for engine in ("torch", "openvino"):
            net = make_engine(teacher, engine, batch_size=4, device="cpu", precision="float32")
            np.testing.assert_allclose(softmax(net(pixels)), expected, atol=1e-4)
        seen = seen_by_net(teacher, pixels)
        assert np.abs(seen - (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]).max() <= 1
    assert np.ptp(expected, axis=0).max() > 0.01
    with pytest.raises(UserError, match=r"config.json: a net that sees grey can only be a teacher"):
        open_artifact(uri)


def test_arguments_that_timm_does_not_know(tmp_path: Path) -> None:
    teacher = open_teacher(folder(tmp_path, timm_said() | {"model_args": {"depht": 3}}))
    with pytest.raises(UserError) as refused:
        make_engine(teacher, "torch", batch_size=1, device="cpu", precision="float32")
    assert str(refused.value).startswith(
        f"{tmp_path}/config.json: model_args: {{'depht': 3}}: there is no such test_res"
    )


# --- whatever stands there ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["sad", "happy"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.just("0"), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("architecture", "label_names", "id2label", "num_classes", "model_args", "temperature", "pretrained_cfg")
TIMM_KEYS = ("input_size", "mean", "std", "crop_pct")
SIDECAR_KEYS = ("classes", "map", "image_size", "mean", "std", "crop", "temperature", "colour", "architecture", "x")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_in_a_folder_ends_in_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    config = timm_said(**data.draw(st.dictionaries(st.sampled_from(TIMM_KEYS), JSON, max_size=2)))
    config |= data.draw(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=2))
    processor = data.draw(st.none() | st.fixed_dictionaries({"size": JSON, "image_mean": JSON, "pretrained_cfg": JSON}))
    sidecar = data.draw(st.none() | st.dictionaries(st.sampled_from(SIDECAR_KEYS), JSON, max_size=3))
    place = tmp_path / "m"
    shutil.rmtree(place, ignore_errors=True)
    uri = folder(place, config, processor, sidecar)
    said = []
    for opening in (open_teacher, open_artifact):
        try:
            opening(uri)
        except UserError as error:
            said.append(str(error))
    assert all(message.startswith(uri) and len(message.splitlines()) == 1 for message in said)
