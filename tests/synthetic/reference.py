"""What drawn expressions are checked against: prototypes, CK+'s rules, and the parts of a face that each AU moves."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ray_fer.synthetic.action_units import AU_INDEX, AUS, LETTERS, ONE_SIDED, RECIPES, AuVector, neutral_vector
from ray_fer.synthetic.geometry import Pose

PRESENT = 0.1
"""An AU counts as present from this intensity on: below the weakest trace (A) by more than the left/right gain."""

PARTS: Mapping[int, tuple[str, ...]] = {
    1: ("brow", "eye"),
    2: ("brow", "eye"),
    4: ("brow", "eye"),
    5: ("eye",),
    6: ("eye", "cheek"),
    7: ("eye",),
    9: ("brow", "nose", "cheek", "mouth"),
    10: ("nose", "cheek", "mouth"),
    11: ("cheek", "mouth"),
    12: ("cheek", "mouth"),
    14: ("mouth",),
    15: ("mouth",),
    16: ("mouth",),
    17: ("mouth", "chin"),
    18: ("mouth",),
    20: ("cheek", "mouth"),
    22: ("mouth",),
    23: ("mouth",),
    24: ("mouth",),
    25: ("mouth",),
    26: ("mouth", "chin"),
    27: ("mouth", "chin"),
    28: ("mouth",),
    38: ("nose",),
    43: ("eye",),
}
"""The parts of the face that an AU moves."""

PART_BOXES: Mapping[str, tuple[float, float, float, float]] = {
    "brow": (-1.05, -0.98, 1.05, -0.05),
    "eye": (-1.05, -0.42, 1.05, 0.36),
    "cheek": (-1.0, 0.05, 1.0, 1.45),
    "nose": (-0.5, -0.2, 0.5, 0.9),
    "mouth": (-0.95, 0.62, 0.95, 1.75),
    "chin": (-1.25, 0.3, 1.25, 2.3),
}
"""Where a part of the face can change, as (left, top, right, bottom) in IOD of a frontal face; generous."""


def au_vector(intensities: Mapping[int, float]) -> AuVector:
    """The symmetric vector with these intensities (AU number -> [0, 1]); every other AU is absent."""
    vector = neutral_vector()
    for au, value in intensities.items():
        vector[:, AU_INDEX[au]] = value
    return vector


def intensity(vector: AuVector, au: int) -> float:
    """The intensity of an AU on the side where it is stronger."""
    return float(vector[:, AU_INDEX[au]].max())


def prototype(label: str, letter: str = "C") -> AuVector:
    """The class's usual AUs (those of presence probability >= .45) at one intensity letter, without randomness.

    An AU that the recipe bounds from above stays at its bound: AU 5 in surprise never exceeds B, or it would read as
    fear. `contempt` is on the image's left side. `other` is its first recipe.
    """
    vector = neutral_vector()
    sides = [0] if label in ONE_SIDED else [0, 1]
    for draw in RECIPES[label][0]:
        if draw.probability >= 0.45:
            vector[sides, AU_INDEX[draw.au]] = min(LETTERS[letter], LETTERS[draw.high])
    return vector


def sample_at_letter(label: str, rng: np.random.Generator, letter: str) -> AuVector:
    """Draw an AU vector of a class with every AU at one intensity letter, whatever the recipe's range."""
    recipes = RECIPES[label]
    recipe = recipes[int(rng.integers(len(recipes)))]
    sides = [int(rng.integers(2))] if label in ONE_SIDED else [0, 1]
    vector = neutral_vector()
    for draw in recipe:
        if rng.random() < draw.probability:
            vector[sides, AU_INDEX[draw.au]] = LETTERS[letter]
    return np.clip(vector * rng.normal(1.0, 0.08, vector.shape), 0.0, 1.0)


def matches_ckplus(label: str, vector: AuVector) -> bool:
    """Whether an AU vector satisfies CK+'s acceptance rule for a class (Lucey et al. 2010).

    The rules do not exclude each other (a fearful face passes for surprise too), and `other` has none: every vector
    passes. `neutral` asks for no AU above a trace.
    """
    has = {au: intensity(vector, au) >= PRESENT for au in AUS}
    match label:
        case "neutral":
            return bool(vector.max() <= LETTERS["A"] * 1.3)
        case "anger":
            return has[23] and has[24]
        case "disgust":
            return has[9] or has[10]
        case "fear":
            return has[1] and has[2] and (has[4] or intensity(vector, 5) >= LETTERS["E"])
        case "happiness":
            return has[12]
        case "sadness":
            return (has[1] and has[4] and (has[15] or has[11])) or (has[6] and has[15])
        case "surprise":
            return (has[1] and has[2]) or (has[5] and intensity(vector, 5) <= LETTERS["B"] * 1.3)
        case "contempt":
            return has[14]
        case "other":
            return True
    raise KeyError(label)


def part_region(part: str, pose: Pose, size: int) -> NDArray[np.bool_]:
    """The pixels where a part of a frontal, unrotated face can change, shape (size, size)."""
    left, top, right, bottom = PART_BOXES[part]
    scale = pose.iod * size
    columns = (np.arange(size) + 0.5 - pose.x * size) / scale
    rows = (np.arange(size) + 0.5 - pose.y * size) / scale
    return ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))[None, :]
