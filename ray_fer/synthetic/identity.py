"""The person who is drawn: the shape and colours of a face at rest, fixed for one person across photos and clips.

The spread of the *neutral* shape is the point: a low heavy brow at rest must look a little like anger and hanging mouth
corners a little like sadness, so that a recogniser has to generalise over people and identity-disjoint splits mean
something. All magnitudes are design choices, in units of the inter-ocular distance (IOD, between the pupils).
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]
"""RGB in [0, 255]."""

_SKIN: tuple[Colour, ...] = (
    (250, 222, 200),
    (236, 196, 164),
    (216, 168, 130),
    (178, 124, 88),
    (130, 86, 60),
    (88, 58, 42),
)
_HAIR: tuple[Colour, ...] = ((28, 22, 20), (54, 36, 24), (96, 62, 36), (170, 128, 74), (206, 176, 120), (128, 124, 122))
_IRIS: tuple[Colour, ...] = ((58, 36, 22), (84, 56, 32), (90, 104, 60), (84, 118, 150))
HAIR_STYLES: tuple[str, ...] = ("bald", "short", "parted", "long", "fringe")


@dataclass(frozen=True, slots=True)
class Identity:
    """A person; lengths in IOD, angles as slopes, `*_scale` relative to the average face."""

    face_width: float
    """Half width at eye level."""
    chin_y: float
    """Height of the chin below the eyes."""
    jaw_power: float
    """Roundness of the jaw: below 1 square, above 1 pointed."""
    brow_y: float
    """Distance from eye to brow."""
    brow_tilt: float
    """Drop of the inner brow end against the outer."""
    brow_arch: float
    brow_thickness: float
    brow_inner_x: float
    eye_width: float
    eye_open: float
    """Aperture relative to the average."""
    eye_tilt: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    """Half width."""
    mouth_curve: float
    """Height of the corners at rest, positive when they hang."""
    lip_upper: float
    lip_lower: float
    wrinkle_scale: float
    """How strongly skin shows furrows."""
    age_lines: float
    """Nasolabial and forehead lines that are there at rest."""
    hair_style: str
    hair_line: float
    """Height of the hairline above the eyes."""
    beard: float
    """Opacity of a beard in [0, 1]."""
    glasses: bool
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    clothes: Colour


def _palette(colours: tuple[Colour, ...], rng: np.random.Generator, jitter: float) -> Colour:
    """A colour between two neighbours of a palette, each channel jittered."""
    position = rng.uniform(0, len(colours) - 1)
    low = int(position)
    share = position - low
    first, second = np.array(colours[low]), np.array(colours[min(low + 1, len(colours) - 1)])
    red, green, blue = np.clip(first + share * (second - first) + rng.normal(0, jitter, 3), 0, 255)
    return float(red), float(green), float(blue)


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw a person; the same generator state gives the same one."""

    def around(mean: float, spread: float) -> float:
        """Normal, cut at two standard deviations: no monsters."""
        return mean + spread * float(np.clip(rng.normal(), -2, 2))

    skin = _palette(_SKIN, rng, 5)
    hair = _palette(_HAIR, rng, 8)
    redness = rng.uniform(0.3, 0.9)
    lips = (skin[0] * (0.92 - 0.06 * redness), skin[1] * (0.80 - 0.24 * redness), skin[2] * (0.84 - 0.2 * redness))
    clothes = rng.uniform(20, 230, 3)
    return Identity(
        face_width=around(1.08, 0.06),
        chin_y=around(1.68, 0.08),
        jaw_power=around(0.85, 0.12),
        brow_y=around(0.36, 0.045),
        brow_tilt=around(0.02, 0.035),
        brow_arch=around(0.06, 0.03),
        brow_thickness=around(0.085, 0.02),
        brow_inner_x=around(0.2, 0.03),
        eye_width=around(0.27, 0.02),
        eye_open=around(1.0, 0.16),
        eye_tilt=around(-0.02, 0.02),
        nose_length=around(0.58, 0.05),
        nose_width=around(0.21, 0.025),
        mouth_y=around(1.08, 0.05),
        mouth_width=around(0.41, 0.04),
        mouth_curve=around(-0.005, 0.03),
        lip_upper=around(0.075, 0.018),
        lip_lower=around(0.105, 0.022),
        wrinkle_scale=rng.uniform(0.45, 1.0),
        age_lines=float(max(0.0, rng.normal(0.1, 0.18))),
        hair_style=str(rng.choice(HAIR_STYLES, p=(0.08, 0.34, 0.22, 0.26, 0.10))),
        hair_line=around(0.88, 0.09),
        beard=float(rng.uniform(0.25, 0.9)) if rng.random() < 0.15 else 0.0,
        glasses=bool(rng.random() < 0.14),
        skin=skin,
        hair=hair,
        iris=_palette(_IRIS, rng, 6),
        lips=lips,
        clothes=(float(clothes[0]), float(clothes[1]), float(clothes[2])),
    )
