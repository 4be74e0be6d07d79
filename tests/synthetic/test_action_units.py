import numpy as np
import pytest

from ray_fer.synthetic.action_units import (
    AU_INDEX,
    AUS,
    LETTERS,
    RECIPES,
    combine,
    neutral_vector,
    sample_action_units,
)
from tests.synthetic.reference import au_vector, intensity, matches_ckplus, prototype

LABELS = tuple(RECIPES)


@pytest.mark.parametrize("label", LABELS)
def test_prototype_satisfies_the_ckplus_rule_of_its_class(label: str) -> None:
    assert matches_ckplus(label, prototype(label, "C"))


@pytest.mark.parametrize(
    ("label", "vector", "expected"),
    [
        ("happiness", {6: 0.5}, False),
        ("happiness", {12: 0.5}, True),
        ("anger", {4: 1.0, 7: 1.0, 24: 1.0}, False),
        ("anger", {23: 0.3, 24: 0.3}, True),
        ("fear", {1: 0.5, 2: 0.5, 5: 0.8}, False),
        ("fear", {1: 0.5, 2: 0.5, 5: 1.0}, True),
        ("fear", {1: 0.5, 2: 0.5, 4: 0.5}, True),
        ("surprise", {5: 0.3}, True),
        ("surprise", {5: 0.8}, False),
        ("sadness", {6: 0.3, 15: 0.3}, True),
        ("sadness", {1: 0.3, 15: 0.3}, False),
        ("sadness", {1: 0.3, 4: 0.3, 11: 0.3}, True),
        ("disgust", {10: 0.5}, True),
        ("neutral", {12: 0.15}, True),
        ("neutral", {12: 0.3}, False),
    ],
)
def test_ckplus_rules(label: str, vector: dict[int, float], expected: bool) -> None:
    assert matches_ckplus(label, au_vector(vector)) is expected


def test_ckplus_has_no_rule_for_an_unknown_class() -> None:
    with pytest.raises(KeyError, match="boredom"):
        matches_ckplus("boredom", neutral_vector())


@pytest.mark.parametrize(
    ("label", "share"), [("neutral", 1), ("happiness", 1), ("surprise", 1), ("contempt", 1), ("disgust", 0.9)]
)
def test_samples_satisfy_the_rule_as_often_as_the_recipe_says(label: str, share: float) -> None:
    rng = np.random.default_rng(0)
    assert np.mean([matches_ckplus(label, sample_action_units(label, rng)) for _ in range(200)]) >= share


@pytest.mark.parametrize("label", LABELS)
def test_samples_are_intensities_and_repeat_with_the_generator(label: str) -> None:
    first, again = (sample_action_units(label, np.random.default_rng(3), difficulty=0.7) for _ in range(2))
    assert first.shape == (2, len(AUS))
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)


def test_contempt_is_one_sided() -> None:
    for seed in range(20):
        vector = sample_action_units("contempt", np.random.default_rng(seed))
        assert sorted((vector > 0).any(axis=1)) == [False, True]


def test_surprise_lids_stay_at_b() -> None:
    assert intensity(prototype("surprise", "E"), 5) == LETTERS["B"]
    assert intensity(prototype("surprise", "E"), 1) == LETTERS["E"]


def test_difficulty_weakens_expressions() -> None:
    def mean(difficulty: float) -> float:
        rng = np.random.default_rng(0)
        vectors = [sample_action_units("fear", rng, difficulty=difficulty) for _ in range(200)]
        return float(np.mean([intensity(vector, 1) for vector in vectors]))

    assert mean(0.0) > 1.02 * mean(0.5) > 1.15 * mean(1.0)


def test_pressed_lips_do_not_open() -> None:
    out = combine(au_vector({24: 0.3, 25: 1.0, 26: 1.0, 27: 1.0}))
    assert out[:, [AU_INDEX[25], AU_INDEX[26], AU_INDEX[27]]].max() == 0


def test_wider_openings_and_closed_eyes_override() -> None:
    out = combine(au_vector({26: 1.0, 27: 1.0, 5: 1.0, 43: 1.0}))
    assert [intensity(out, au) for au in (26, 27, 5, 43)] == [0, 1, 0, 1]


def test_every_au_of_the_recipes_is_in_the_table() -> None:
    used = {draw.au for recipes in RECIPES.values() for recipe in recipes for draw in recipe}
    assert used <= set(AUS)
