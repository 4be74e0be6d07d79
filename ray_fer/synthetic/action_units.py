"""Facial action units (AUs), and which of them make up an expression.

Expressions are sampled as AU vectors rather than as pictures, because the AU vector is where the field's knowledge is
written down: which muscles move, how often, and how strongly. A classifier trained on the drawings then faces the real
problem's structure: classes overlap (fear and surprise share 1+2+5+25), the same class has variants, and weak
expressions are ambiguous.

Sources, and how far they were checked:

- core AUs and variants per class: Du, Tao & Martinez 2014 (PNAS 111:E1454), as quoted in PMC3992629; the percentages
  of subjects behind the presence probabilities are a recollection;
- EMFACS-style lists and the FACS manual's combination table, from secondary sources;
- the acceptance rules of `matches_ckplus`: Lucey et al. 2010 (CK+), from a report that cites it;
- intensity letters A-E are FACS's own; the scalars that stand for them, the letter ranges per class and the
  combination rules are design choices of this project.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

AuVector = NDArray[np.float64]
"""Intensities in [0, 1], shape (2, len(AUS)): row 0 the side on the image's left, row 1 the side on its right."""


@dataclass(frozen=True, slots=True)
class ActionUnit:
    """One movement: its FACS number, what it is called, the muscle behind it and the parts of the face it moves."""

    number: int
    name: str
    muscle: str
    parts: tuple[str, ...]


ACTION_UNITS: Mapping[int, ActionUnit] = MappingProxyType(
    {
        unit.number: unit
        for unit in (
            ActionUnit(1, "inner brow raiser", "frontalis, medial", ("brow", "eye")),
            ActionUnit(2, "outer brow raiser", "frontalis, lateral", ("brow", "eye")),
            ActionUnit(4, "brow lowerer", "corrugator, procerus", ("brow", "eye")),
            ActionUnit(5, "upper lid raiser", "levator palpebrae", ("eye",)),
            ActionUnit(6, "cheek raiser", "orbicularis oculi, orbital", ("eye", "cheek")),
            ActionUnit(7, "lid tightener", "orbicularis oculi, palpebral", ("eye",)),
            ActionUnit(9, "nose wrinkler", "levator labii superioris alaeque nasi", ("brow", "nose", "cheek", "mouth")),
            ActionUnit(10, "upper lip raiser", "levator labii superioris", ("nose", "cheek", "mouth")),
            ActionUnit(11, "nasolabial deepener", "zygomaticus minor", ("cheek", "mouth")),
            ActionUnit(12, "lip corner puller", "zygomaticus major", ("cheek", "mouth")),
            ActionUnit(14, "dimpler", "buccinator", ("mouth",)),
            ActionUnit(15, "lip corner depressor", "depressor anguli oris", ("mouth",)),
            ActionUnit(16, "lower lip depressor", "depressor labii inferioris", ("mouth",)),
            ActionUnit(17, "chin raiser", "mentalis", ("mouth", "chin")),
            ActionUnit(18, "lip pucker", "incisivii labii", ("mouth",)),
            ActionUnit(20, "lip stretcher", "risorius", ("cheek", "mouth")),
            ActionUnit(22, "lip funneler", "orbicularis oris", ("mouth",)),
            ActionUnit(23, "lip tightener", "orbicularis oris", ("mouth",)),
            ActionUnit(24, "lip pressor", "orbicularis oris", ("mouth",)),
            ActionUnit(25, "lips part", "depressor labii inferioris or relaxed mentalis", ("mouth",)),
            ActionUnit(26, "jaw drop", "masseter, relaxed", ("mouth", "chin")),
            ActionUnit(27, "mouth stretch", "pterygoids, digastric", ("mouth", "chin")),
            ActionUnit(28, "lip suck", "orbicularis oris", ("mouth",)),
            ActionUnit(38, "nostril dilator", "nasalis, alar", ("nose",)),
            ActionUnit(43, "eyes closed", "levator palpebrae, relaxed", ("eye",)),
        )
    }
)
AUS: tuple[int, ...] = tuple(ACTION_UNITS)
AU_INDEX: Mapping[int, int] = MappingProxyType({au: index for index, au in enumerate(AUS)})

LETTERS: Mapping[str, float] = MappingProxyType({"A": 0.15, "B": 0.3, "C": 0.55, "D": 0.8, "E": 1.0})
"""FACS intensity letters (trace, slight, marked, severe, maximum) as scalars; the scalars are a design choice."""

PRESENT = 0.1
"""An AU counts as present from this intensity on: below the weakest trace (A) by more than the left/right gain."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How often an AU takes part in an expression, and between which intensity letters."""

    au: int
    low: str
    high: str
    probability: float = 1.0


def _draws(text: str) -> tuple[Draw, ...]:
    """Parse the notation of the recipes, `12:C-E 6:B-D@.65`: AU, letters, presence probability (1 if absent)."""
    draws = []
    for item in text.split():
        unit, _, probability = item.partition("@")
        number, _, letters = unit.partition(":")
        draws.append(Draw(int(number), letters[0], letters[-1], float(probability or 1)))
    return tuple(draws)


_TRACES = _draws("1:A@.05 2:A@.05 4:A@.05 12:A@.05 15:A@.05 25:A@.05")
RECIPES: Mapping[str, tuple[tuple[Draw, ...], ...]] = MappingProxyType(
    {
        "neutral": (_TRACES,),
        "anger": (_draws("4:C-E 7:B-D@.85 24:B-D@.75 23:B-C@.45 17:B@.5 5:B-C@.35 10:B@.25"),),
        "disgust": (_draws("9:C-E@.85 10:C-D@.85 17:B-C@.75 4:B@.35 7:B@.3 24:B@.25 15:B@.2 16:B@.2"),),
        "fear": (_draws("1:C-E 4:C-D@.95 2:B-D@.6 5:C-E@.7 20:B-D@.85 25:B-C@.9 26:B-C@.35"),),
        "happiness": (_draws("12:C-E 6:B-D@.65 25:B-C@.7 26:B@.2"),),
        "sadness": (_draws("4:B-C@.9 15:B-D@.9 1:B-D@.75 17:B-C@.65 6:A-B@.4 11:B@.25 43:B@.2"),),
        "surprise": (_draws("1:C-E 2:C-E 25:C-D@.95 26:C-D@.95 5:A-B@.66 27:C-D@.2"),),
        "contempt": (_draws("14:B-D 12:A-B@.6"),),
        "other": (
            _draws("12:C-D 4:C-D"),
            _draws("14:B-D 1:B-D"),
            _draws("18:C-E"),
            _draws("28:C-E"),
            _draws("10:B-D 12:B-D"),
            _draws("22:C-E 25:B-C"),
            _draws("1:C-D 2:C-D 12:C-D 25:B-C"),
            _draws("10:C-D 12:C-D 25:B-C"),
            _draws("4:C-D 15:C-D"),
            _draws("1:C-D 2:C-D 5:C-D 20:B-D 25:B-C"),
            _draws("4:C-D 25:B-C 26:C-D"),
            _draws("1:B-C 2:B-C 5:C-D 25:B-C"),
        ),
    }
)
"""Per class, the recipes one of which is drawn: all but `other` (incoherent pairs and compound emotions) have one."""

ONE_SIDED: frozenset[str] = frozenset({"contempt"})

_DISTRACTORS = _draws("1:A-B 2:A-B 4:A-B 5:A-B 7:A-B 12:A-B 14:A-B 15:A-B 17:A-B 20:A-B 25:A-C 26:A-B 43:A-C")


def neutral_vector() -> AuVector:
    """No movement at all: zeros of shape (2, len(AUS))."""
    return np.zeros((2, len(AUS)))


def au_vector(intensities: Mapping[int, float]) -> AuVector:
    """The symmetric vector with these intensities (AU number -> [0, 1]); every other AU is absent."""
    vector = neutral_vector()
    for au, intensity in intensities.items():
        vector[:, AU_INDEX[au]] = intensity
    return vector


def intensity(vector: AuVector, au: int) -> float:
    """The intensity of an AU on the side where it is stronger."""
    return float(vector[:, AU_INDEX[au]].max())


def _present(vector: AuVector, au: int) -> bool:
    return intensity(vector, au) >= PRESENT


def prototype(label: str, letter: str = "C") -> AuVector:
    """The class's usual AUs (those of presence probability >= .45) at one intensity letter, without any chance.

    An AU that the recipe bounds from above stays at its bound: AU 5 in surprise never exceeds B, or it would read as
    fear. `contempt` is on the image's left side. `other` is its first recipe.
    """
    vector = neutral_vector()
    for draw in RECIPES[label][0]:
        if draw.probability >= 0.45:
            sides = [0] if label in ONE_SIDED else [0, 1]
            vector[sides, AU_INDEX[draw.au]] = min(LETTERS[letter], LETTERS[draw.high])
    return vector


def sample_action_units(
    label: str, rng: np.random.Generator, *, difficulty: float = 0.0, letter: str | None = None
) -> AuVector:
    """Draw an AU vector of a class.

    Args:
        label: A key of `RECIPES`.
        rng: Source of chance; the same state gives the same vector.
        difficulty: In [0, 1]; its square d scales what it does, so that the lower half is a fine range. The whole
            expression is multiplied by a factor from U(1 - 0.6 d, 1), and 1.2 d movements on average that belong to
            no expression are added (talking, a frown at the light).
        letter: Put every AU at this intensity letter instead of one from the recipe's range; difficulty is ignored.

    Returns:
        Intensities, shape (2, len(AUS)). The two sides differ by gains from N(1, 0.08); a one-sided class has the
        other side at rest.
    """
    recipes = RECIPES[label]
    recipe = recipes[int(rng.integers(len(recipes)))]
    sides = [int(rng.integers(2))] if label in ONE_SIDED else [0, 1]
    vector = neutral_vector()
    _add(vector, recipe, sides, rng, letter)
    if letter is None:
        vector *= rng.uniform(1.0 - 0.6 * difficulty**2, 1.0)
        extra = [d for d in _DISTRACTORS if rng.random() < 1.2 * difficulty**2 / len(_DISTRACTORS)]
        _add(vector, extra, [0, 1], rng, None)
    return np.clip(vector * rng.normal(1.0, 0.08, vector.shape), 0.0, 1.0)


def _add(
    vector: AuVector, draws: Iterable[Draw], sides: list[int], rng: np.random.Generator, letter: str | None
) -> None:
    for draw in draws:
        if rng.random() >= draw.probability:
            continue
        value = LETTERS[letter] if letter else rng.uniform(LETTERS[draw.low], LETTERS[draw.high])
        column = AU_INDEX[draw.au]
        vector[sides, column] = np.maximum(vector[sides, column], value)


def combine(vector: AuVector) -> AuVector:
    """What is left of each AU when they act together, shape as given.

    Rules (design): tightened or pressed lips (23, 24) keep the mouth shut, so they scale 25-27 down to nothing; the
    wider opening of 27 and 26 stands for the narrower ones; closed eyes (43) undo the raised lid (5).
    """
    out = np.clip(vector, 0.0, 1.0)
    column = {au: AU_INDEX[au] for au in (5, 23, 24, 25, 26, 27, 43)}
    shut = np.maximum(out[:, column[23]], out[:, column[24]]).max()
    open_share = float(np.clip(1.0 - shut / LETTERS["B"], 0.0, 1.0))
    out[:, [column[25], column[26], column[27]]] *= open_share
    out[:, column[26]] *= 1.0 - out[:, column[27]]
    out[:, column[5]] *= 1.0 - out[:, column[43]]
    return out


def matches_ckplus(label: str, vector: AuVector) -> bool:
    """Whether an AU vector satisfies CK+'s acceptance rule for a class (Lucey et al. 2010).

    The rules do not exclude each other (a fearful face passes for surprise too), and `other` has none: every vector
    passes. `neutral` asks for no AU above a trace.
    """
    has = {au: _present(vector, au) for au in AUS}
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
