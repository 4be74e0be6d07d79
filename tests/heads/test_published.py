"""Backbones and heads in one net: the same logits as from kept embeddings, and an artifact that opens again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from ray_fer.heads.net import Head, MeanOfHeads
from ray_fer.heads.published import head_net_of
from ray_fer.jobs.export_onnx import compare, write_onnx
from ray_fer.models.artifact import load_model, open_artifact, save_artifact
from ray_fer.models.depth_net import DepthNet, default_depths, pooled_depths

FACES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CLASSES = ("neutral", "anger", "fear")


def nets() -> list[Any]:
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=5).eval()
    deep = DepthNet("test_efficientnet", num_classes=4).eval()
    deep.body.pretrained_cfg = {**deep.body.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.4, 0.3)}
    return [plain, deep]


def embeddings_of(plain: Any, deep: Any, normalised: torch.Tensor) -> torch.Tensor:
    """As each backbone gives them for pixels that are normalised for it."""
    own = plain.pretrained_cfg
    pixels = normalised * torch.tensor(own["std"]).view(1, 3, 1, 1) + torch.tensor(own["mean"]).view(1, 3, 1, 1)
    mean, std = (torch.tensor(deep.body.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    first = pooled_depths(plain, normalised, default_depths(plain))
    return torch.cat([first, deep.forward_features((pixels - mean) / std)], dim=1)


def heads_on(embeddings: torch.Tensor) -> MeanOfHeads:
    width, rng = embeddings.shape[1], np.random.default_rng(0)
    columns = [(0, width), (2, width - 3)]
    heads = []
    for (first, last), hidden, dropout in zip(columns, (8, 0), (0.0, 0.3), strict=True):
        statistics = rng.normal(size=last - first), rng.uniform(0.5, 2, last - first)
        head = Head(*statistics, len(CLASSES), hidden=hidden, dropout=dropout)
        torch.nn.init.normal_(head.last.weight, std=0.1)
        heads.append(head)
    return MeanOfHeads(heads, columns).eval()


@torch.inference_mode()
def test_its_logits_are_those_of_the_heads_on_the_embeddings() -> None:
    plain, deep = nets()
    embeddings = embeddings_of(plain, deep, FACES)
    head = heads_on(embeddings)
    model = head_net_of([plain, deep], head).eval()
    torch.testing.assert_close(model.forward_features(FACES), embeddings, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(FACES), head(embeddings), rtol=1e-4, atol=1e-5)
    assert model(FACES).exp().sum(dim=1) == pytest.approx(1.0, abs=1e-5)


def test_its_artifact_opens_again_and_is_exported(tmp_path: Path) -> None:
    plain, deep = nets()
    with torch.inference_mode():
        head = heads_on(embeddings_of(plain, deep, FACES))
    model = head_net_of([plain, deep], head).eval()
    own = plain.pretrained_cfg
    sizes: dict[str, Any] = {"image_size": 64, "mean": own["mean"], "std": own["std"]}
    save_artifact(str(tmp_path / "m"), model, classes=CLASSES, metrics={}, provenance={}, **sizes)
    artifact = open_artifact(str(tmp_path / "m"))
    with torch.inference_mode():
        torch.testing.assert_close(load_model(artifact)(FACES), model(FACES))
    write_onnx(artifact, tmp_path / "m.onnx")
    from ray_fer.jobs.export_onnx import sidecar_of

    (tmp_path / "m.yaml").write_text(sidecar_of(artifact))
    _, differences = compare(artifact, tmp_path / "m.onnx")
    assert max(differences.values()) < 1e-4
