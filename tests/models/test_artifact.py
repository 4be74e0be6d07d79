from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, load_model, open_artifact, save_artifact
from ray_fer.models.model_id import resolve_precision

CLASSES = ("neutral", "anger", "my own class")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make(uri: Path, name: str = "test_resnet", seed: int = 0, **changes: Any) -> tuple[Artifact, torch.nn.Module]:
    torch.manual_seed(seed)
    size = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=3, **size).eval()
    facts: dict[str, Any] = {"classes": CLASSES, "image_size": 32, "mean": MEAN, "std": STD}
    facts |= {"metrics": {"macro_f1": 0.5}, "provenance": {"seed": seed}} | changes
    return save_artifact(str(uri), model, **facts), model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "m"
    make(folder, extra={"labels.txt": b"x"})
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> Artifact:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return open_artifact(str(folder))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_anybody_with_timm_can_open_it(name: str, tmp_path: Path) -> None:
    artifact, model = make(tmp_path / "m", name)
    again = timm.create_model(f"local-dir:{tmp_path}/m", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert torch.equal(load_model(artifact)(x), model(x))
    assert artifact.architecture == name
    assert not load_model(artifact).training


def test_the_facts_survive(saved: Path) -> None:
    artifact = open_artifact(f"{saved}/")
    assert artifact.uri == str(saved)
    assert artifact.classes == CLASSES
    assert artifact.image_size == 32
    assert artifact.mean == MEAN
    assert artifact.std == STD
    assert artifact.metrics == {"macro_f1": 0.5}
    assert json.loads((saved / "provenance.json").read_text()) == {"seed": 0}
    assert (saved / "labels.txt").read_bytes() == b"x"
    (data,) = {key: timm.data.resolve_model_data_config(load_model(artifact))[key] for key in ("input_size",)}.values()
    assert data == (3, 32, 32)


def test_weights_that_are_not_whole(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{weights}: cannot be read "):
        open_artifact(str(copy))


@pytest.mark.parametrize(
    ("there", "native", "on_gpu"),
    [(True, True, "bfloat16"), (True, False, "float32"), (False, False, "bfloat16")],
    ids=["Ampere", "Turing", "a cluster's"],
)
def test_the_number_format(monkeypatch: pytest.MonkeyPatch, there: bool, native: bool, on_gpu: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    # torch says yes to any CUDA device where emulation counts.
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert [resolve_precision("auto", asked) for asked in (False, True)] == ["float32", on_gpu]
    assert resolve_precision("bfloat16", False) == "bfloat16"
    assert resolve_precision("float32", True) == "float32"


@pytest.mark.parametrize(
    "module",
    ["jobs.pseudo_label", "labeling.graph", "jobs.select_pseudo_labels", "models.teacher", "models.openvino_engine"],
)
def test_drivers_of_labelling_need_no_torch(module: str) -> None:
    code = f"import sys, ray_fer.{module}; print([name for name in ('torch', 'timm') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_metrics_are_optional(copy: Path) -> None:
    (copy / "metrics.json").unlink()
    assert open_artifact(str(copy)).metrics == {}


def test_the_id_is_of_the_contents_not_of_the_place(saved: Path, copy: Path) -> None:
    assert open_artifact(str(copy)).id == open_artifact(str(saved)).id
    assert len(open_artifact(str(copy)).id) == 16


def test_the_number_format_is_part_of_the_model_id(saved: Path) -> None:
    artifact = open_artifact(str(saved))
    assert artifact.model_id("float32") == f"{artifact.id}-float32" != artifact.model_id("bfloat16")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(label_names=[*CLASSES[:2], "renamed"]),
        lambda config: config.update(label_names=list(reversed(CLASSES))),
        lambda config: config.update(architecture="test_resnet2"),
        lambda config: config["pretrained_cfg"].update(input_size=[3, 48, 48]),
        lambda config: config["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]),
        lambda config: config["pretrained_cfg"].update(std=[0.5, 0.5, 0.5]),
        lambda config: config["pretrained_cfg"].update(crop_mode="center"),
        lambda config: config.update(model_args={"num_classes": 3, "output_stride": 16}),
    ],
    ids=["class", "class order", "architecture", "size", "mean", "std", "crop", "arguments"],
)
def test_what_decides_the_output_changes_the_id(
    change: Callable[[dict[str, Any]], None], saved: Path, copy: Path
) -> None:
    assert edit(copy, change).id != open_artifact(str(saved)).id


def test_one_weight_changes_the_id(saved: Path, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["fc.bias"][0] += 1e-3
    save_file(weights, copy / "model.safetensors")
    assert open_artifact(str(copy)).id != open_artifact(str(saved)).id


def test_what_decides_nothing_keeps_the_id(saved: Path, copy: Path) -> None:
    (copy / "metrics.json").write_text('{"macro_f1": 0.9}')
    (copy / "provenance.json").unlink()

    def change(config: dict[str, Any]) -> None:
        config["pretrained_cfg"]["license"] = "other"
        config["note"] = "x"

    assert edit(copy, change).id == open_artifact(str(saved)).id


def test_the_temperature_is_kept_and_makes_another_model(saved: Path, tmp_path: Path) -> None:
    never = open_artifact(str(saved))
    calibrated, model = make(tmp_path / "m", temperature=1.7)
    assert (never.temperature, calibrated.temperature) == (1.0, 1.7)
    assert calibrated.id != never.id
    again = timm.create_model(f"local-dir:{tmp_path}/m", pretrained=True)
    assert torch.equal(again.state_dict()["fc.weight"], model.state_dict()["fc.weight"])


def test_artifacts_from_before_temperatures_keep_their_id(saved: Path, copy: Path) -> None:
    before = edit(copy, lambda config: config.pop("temperature"))
    assert before.temperature == 1.0
    assert before.id == open_artifact(str(saved)).id


def test_test_time_flip_is_part_of_the_model_id(saved: Path) -> None:
    artifact = open_artifact(str(saved))
    assert artifact.model_id("float32", flip=True) == f"{artifact.id}-float32-flip"
    assert artifact.model_id("float32", flip=False) == artifact.model_id("float32")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_half_an_artifact_is_none(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{copy}: no model artifact there \({name} is missing\)"):
        open_artifact(str(copy))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json: not JSON"),
        (
            '{"architecture": "x", "pretrained_cfg": {}}',
            "no 'label_names', so its classes or preprocessing are unknown",
        ),
        ("{}", "no 'architecture'"),
    ],
)
def test_a_config_that_says_too_little(config: str, message: str, copy: Path) -> None:
    (copy / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        open_artifact(str(copy))


def test_an_artifact_can_be_replaced(copy: Path) -> None:
    old = open_artifact(str(copy))
    new, model = make(copy, seed=1)
    assert new.id != old.id
    assert torch.equal(load_model(new).state_dict()["fc.weight"], model.state_dict()["fc.weight"])
