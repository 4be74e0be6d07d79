"""Everything in a photo that is not the expression: pose, light, occlusion, sensor, compression.

They keep a small network from reading the drawing like a diagram. At difficulty 0 a face is frontal, evenly
lit and sharp; at 1 it is turned, lit from a side, partly covered, blurred, noisy and compressed. A `Style` shifts the
same quantities as a group, which is how a second unlabeled bucket gets a domain shift. All ranges are design choices;
yaw +-20 degrees, roll +-12 degrees and blur up to 1.2 pixels (of 48) are the scale of cropped faces in the wild.
"""

import io
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ray_fer.synthetic.geometry import Pose
from ray_fer.synthetic.identity import Colour

OCCLUDERS: tuple[str, ...] = ("bar", "hand", "strands")


@dataclass(frozen=True, slots=True)
class Style:
    """Where pictures come from: shifts that all pictures of one source share."""

    grey_probability: float = 0.06
    extra_blur: float = 0.0
    """Added to the blur's sigma, in 1/64 of the picture's side."""
    gain: float = 1.0
    contrast: float = 1.0
    warmth: float = 0.0
    """Red against blue, as a share."""
    extra_noise: float = 0.0
    jpeg_quality: tuple[int, int] = (55, 95)


PHOTOS = Style()
SURVEILLANCE = Style(
    0.6, extra_blur=0.75, gain=0.72, contrast=0.8, warmth=-0.08, extra_noise=5.0, jpeg_quality=(25, 60)
)


@dataclass(frozen=True, slots=True)
class Nuisance:
    """One picture's circumstances. `seed` seeds the noise and the strands of hair."""

    pose: Pose = field(default_factory=Pose)
    background: Colour = (120.0, 130.0, 140.0)
    background_slope: float = 0.0
    light_angle: float = 0.0
    light: float = 0.0
    """Illumination gradient: the lit side is 1 + light, the other 1 - light."""
    gain: float = 1.0
    contrast: float = 1.0
    warmth: float = 0.0
    blur: float = 0.0
    """Sigma in 1/64 of the picture's side."""
    noise: float = 0.0
    """Sigma in grey levels."""
    grey: bool = False
    occluder: str | None = None
    occluder_x: float = 0.5
    occluder_y: float = 0.7
    occluder_size: float = 0.2
    occluder_angle: float = 0.0
    occluder_colour: Colour = (90.0, 90.0, 90.0)
    jpeg_quality: int = 95
    seed: int = 0


def draw_nuisance(rng: np.random.Generator, difficulty: float, style: Style = PHOTOS) -> Nuisance:
    """Draw one picture's circumstances; the same generator state gives the same ones.

    Args:
        rng: Source of chance.
        difficulty: In [0, 1]; its square scales every range.
        style: The source's shift, in force at any difficulty.
    """
    d = difficulty**2
    pose = Pose(
        yaw=float(np.radians(rng.normal(0, 14)) * d),
        pitch=float(np.radians(rng.normal(0, 8)) * d),
        roll=float(np.radians(rng.normal(0, 8)) * d),
        iod=float(0.355 * np.exp(rng.normal(0, 0.1) * d)),
        x=float(0.5 + rng.normal(0, 0.03) * d),
        y=float(0.41 + rng.normal(0, 0.03) * d),
    )
    background = np.clip(rng.uniform(30, 225) + rng.normal(0, 25, 3), 0, 255)
    colour = np.clip(rng.uniform(20, 235) + rng.normal(0, 30, 3), 0, 255)
    occluded = rng.random() < 0.36 * d
    low, high = style.jpeg_quality
    return Nuisance(
        pose=pose,
        background=(float(background[0]), float(background[1]), float(background[2])),
        background_slope=float(rng.uniform(-0.4, 0.4)),
        light_angle=float(rng.uniform(0, 2 * np.pi)),
        light=float(rng.uniform(0, 0.75) * d),
        gain=float(style.gain * np.exp(rng.normal(0, 0.22) * d)),
        contrast=float(style.contrast * np.exp(rng.normal(0, 0.15) * d)),
        warmth=float(style.warmth + rng.normal(0, 0.08) * d),
        blur=float(style.extra_blur + min(rng.gamma(1.2, 0.7), 2.5) * d),
        noise=float(style.extra_noise + rng.uniform(0, 14) * d),
        grey=bool(rng.random() < style.grey_probability),
        occluder=str(rng.choice(OCCLUDERS)) if occluded else None,
        occluder_x=float(rng.uniform(0.2, 0.8)),
        occluder_y=float(rng.uniform(0.25, 0.9)),
        occluder_size=float(rng.uniform(0.12, 0.24)),
        occluder_angle=float(rng.uniform(0, np.pi)),
        occluder_colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        jpeg_quality=int(rng.integers(round(high - (high - low) * d), high + 1)),
        seed=int(rng.integers(2**31)),
    )


def expose(image: NDArray[np.float32], nuisance: Nuisance) -> NDArray[np.uint8]:
    """Apply light, lens and sensor to a scene.

    Args:
        image: RGB in [0, 255], shape (S, S, 3); overwritten.
        nuisance: Light, contrast, warmth, blur, noise and colour are applied, in this order.

    Returns:
        RGB, uint8, shape (S, S, 3); the three channels are equal in a grey picture.
    """
    size = image.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    ramp = axis[None, :] * np.cos(nuisance.light_angle) + axis[:, None] * np.sin(nuisance.light_angle)
    image *= (nuisance.gain * np.maximum(1 + nuisance.light * ramp, 0.12))[:, :, None]
    if nuisance.contrast != 1.0:
        image -= 118
        image *= nuisance.contrast
        image += 118
    image *= np.array([1 + nuisance.warmth, 1, 1 - nuisance.warmth], np.float32)
    if nuisance.blur > 0:
        sharp = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        image = np.asarray(sharp.filter(ImageFilter.GaussianBlur(nuisance.blur * size / 64)), np.float32)
    if nuisance.grey:
        image = np.repeat(image @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, axis=2)
    if nuisance.noise > 0:
        channels = 1 if nuisance.grey else 3
        rng = np.random.default_rng(nuisance.seed)
        image = image + nuisance.noise * rng.standard_normal((size, size, channels), np.float32)
    return np.asarray(np.clip(image + 0.5, 0, 255), np.uint8)


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Compress an RGB picture, shape (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
