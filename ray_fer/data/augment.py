"""Augmentation of batches of small faces, on the device of the batch.

Rotation, scale, shift and flip are one affine map per picture and one bilinear `torch.nn.functional.grid_sample` per
batch. The other operations are a few elementwise passes. A batch of 64 faces of 48 pixels takes a few milliseconds of
one core, so a loader can yield plain uint8.

The ranges are mild, because faces are roughly aligned already. An expression shows in a few pixels around mouth and
brows, which cropping or strong warping would remove.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import radians

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Ranges of the random parameters, each of which is drawn uniformly for each picture.

    Attributes:
        flip: Probability of a horizontal flip.
        rotate: Largest rotation in either direction, in degrees.
        scale: Range of the zoom factor; factors above 1 enlarge the face.
        translate: Largest shift in either direction along each axis, as a fraction of the side.
        brightness: Largest offset in either direction, as a fraction of the range of grey levels.
        contrast: Range of the factor that multiplies the difference from the picture's mean.
        gamma: Range of the exponent, whose logarithm is drawn uniformly.
        blur: Probability of a 3 x 3 binomial filter.
        erase: Probability that a rectangle is filled with the mean of the data set.
        erase_side: Longest side of that rectangle, as a fraction of the picture's side.
    """

    flip: float = 0.5
    rotate: float = 10.0
    scale: tuple[float, float] = (0.9, 1.1)
    translate: float = 0.06
    brightness: float = 0.1
    contrast: tuple[float, float] = (0.8, 1.25)
    gamma: tuple[float, float] = (1.0, 1.0)
    blur: float = 0.0
    erase: float = 0.0
    erase_side: float = 0.3


WEAK = Augmentation()
STRONG = Augmentation(
    rotate=15.0, scale=(0.85, 1.15), translate=0.12, contrast=(0.5, 1.5), gamma=(0.7, 1.43), blur=0.3, erase=0.7
)


def normalise(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Scales pixels to ``(x / 255 - mean) / std`` per channel, which is all that evaluation does.

    Args:
        images: uint8 (B, S, S, 3).
        mean: Mean of each channel, on the scale from 0 to 1.
        std: Standard deviation of each channel, on the same scale.

    Returns:
        float32 (B, 3, S, S).
    """
    return _standardise(_to_unit(images), mean, std)


def augment(
    images: Tensor,
    policy: Augmentation,
    generator: torch.Generator,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Augments and normalises a batch on its device.

    Args:
        images: uint8 (B, S, S, 3).
        policy: Ranges to draw from, for example `WEAK` or `STRONG`.
        generator: Source of all randomness, on the device of the images. Equal states give equal results.
        mean: Mean of each channel, on the scale from 0 to 1.
        std: Standard deviation of each channel, on the same scale.

    Returns:
        float32 (B, 3, S, S).
    """
    # The table has a column for each decision, whether or not the policy uses it. Weak and strong views from equal
    # generator states therefore share the random numbers of their geometry.
    draws = torch.rand(len(images), 14, generator=generator, device=images.device)
    x = _warp(_to_unit(images), policy, draws[:, :5])
    x = _relight(x, policy, draws[:, 5:8])
    if policy.blur > 0:
        chosen = torch.nonzero(draws[:, 8] < policy.blur)[:, 0]
        x[chosen] = _blurred(x[chosen])
    x = _standardise(x, mean, std)
    if policy.erase > 0:
        x.masked_fill_(_rectangles(x.shape[-1], policy, draws[:, 9:14]), 0.0)
    return x


def _to_unit(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _standardise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shift = torch.tensor(mean, device=x.device).view(1, -1, 1, 1)
    factor = torch.tensor(std, device=x.device).view(1, -1, 1, 1)
    return x.sub_(shift).div_(factor)


def _between(draws: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draws


def _warp(x: Tensor, policy: Augmentation, draws: Tensor) -> Tensor:
    """Samples each picture through its affine map, and repeats the edge beyond the edge."""
    angle = _between(draws[:, 1], -radians(policy.rotate), radians(policy.rotate))
    zoom = _between(draws[:, 2], *policy.scale)
    mirror = torch.where(draws[:, 0] < policy.flip, -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # grid_sample needs the source of each output pixel, in coordinates in which the side is 2.
    shift_x, shift_y = (_between(draws[:, i], -2 * policy.translate, 2 * policy.translate) for i in (3, 4))
    rows = (torch.stack([mirror * cos, -mirror * sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _relight(x: Tensor, policy: Augmentation, draws: Tensor) -> Tensor:
    """Changes contrast around each picture's mean, brightness and then gamma, and clamps to the range from 0 to 1."""
    contrast = _between(draws[:, 0], *policy.contrast).view(-1, 1, 1, 1)
    offset = _between(draws[:, 1], -policy.brightness, policy.brightness).view(-1, 1, 1, 1)
    centre = x.mean(dim=(1, 2, 3), keepdim=True)
    x = x.mul_(contrast).add_(centre * (1 - contrast) + offset).clamp_(0, 1)
    low, high = torch.log(torch.tensor(policy.gamma)).tolist()
    if (low, high) == (0.0, 0.0):
        return x
    gamma = torch.exp(_between(draws[:, 2], low, high)).view(-1, 1, 1, 1)
    # torch.pow takes three times as long on a CPU.
    return x.clamp_(min=1e-4).log_().mul_(gamma).exp_()


def _blurred(x: Tensor) -> Tensor:
    """Applies the binomial filter 1-2-1 along both axes and repeats the edges.

    The filter is the composition of two 2 x 2 means, which shift by half a pixel in opposite directions.
    """
    return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, stride=1), 2, stride=1)


def _rectangles(side: int, policy: Augmentation, draws: Tensor) -> Tensor:
    """Returns a mask of the rectangles to erase, bool (B, 1, S, S)."""
    pixels = torch.arange(side, device=draws.device) + 0.5
    spans = []
    for axis in (0, 1):
        length = side * policy.erase_side * _between(draws[:, 1 + axis], 0.3, 1.0)
        start = draws[:, 3 + axis] * (side - length)
        spans.append((pixels >= start[:, None]) & (pixels < (start + length)[:, None]))
    inside = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return inside & (draws[:, 0] < policy.erase)[:, None, None, None]
