"""The expression classes, and how each public data set numbers them.

Every data set counts the same seven emotions in another order, and the Hugging Face mirrors of FER2013 in another
order than its own csv; a model trained over one table and evaluated over the other looks like chance. So ray-fer
carries class names everywhere, and this file is the only place where a number means an expression.

Sources of the tables: Aff-Wild2 and AFE from the organisers' and the clup loaders, AffectNet, RAF-DB, FER2013, ExpW
from the data sets' own files, FERPlus from microsoft/FERPlus, HSEmotion from its facial_emotions.py.
"""

from collections.abc import Iterable, Mapping, Sequence

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
"""Other spellings, lower-case."""

AFFECTNET: Mapping[int, str | None] = dict(
    enumerate(("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt", None, None, None))
)
"""AffectNet; 8 None, 9 Uncertain, 10 No-Face have no class."""

RAF_DB: Mapping[int, str | None] = dict(
    enumerate(("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"), start=1)
)
"""RAF-DB basic emotions, counted from 1."""

FER2013: Mapping[int, str | None] = dict(
    enumerate(("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"))
)
"""The `emotion` column of fer2013.csv."""

FER2013_FOLDERS: Mapping[int, str | None] = dict(
    enumerate(("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"))
)
"""FER2013 by sorted folder names (`angry disgust fear happy neutral sad surprise`): its Hugging Face mirrors."""

FERPLUS: Mapping[int, str | None] = dict(
    enumerate(("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", None, None))
)
"""The vote columns of fer2013new.csv; unknown and NF (not a face) have no class."""

EXPW: Mapping[int, str | None] = dict(FER2013)
"""ExpW's label.lst."""

AFE: Mapping[int, str | None] = dict(FER2013_FOLDERS)
"""AFE's lists."""

HSEMOTION_8: Mapping[int, str | None] = dict(
    enumerate(("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"))
)
"""Outputs of the 8-class HSEmotion models."""

HSEMOTION_7: Mapping[int, str | None] = dict(FER2013_FOLDERS)
"""Outputs of the 7-class HSEmotion models."""


def canonical(name: str) -> str:
    """The canonical name of an expression, from any case or alias.

    Raises:
        UserError: for a class that is not an expression; the message names it.
    """
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in EXPRESSIONS:
        raise UserError(f"unknown class {name.strip()!r} (known: {', '.join(EXPRESSIONS)})")
    return key


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in canonical order, aliases resolved; custom names keep their spelling and follow, sorted."""
    distinct = {class_name(name) for name in names}
    custom = sorted(distinct.difference(EXPRESSIONS))
    return (*(name for name in EXPRESSIONS if name in distinct), *custom)


def class_name(name: str) -> str:
    """The canonical name if `name` is an expression, else the stripped name itself: a custom class."""
    try:
        return canonical(name)
    except UserError:
        return name.strip()


def code_index(
    codes: Mapping[int, str | None], classes: Sequence[str], *, contempt_as_other: bool = False
) -> dict[int, int]:
    """A data set's codes as indices into `classes`; -1 where the code has no class or the class is not wanted.

    Args:
        codes: One of this module's tables.
        classes: The target classes in their order, for instance `ABAW`.
        contempt_as_other: Count contempt as other where `classes` lacks it: a choice some ABAW teams make, not a fact
            about faces.
    """
    position = {name: index for index, name in enumerate(classes)}
    if contempt_as_other and "contempt" not in position and "other" in position:
        position["contempt"] = position["other"]
    return {code: -1 if name is None else position.get(name, -1) for code, name in codes.items()}
