"""Augmentation of whole batches of small faces, on whatever device they are.

Rotation, scale, shift and flip are one affine map per picture and one bilinear `grid_sample` per batch; the rest are a
few elementwise passes. A 64-picture batch of 48-px faces so costs a few milliseconds of one core, and the loader can
hand over plain uint8. The ranges are mild on purpose: faces come roughly aligned, and an expression is a matter of a
few pixels around mouth and brows, which cropping or heavy warping would erase.
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
    """Ranges, each drawn uniformly and per picture.

    Attributes:
        flip: Probability of a horizontal flip.
        rotate: Largest rotation either way, degrees.
        scale: Range of the zoom; above 1 enlarges the face.
        translate: Largest shift either way along each axis, as a share of the side.
        brightness: Largest offset either way, as a share of the range of grey levels.
        contrast: Range of the factor on the difference to the picture's mean.
        gamma: Range of the exponent, drawn on a logarithmic scale.
        blur: Probability of a 3 x 3 binomial blur.
        erase: Probability that a rectangle is replaced by the mean of the data set.
        erase_side: Longest side of that rectangle, as a share of the picture's.
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
    """What evaluation does: uint8 (B, S, S, 3) to float32 (B, 3, S, S), (x / 255 - mean) / std per channel."""
    return _standardise(_to_unit(images), mean, std)


def augment(
    images: Tensor,
    policy: Augmentation,
    generator: torch.Generator,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Augment and normalise a batch on its device.

    Args:
        images: uint8 (B, S, S, 3).
        policy: `WEAK`, `STRONG` or another set of ranges.
        generator: Source of all randomness, on the images' device; the same state gives the same result.
        mean: Per channel, on the scale 0..1.
        std: Per channel, on the scale 0..1.

    Returns:
        float32 (B, 3, S, S).
    """
    # One table of uniform numbers per call, a column for each decision, whatever the policy uses of it: so weak and
    # strong views from equal generator states share their geometry's random numbers.
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
    """Sample each picture through its affine map; beyond the edge, the edge is repeated."""
    angle = _between(draws[:, 1], -radians(policy.rotate), radians(policy.rotate))
    zoom = _between(draws[:, 2], *policy.scale)
    mirror = torch.where(draws[:, 0] < policy.flip, -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # grid_sample asks where each output pixel comes from, in coordinates where the side is 2.
    shift_x, shift_y = (_between(draws[:, i], -2 * policy.translate, 2 * policy.translate) for i in (3, 4))
    rows = (torch.stack([mirror * cos, -mirror * sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _relight(x: Tensor, policy: Augmentation, draws: Tensor) -> Tensor:
    """Contrast around each picture's mean, brightness, then gamma, within 0..1."""
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
    """Binomial 1-2-1 filter along both axes, edges repeated: two 2 x 2 means, each half a pixel off the other way."""
    return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, stride=1), 2, stride=1)


def _rectangles(side: int, policy: Augmentation, draws: Tensor) -> Tensor:
    """Boolean (B, 1, S, S), true in the rectangle to erase."""
    pixels = torch.arange(side, device=draws.device) + 0.5
    spans = []
    for axis in (0, 1):
        length = side * policy.erase_side * _between(draws[:, 1 + axis], 0.3, 1.0)
        start = draws[:, 3 + axis] * (side - length)
        spans.append((pixels >= start[:, None]) & (pixels < (start + length)[:, None]))
    inside = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return inside & (draws[:, 0] < policy.erase)[:, None, None, None]
