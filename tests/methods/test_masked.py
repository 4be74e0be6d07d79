"""Masked reconstruction: its masks, its loss, what learns from it, and what it publishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ray_fer.config import load_config
from ray_fer.methods.batch import Faces
from ray_fer.methods.context import Context
from ray_fer.methods.masked import MaskedMethod, patch_masks
from ray_fer.models.backbone import build_backbone
from ray_fer.training.plain_engine import PlainEngine
from tests.training.epochs import run_epochs

SIDE, CLASSES = 32, ("a", "b", "c")


@dataclass(frozen=True, eq=False)
class Pictures:
    pixels: NDArray[np.uint8]

    def batch(self, indices: NDArray[np.int64]) -> tuple[Any, Any]:
        return self.pixels[indices], np.ones(len(indices), bool)


def stripes(count: int, seed: int, noise: float = 15) -> Faces:
    """Stripes whose direction is their class, at a random phase, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    angles = labels * np.pi / len(CLASSES)
    waves = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ grid.T * (2 * np.pi / 8)
    values = 127 + 80 * np.sin(waves + rng.uniform(0, 6.3, (count, 1))) + rng.normal(0, noise, waves.shape)
    pixels = values.clip(0, 255).astype(np.uint8).reshape(count, SIDE, SIDE, 1).repeat(3, axis=3)
    return Faces(Pictures(pixels), [str(row) for row in range(count)], labels)


def method_of(*arguments: str, unlabeled: int = 200, noise: float = 15, **numbers: Any) -> MaskedMethod:
    given = ["labeled=-", "val=-", "out=-", "epochs=2", "batch_size=16", "learning_rate=0.01", "ema_decay=0.8"]
    config = load_config("train_backbone", [*given, f"image_size={SIDE}", *arguments])
    torch.manual_seed(0)
    backbone = build_backbone("test_resnet", len(CLASSES), SIDE)
    return MaskedMethod(
        Context(
            config=config.with_defaults(fine_tuned=False),
            numbers=MaskedMethod.Config(**numbers),
            classes=CLASSES,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            backbone=lambda: backbone,
            labeled=stripes(15, 2, noise),
            val=stripes(60, 3, noise),
            feedback_rows=np.arange(60) < 30,
            unlabeled=stripes(unlabeled, 1, noise),
        )
    )


def test_every_face_has_as_many_masked_patches() -> None:
    masks = patch_masks(5, 30, 4, 0.3, torch.Generator().manual_seed(0))
    assert masks.shape == (5, 1, 30, 30)
    patches = masks[:, 0, ::8, ::8]
    assert patches.sum(dim=(1, 2)).tolist() == [5] * 5, "of 16 patches"
    assert not torch.equal(patches[0], patches[1])
    assert torch.equal(masks[:, 0, :8, :8], patches[:, :1, :1].expand(-1, 8, 8))


def test_only_masked_values_count() -> None:
    method = method_of()
    batch = next(method.steps(0))
    faces, mask = batch.inputs[:, :3], batch.inputs[:, 3:]
    assert method.losses(faces + mask, batch)["reconstruction"].item() == pytest.approx(1)
    assert method.losses(faces + (1 - mask), batch)["reconstruction"].item() == 0


def test_the_net_sees_no_masked_value_and_all_of_it_learns() -> None:
    method = method_of()
    batch = next(method.steps(0))
    model = method.model.eval()
    changed = batch.inputs.clone()
    changed[:, :3] += 7 * changed[:, 3:]
    assert torch.equal(model(batch.inputs), model(changed))
    model.train()
    method.losses(model(batch.inputs), batch)["reconstruction"].backward()
    idle = [name for name, each in model.named_parameters() if each.grad is None]
    assert idle == [f"backbone.{name}" for name in ("fc.weight", "fc.bias")]


def test_faces_held_out_are_not_learnt_from() -> None:
    method = method_of()
    seen = {int(uri) for batch in method.steps(0) for uri in batch.uris}
    assert seen == set(range(200)) - set(range(0, 200, 20))


def test_the_statistics_of_the_averaged_model_are_those_of_plain_faces() -> None:
    method = method_of()
    run_epochs(method, range(1))
    method.validate(0)
    inputs = (torch.from_numpy(stripes(200, 1).images.batch(np.arange(200))[0]) / 255 - 0.5) / 0.25
    found = []
    backbone = method.ema_model.backbone
    backbone.bn1.register_forward_pre_hook(lambda _, given: found.append(given[0].mean(dim=(0, 2, 3))))
    with torch.inference_mode():
        backbone(inputs.permute(0, 3, 1, 2))
    torch.testing.assert_close(backbone.bn1.running_mean, found[0], rtol=0.05, atol=0.05)
    assert not backbone.training


def test_it_learns_what_the_classes_are_without_a_label() -> None:
    method = method_of("epochs=5", unlabeled=320, noise=90)
    before, metrics = method.validate(0)
    run_epochs(method, range(5), PlainEngine(method))
    after, learnt = method.validate(5)
    assert after > before + 0.15
    assert learnt["reconstruction"] < 0.99 * metrics["reconstruction"]


def test_without_labels_the_error_is_the_score() -> None:
    method = method_of()
    method.context = type(method.context)(**{**vars(method.context), "labeled": stripes(0, 0)})
    score, metrics = method.validate(0)
    assert score == -metrics["reconstruction"]


def test_the_backbone_is_published_without_the_decoder() -> None:
    method = method_of()
    weights = method.publish(method.ema_model.state_dict(), method.numbers, "fc")
    build_backbone("test_resnet", len(CLASSES), SIDE).load_state_dict(weights)
