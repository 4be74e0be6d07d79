"""The expression classes, and how each public data set numbers them.

Every data set counts the same seven emotions in another order; a model trained over one table and evaluated over the
other looks like chance. So ray-fer carries class names everywhere, and this file is the only place where a number means
an expression.

The tables come from the data sets' own files; FERPlus' from microsoft/FERPlus.
"""

from collections.abc import Iterable, Mapping

from ray_fer.errors import UserError

EXPRESSIONS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "contempt", "other")
"""The canonical names in canonical order."""

SEVEN = EXPRESSIONS[:7]
"""Neutral and the six basic emotions: what most data sets share."""

ABAW = (*SEVEN, "other")
"""The eight classes of the ABAW EXPR challenge (Aff-Wild2), in the order of its annotation and submission files."""

ALIASES: Mapping[str, str] = {
    "neutrality": "neutral",
    "normal": "neutral",
    "calm": "neutral",
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
    "contemptuous": "contempt",
    "others": "other",
}
"""The canonical name of other spellings, which are lower-case."""

AFFECTNET: Mapping[int, str | None] = dict(
    enumerate(("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt", None, None, None))
)
"""AffectNet; 8 (None), 9 (Uncertain) and 10 (No-Face) have no class."""

RAF_DB: Mapping[int, str | None] = dict(
    enumerate(("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"), start=1)
)
"""RAF-DB basic emotions, counted from 1."""

FER2013: Mapping[int, str | None] = dict(
    enumerate(("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"))
)
"""The `emotion` column of fer2013.csv."""

FERPLUS: Mapping[int, str | None] = dict(
    enumerate(("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", None, None))
)
"""The vote columns of fer2013new.csv; unknown and NF (not a face) have no class."""

EXPW: Mapping[int, str | None] = dict(FER2013)
"""The labels in ExpW's label.lst."""


def canonical(name: str) -> str:
    """The canonical name of an expression, from any case or alias.

    Raises:
        UserError: If ``name`` is not an expression; the message names it.
    """
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in EXPRESSIONS:
        raise UserError(f"unknown class {name.strip()!r} (known: {', '.join(EXPRESSIONS)})")
    return key


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in canonical order with aliases resolved, then custom names in their own spelling, sorted."""
    distinct = {class_name(name) for name in names}
    custom = sorted(distinct.difference(EXPRESSIONS))
    return (*(name for name in EXPRESSIONS if name in distinct), *custom)


def class_name(name: str) -> str:
    """The canonical name if ``name`` is an expression; else the stripped name itself, a custom class."""
    try:
        return canonical(name)
    except UserError:
        return name.strip()
