from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, open_artifact, save_artifact
from ray_fer.models.backbone import _head_names as head_names
from ray_fer.models.backbone import (
    build_backbone,
    check_backbone,
    checkpoint_activations,
    normalisation,
)

CLASSES = ("neutral", "anger", "fear")


def artifact(uri: Path, name: str = "test_resnet", classes: tuple[str, ...] = CLASSES, size: int = 32) -> Artifact:
    torch.manual_seed(11)
    model = build_backbone(name, len(classes), size)
    facts: dict[str, Any] = {"metrics": {}, "provenance": {}, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return save_artifact(str(uri), model, classes=classes, image_size=size, **facts)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(tmp_path_factory.mktemp("resnet") / "m")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(tmp_path_factory.mktemp("vit") / "m", "test_vit")


def weights(source: Artifact | torch.nn.Module) -> dict[str, torch.Tensor]:
    from ray_fer.models.artifact import load_model

    return (load_model(source) if isinstance(source, Artifact) else source).state_dict()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], *but: str) -> bool:
    assert ours.keys() == theirs.keys()
    return all(
        torch.equal(ours[key], theirs[key]) != (key in but)
        for key in ours
        if not key.endswith(("head.bias", "fc.bias"))
    )


def raised(*arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_backbone(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names and sizes ---


def test_an_unknown_backbone_is_answered_with_its_neighbours() -> None:
    check_backbone("resnet10t")
    check_backbone("vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(UserError, match=r"backbone=zzzzzzzz: timm has no such model$"):
        check_backbone("zzzzzzzz")
    with pytest.raises(UserError, match=r"backbone=resnet10_t: timm has no such model \(near it: .*resnet10t"):
        check_backbone("resnet10_t")


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 40), ("test_vit", 32), ("test_convnext", 48), ("test_coatnet", 64)]
)
def test_it_maps_pictures_to_logits(name: str, size: int) -> None:
    model = build_backbone(name, 5, size)
    assert model.training
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_a_size_that_the_backbone_cannot_see() -> None:
    message = raised("test_vit", 3, 50)
    assert message.startswith("backbone=test_vit: cannot see pictures of image_size=50: ")
    assert "patch size (16)" in message
    assert message.endswith("; 32 or 64 would fit")


@pytest.mark.slow
def test_a_backbone_that_fails_while_it_is_made() -> None:
    message = raised("vit_tiny_r_s16_p8_224", 3, 48)
    assert message == (
        "backbone=vit_tiny_r_s16_p8_224: cannot see pictures of image_size=48: AssertionError; 32 or 64 would fit"
    )


def test_an_error_of_any_kind_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mvitv2's IndexError in its forward pass; nothing fits here, for every size fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("index 1 is out of bounds\nfor dimension 0")

    monkeypatch.setattr(timm.models.resnet.ResNet, "forward", fail)
    assert raised("test_resnet", 3, 48) == (
        "backbone=test_resnet: cannot see pictures of image_size=48: index 1 is out of bounds for dimension 0"
    )


def test_broken_weights_are_named(resnet: Artifact, tmp_path: Path) -> None:
    state = weights(resnet)
    state["fc.bias"][1] = torch.nan
    broken = Path(shutil.copytree(resnet.uri, tmp_path / "broken"))
    save_file(state, broken / "model.safetensors")
    said = "its weights are broken: 1 of 3 numbers of fc.bias are NaN"
    assert raised("test_resnet", 3, 32, pretrained=str(broken)) == f"pretrained={broken}: {said}"
    with pytest.raises(UserError, match=f"^{broken}/model.safetensors: {said}$"):
        open_artifact(str(broken))


def test_normalisation_is_the_backbone_s() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation(build_backbone("resnet10t", 3, 32)) == imagenet
    assert normalisation(build_backbone("test_vit", 3, 32)) == ((0.5,) * 3, (0.5,) * 3)


# --- from an artifact ---


def test_init_keeps_the_head_only_for_equal_classes(resnet: Artifact, vit: Artifact) -> None:
    for source, name, head in ((resnet, "test_resnet", "fc"), (vit, "test_vit", "head")):
        torch.manual_seed(12)
        assert same(weights(build_backbone(name, 3, 32, init=source, classes=CLASSES)), weights(source))
        reordered = weights(build_backbone(name, 3, 32, init=source, classes=CLASSES[::-1]))
        assert same(reordered, weights(source), f"{head}.weight")
        more = weights(build_backbone(name, 4, 32, init=source, classes=(*CLASSES, "other")))
        assert more[f"{head}.weight"].shape[0] == 4
        assert all(torch.equal(more[key], value) for key, value in weights(source).items() if head not in key)


def test_a_head_is_told_from_what_is_named_alike() -> None:
    two = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    assert head_names(two) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert head_names(timm.create_model("test_convnext")) == {"head.fc.weight", "head.fc.bias"}
    assert head_names(timm.create_model("test_resnet")) == {"fc.weight", "fc.bias"}


def test_an_artifact_of_another_backbone_is_refused(resnet: Artifact, vit: Artifact) -> None:
    for classes in (CLASSES, ("a", "b", "c")):
        assert raised("test_vit", 3, 32, init=resnet, classes=classes).startswith(
            f"{resnet.uri}: its weights do not fit backbone=test_vit: "
        )
    assert "size mismatch" in raised("test_vit", 3, 64, init=vit, classes=CLASSES)


def test_a_deeper_backbone_is_not_half_initialised(vit: Artifact) -> None:
    """Everything that test_vit has is also in test_vit2."""
    message = raised("test_vit2", 4, 32, init=vit, classes=("a", "b", "c", "d"))
    assert message.startswith(f"{vit.uri}: its weights do not fit backbone=test_vit2: ")


# --- from pretrained weights ---


def save(kind: str, model: torch.nn.Module, folder: Path) -> str:
    path = folder / f"weights.{kind}"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
    return str(path)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize(("name", "head"), [("test_resnet", "fc"), ("test_vit", "head")])
def test_a_weight_file_fills_everything_but_the_head(kind: str, name: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(13)
    source = build_backbone(name, 7, 32)
    model = build_backbone(name, 3, 32, pretrained=save(kind, source, tmp_path))
    assert weights(model)[f"{head}.weight"].shape[0] == 3
    assert all(torch.equal(weights(model)[key], v) for key, v in weights(source).items() if not key.startswith(head))


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    source = build_backbone("test_vit", 3, 64)
    model = build_backbone("test_vit", 3, 32, pretrained=save("pth", source, tmp_path))
    assert weights(model)["pos_embed"].shape == (1, 5, 64)
    assert torch.equal(weights(model)["blocks.0.attn.qkv.weight"], weights(source)["blocks.0.attn.qkv.weight"])


def test_a_folder_keeps_its_head_for_as_many_classes(resnet: Artifact) -> None:
    torch.manual_seed(14)
    assert same(weights(build_backbone("test_resnet", 3, 32, pretrained=resnet.uri)), weights(resnet))
    other = weights(build_backbone("test_resnet", 5, 32, pretrained=resnet.uri))
    assert other["fc.weight"].shape[0] == 5
    assert torch.equal(other["conv1.0.weight"], weights(resnet)["conv1.0.weight"])


def test_the_random_head_depends_on_the_seed_alone(resnet: Artifact) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(weights(build_backbone("test_resnet", 5, 32, pretrained=resnet.uri))["fc.weight"])
        following = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(1), following), "the caller's random numbers are left alone"
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_of_another_backbone_are_refused(resnet: Artifact, vit: Artifact) -> None:
    held = f"{resnet.uri}/model.safetensors"
    assert raised("test_vit", 3, 32, pretrained=held).startswith(
        f"pretrained={held}: its weights do not fit backbone=test_vit: nothing there for "
    )
    assert "nothing there for conv1" in raised("test_resnet", 3, 32, pretrained=f"{vit.uri}/model.safetensors")
    assert "size mismatch" in raised("resnet10t", 3, 32, pretrained=held)
    assert "nothing there for" in raised("test_vit2", 3, 32, pretrained=f"{vit.uri}/model.safetensors")


def test_a_folder_of_another_backbone_is_refused(vit: Artifact, tmp_path: Path) -> None:
    assert raised("test_resnet", 3, 32, pretrained=vit.uri) == (
        f"pretrained={vit.uri}: holds a test_vit, not backbone=test_resnet"
    )
    assert raised("test_resnet", 3, 32, pretrained=str(tmp_path)) == (
        f"pretrained={tmp_path}: no config.json that names an architecture"
    )
    broken = Path(shutil.copytree(vit.uri, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    assert raised("test_vit", 3, 32, pretrained=str(broken)).startswith(f"pretrained={broken}: its weights do not fit")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"not weights"])
def test_a_file_without_weights_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert raised("test_resnet", 3, 32, pretrained=str(tmp_path / name)).startswith(
        f"pretrained={tmp_path / name}: its weights do not fit backbone=test_resnet: "
    )


class _Code:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_code_in_a_weight_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"fc.weight": _Code(f"touch {tmp_path}/ran")}, tmp_path / "w.pth")
    assert "weights_only=True" in raised("test_resnet", 3, 32, pretrained=str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_not_every_backbone_can_checkpoint() -> None:
    with pytest.raises(UserError, match=r"^checkpoint_activations=true: backbone=dla34 has no such mode"):
        checkpoint_activations(timm.create_model("dla34"), "dla34")
