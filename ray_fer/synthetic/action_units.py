"""Facial action units (AUs), and which of them make up an expression.

Expressions are sampled as AU vectors rather than as pictures, because the field's knowledge is about AUs: which muscles
move, how often, and how strongly. A classifier trained on the drawings then faces the real
problem's structure: classes overlap (fear and surprise share 1+2+5+25), the same class has variants, and weak
expressions are ambiguous.

Sources, and how far they were checked:

- core AUs and variants per class: Du, Tao & Martinez 2014 (PNAS 111:E1454), as quoted in PMC3992629; the percentages
  of subjects behind the presence probabilities are quoted from memory;
- EMFACS-style lists and the FACS manual's combination table, from secondary sources;
- the intensity letters A-E are FACS's own; the scalars that stand for them, the letter ranges per class and the
  combination rules are design choices of this project.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

AuVector = NDArray[np.float64]
"""Intensities in [0, 1], shape (2, len(AUS)): row 0 the side on the image's left, row 1 the side on its right."""


AUS: tuple[int, ...] = (
    1,  # inner brow raiser: frontalis, medial
    2,  # outer brow raiser: frontalis, lateral
    4,  # brow lowerer: corrugator, procerus
    5,  # upper lid raiser: levator palpebrae
    6,  # cheek raiser: orbicularis oculi, orbital
    7,  # lid tightener: orbicularis oculi, palpebral
    9,  # nose wrinkler: levator labii superioris alaeque nasi
    10,  # upper lip raiser: levator labii superioris
    11,  # nasolabial deepener: zygomaticus minor
    12,  # lip corner puller: zygomaticus major
    14,  # dimpler: buccinator
    15,  # lip corner depressor: depressor anguli oris
    16,  # lower lip depressor: depressor labii inferioris
    17,  # chin raiser: mentalis
    18,  # lip pucker: incisivii labii
    20,  # lip stretcher: risorius
    22,  # lip funneler: orbicularis oris
    23,  # lip tightener: orbicularis oris
    24,  # lip pressor: orbicularis oris
    25,  # lips part: depressor labii inferioris or relaxed mentalis
    26,  # jaw drop: masseter, relaxed
    27,  # mouth stretch: pterygoids, digastric
    28,  # lip suck: orbicularis oris
    38,  # nostril dilator: nasalis, alar
    43,  # eyes closed: levator palpebrae, relaxed
)
"""The FACS numbers of the AUs that can be drawn, with the movement and the muscles behind each."""

AU_INDEX: Mapping[int, int] = MappingProxyType({au: index for index, au in enumerate(AUS)})

LETTERS: Mapping[str, float] = MappingProxyType({"A": 0.15, "B": 0.3, "C": 0.55, "D": 0.8, "E": 1.0})
"""FACS intensity letters (trace, slight, marked, severe, maximum) as scalars; the scalars are a design choice."""


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
"""The recipes per class, one of which is drawn; only `other` (incoherent pairs, compound emotions) has several."""

ONE_SIDED: frozenset[str] = frozenset({"contempt"})

_DISTRACTORS = _draws("1:A-B 2:A-B 4:A-B 5:A-B 7:A-B 12:A-B 14:A-B 15:A-B 17:A-B 20:A-B 25:A-C 26:A-B 43:A-C")


def neutral_vector() -> AuVector:
    """A face at rest: zeros of shape (2, len(AUS))."""
    return np.zeros((2, len(AUS)))


def sample_action_units(label: str, rng: np.random.Generator, *, difficulty: float = 0.0) -> AuVector:
    """Draw an AU vector of a class.

    Args:
        label: A key of `RECIPES`.
        rng: Source of chance; the same state gives the same vector.
        difficulty: In [0, 1]. Its square d scales the effects, so that the lower half is a fine range. The whole
            expression is multiplied by a factor from U(1 - 0.6 d, 1), and 1.2 d movements on average that belong to
            no expression are added (talking, a frown at the light).

    Returns:
        Intensities, shape (2, len(AUS)). The two sides differ by gains from N(1, 0.08); a one-sided class has the
        other side at rest.
    """
    recipes = RECIPES[label]
    recipe = recipes[int(rng.integers(len(recipes)))]
    sides = [int(rng.integers(2))] if label in ONE_SIDED else [0, 1]
    vector = neutral_vector()
    _add(vector, recipe, sides, rng)
    vector *= rng.uniform(1.0 - 0.6 * difficulty**2, 1.0)
    extra = [d for d in _DISTRACTORS if rng.random() < 1.2 * difficulty**2 / len(_DISTRACTORS)]
    _add(vector, extra, [0, 1], rng)
    return np.clip(vector * rng.normal(1.0, 0.08, vector.shape), 0.0, 1.0)


def _add(vector: AuVector, draws: Iterable[Draw], sides: list[int], rng: np.random.Generator) -> None:
    """Add the AUs that take part, at drawn intensities, to `vector` in place."""
    for draw in draws:
        if rng.random() < draw.probability:
            column = AU_INDEX[draw.au]
            value = rng.uniform(LETTERS[draw.low], LETTERS[draw.high])
            vector[sides, column] = np.maximum(vector[sides, column], value)


def combine(vector: AuVector) -> AuVector:
    """The intensities that remain when AUs act together, shape (2, len(AUS)).

    The rules are design choices. Tightened or pressed lips (23, 24) keep the mouth shut, so they scale 25-27 down to
    nothing. The wider opening of 27 and 26 stands for the narrower ones. Closed eyes (43) undo the raised lid (5).
    """
    out = np.clip(vector, 0.0, 1.0)
    column = {au: AU_INDEX[au] for au in (5, 23, 24, 25, 26, 27, 43)}
    shut = np.maximum(out[:, column[23]], out[:, column[24]]).max()
    open_share = float(np.clip(1.0 - shut / LETTERS["B"], 0.0, 1.0))
    out[:, [column[25], column[26], column[27]]] *= open_share
    out[:, column[26]] *= 1.0 - out[:, column[27]]
    out[:, column[5]] *= 1.0 - out[:, column[43]]
    return out
