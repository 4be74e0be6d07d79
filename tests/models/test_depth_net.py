"""The classifier over several depths: which maps it takes, how it starts, and how it opens again."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from ray_fer.models.artifact import load_model, open_artifact, save_artifact
from ray_fer.models.depth_net import DepthNet, default_depths, pooled_depths

FACES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "depths"),
    [("mobilenetv1_100", [2, 3, 4]), ("resnet10t", [2, 3, 4]), ("vit_tiny_patch16_224", [2, 5, 8, 11])],
)
def test_the_default_depths_are_late_stages_or_evenly_spaced_blocks(backbone: str, depths: list[int]) -> None:
    assert default_depths(timm.create_model(backbone)) == depths


def test_pooled_depths_are_the_means_of_the_maps_side_by_side() -> None:
    backbone = timm.create_model("resnet10t", num_classes=0).eval()
    pooled = pooled_depths(backbone, FACES, [2, 4])
    stages = timm.create_model("resnet10t", features_only=True, out_indices=(2, 4)).eval()
    stages.load_state_dict(backbone.state_dict(), strict=False)
    expected = torch.cat([each.mean(dim=(2, 3)) for each in stages(FACES)], dim=1)
    torch.testing.assert_close(pooled, expected)


def test_its_first_logits_are_zero_and_every_depth_reaches_them() -> None:
    model = DepthNet("resnet10t", num_classes=3).eval()
    assert not model(FACES).any()
    torch.nn.init.ones_(model.fc.weight)
    model.train()(FACES).square().sum().backward()
    assert model.fc.weight.grad is not None
    assert (model.fc.weight.grad.abs().sum(dim=0) > 0).float().mean() > 0.5
    assert model.num_features == 128 + 256 + 512


def test_its_artifact_names_the_module_that_opens_it(tmp_path: Path) -> None:
    model = timm.create_model("depth_net", backbone="resnet10t", depths=[3, 4], num_classes=3)
    torch.nn.init.normal_(model.fc.weight)
    save_artifact(
        str(tmp_path),
        model,
        classes=("a", "b", "c"),
        image_size=64,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        metrics={},
        provenance={},
    )
    torch.testing.assert_close(load_model(open_artifact(str(tmp_path)))(FACES), model.eval()(FACES))
    assert open_artifact(str(tmp_path)).architecture == "ray_fer.models.depth_net:depth_net"
