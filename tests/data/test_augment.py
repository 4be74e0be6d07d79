"""augment: each range does what it says, the rest of the picture stays, and equal generators give equal batches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ray_fer.data.augment import STRONG, WEAK, Augmentation, augment, normalise

NOTHING = Augmentation(flip=0, rotate=0, scale=(1, 1), translate=0, brightness=0, contrast=(1, 1))
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def faces(count: int = 8, side: int = 24) -> Tensor:
    """Smooth random pictures, uint8 (B, S, S, 3)."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 200 + 30
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return smooth.clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalise() -> None:
    images = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    got = normalise(images, (0.5, 0.0, 0.2), (0.5, 2.0, 1.0))
    assert (got.shape, got.dtype) == ((1, 3, 1, 1), torch.float32)
    torch.testing.assert_close(got.flatten(), torch.tensor([-1.0, 0.5, 0.0]))


@pytest.mark.parametrize("policy", [WEAK, STRONG])
def test_shape_type_and_input_untouched(policy: Augmentation) -> None:
    images = faces()
    before = images.clone()
    got = augment(images, policy, seeded())
    assert (got.shape, got.dtype) == ((8, 3, 24, 24), torch.float32)
    assert got.isfinite().all()
    assert torch.equal(images, before)


def test_no_augmentation_is_normalisation() -> None:
    images = faces()
    torch.testing.assert_close(augment(images, NOTHING, seeded()), normalise(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("policy", [WEAK, STRONG])
def test_equal_generators_give_equal_batches(policy: Augmentation) -> None:
    images = faces()
    assert torch.equal(augment(images, policy, seeded(1)), augment(images, policy, seeded(1)))
    assert not torch.equal(augment(images, policy, seeded(1)), augment(images, policy, seeded(2)))


def test_pictures_of_a_batch_are_augmented_each_on_its_own() -> None:
    got = augment(faces(1).expand(8, -1, -1, -1), WEAK, seeded())
    assert (got[1:] - got[:1]).flatten(1).abs().amax(1).min() > 0.01


def test_flip() -> None:
    images = faces()
    got = augment(images, replace(NOTHING, flip=1.0), seeded())
    torch.testing.assert_close(got, normalise(images).flip(-1), atol=1e-4, rtol=0)
    got = augment(images.repeat(50, 1, 1, 1), replace(NOTHING, flip=0.5), seeded())
    flipped = (got - normalise(images).flip(-1).repeat(50, 1, 1, 1)).flatten(1).abs().amax(1) < 1e-3
    assert 0.4 < flipped.float().mean() < 0.6


def test_rotation_by_a_right_angle_and_its_range() -> None:
    images = faces(200)
    got = augment(images, replace(NOTHING, rotate=90.0), seeded())
    plain = normalise(images)
    turned = torch.rot90(plain, 1, (-2, -1)), torch.rot90(plain, -1, (-2, -1))
    # The angles cover the whole range: some pictures are nearly turned by +90 degrees, some by -90, some hardly.
    for target in (*turned, plain):
        assert (got - target).abs().mean((1, 2, 3)).min() < 0.12


def test_translation_is_bounded_and_both_ways() -> None:
    images = torch.zeros(400, 40, 40, 3, dtype=torch.uint8)
    images[:, 20, 20] = 255
    got = augment(images, replace(NOTHING, translate=0.1), seeded(), **UNIT)[:, 0]
    position = torch.arange(40.0)
    for axis in (1, 2):
        profile = got.sum(3 - axis)
        centre = (profile * position).sum(1) / profile.sum(1)
        assert (centre - 20).abs().max() < 4.01
        assert centre.min() < 16.5
        assert centre.max() > 23.5
        assert abs(float(centre.mean()) - 20) < 0.5


def test_scale_enlarges_above_one() -> None:
    images = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    images[:, 15:25, 15:25] = 255
    for factor in (0.5, 2.0):
        got = augment(images, replace(NOTHING, scale=(factor, factor)), seeded(), **UNIT)
        assert float(got[0, 0].sum()) == pytest.approx(100 * factor**2, rel=0.05)


def test_contrast_keeps_the_mean_and_brightness_moves_it() -> None:
    images = faces() // 4 + 96  # far from both ends
    plain = normalise(images, **UNIT)
    got = augment(images, replace(NOTHING, contrast=(0.5, 0.5)), seeded(), **UNIT)
    torch.testing.assert_close(got.mean((1, 2, 3)), plain.mean((1, 2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(got.std((1, 2, 3)), plain.std((1, 2, 3)) / 2, atol=1e-4, rtol=0)
    shift = (augment(images, replace(NOTHING, brightness=0.1), seeded(), **UNIT) - plain).mean((1, 2, 3))
    assert shift.abs().max() <= 0.1001
    assert shift.min() < 0 < shift.max()


def test_gamma() -> None:
    images = faces()
    got = augment(images, replace(NOTHING, gamma=(2.0, 2.0)), seeded(), **UNIT)
    torch.testing.assert_close(got, normalise(images, **UNIT) ** 2, atol=1e-3, rtol=0)


def test_values_stay_within_the_range_of_pictures() -> None:
    got = augment(faces(64), replace(STRONG, contrast=(3.0, 3.0), brightness=0.5), seeded(), **UNIT)
    assert got.min() >= 0
    assert got.max() <= 1


def test_blur_is_binomial() -> None:
    images = torch.zeros(1, 9, 9, 3, dtype=torch.uint8)
    images[:, 4, 4] = 255
    got = augment(images, replace(NOTHING, blur=1.0), seeded(), **UNIT)[0, 0]
    kernel = torch.tensor([1.0, 2.0, 1.0])
    torch.testing.assert_close(got[3:6, 3:6], torch.outer(kernel, kernel) / 16, atol=1e-4, rtol=0)
    assert float(got.sum()) == pytest.approx(1, abs=1e-3)


def test_erasing() -> None:
    images = torch.full((500, 40, 40, 3), 255, dtype=torch.uint8)
    gone = augment(images, replace(NOTHING, erase=0.7, erase_side=0.3), seeded())[:, 0] == 0
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), rows * columns)  # a rectangle
    assert int(rows.max()) <= 13
    assert int(columns.max()) <= 13
    hit = rows > 0
    assert 0.62 < hit.float().mean() < 0.78
    assert int(rows[hit].min()) >= 3
    everywhere = gone.float().mean(0)
    assert everywhere[0].max() > 0
    assert everywhere[-1].max() > 0
