"""expressions: every data set's numbers mean the right names."""

from collections.abc import Mapping

import pytest

from ray_fer import expressions
from ray_fer.errors import UserError
from ray_fer.expressions import ABAW, EXPRESSIONS, canonical, class_name, class_order


def test_orders() -> None:
    assert EXPRESSIONS == (
        "neutral",
        "anger",
        "disgust",
        "fear",
        "happiness",
        "sadness",
        "surprise",
        "contempt",
        "other",
    )
    assert ABAW == ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")


# The classes as indices of ABAW's order, 7 for contempt-as-other, in the order of each data set's own codes.
MAPS = {
    "AFFECTNET": [0, 4, 5, 6, 3, 2, 1, 7, -1, -1, -1],
    "RAF_DB": [6, 3, 2, 4, 5, 1, 0],
    "FER2013": [1, 2, 3, 4, 5, 6, 0],
    "FERPLUS": [0, 4, 6, 5, 1, 2, 3, 7, -1, -1],
    "EXPW": [1, 2, 3, 4, 5, 6, 0],
}


@pytest.mark.parametrize("name", MAPS)
def test_code_tables_against_the_published_maps(name: str) -> None:
    codes: Mapping[int, str | None] = getattr(expressions, name)
    first = 1 if name == "RAF_DB" else 0
    position = {each: index for index, each in enumerate(ABAW)} | {"contempt": 7}
    found = {code: -1 if each is None else position[each] for code, each in codes.items()}
    assert found == dict(enumerate(MAPS[name], start=first))
    assert {each for each in codes.values() if each is not None} <= set(EXPRESSIONS)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("happy", "happiness"),
        ("Happy", "happiness"),
        (" HAPPINESS ", "happiness"),
        ("angry", "anger"),
        ("sad", "sadness"),
        ("surprised", "surprise"),
        ("Fearful", "fear"),
        ("disgusted", "disgust"),
        ("Other", "other"),
    ],
)
def test_canonical(spelling: str, name: str) -> None:
    assert canonical(spelling) == name


def test_canonical_of_every_name_and_alias_is_a_name() -> None:
    assert [canonical(name) for name in EXPRESSIONS] == list(EXPRESSIONS)
    assert {canonical(alias) for alias in expressions.ALIASES} <= set(EXPRESSIONS)


def test_unknown_class_is_named() -> None:
    with pytest.raises(UserError, match=r"^unknown class 'hapy' \(known: neutral, anger, .*, other\)$"):
        canonical("hapy")


def test_class_order() -> None:
    assert class_order(["surprise", "Happy", "neutral", "happiness"]) == ("neutral", "happiness", "surprise")
    assert class_order(["zest", "Awe", "other", "sad"]) == ("sadness", "other", "Awe", "zest")
    assert class_order([]) == ()
    assert class_name(" Awe ") == "Awe"
