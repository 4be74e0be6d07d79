from itertools import pairwise

import numpy as np
import pytest

from ray_fer.synthetic.action_units import AU_INDEX, RECIPES, neutral_vector
from ray_fer.synthetic.clips import (
    TIMINGS_S,
    Episode,
    au_series,
    draw_clip,
    draw_episodes,
    frame_labels,
    intensity_profile,
    minimum_jerk,
)
from ray_fer.synthetic.identity import draw_identity
from tests.synthetic.reference import prototype

EPISODE = Episode("anger", start_s=1.0, onset_s=0.5, apex_s=1.0, offset_s=0.5, vector=prototype("anger", "D"))


def test_minimum_jerk_runs_from_0_to_1_and_is_flat_at_both_ends() -> None:
    np.testing.assert_allclose(minimum_jerk(np.array([-1.0, 0.0, 0.5, 1.0, 2.0])), [0, 0, 0.5, 1, 1])
    s = np.linspace(0, 1, 101)
    assert (np.diff(minimum_jerk(s)) > 0).all()
    assert minimum_jerk(np.array([0.01]))[0] < 1e-4


def test_profile_rises_holds_and_falls() -> None:
    times = np.array([0.5, 1.0, 1.25, 1.5, 2.0, 2.5, 2.75, 3.0, 3.5])
    np.testing.assert_allclose(intensity_profile(times, EPISODE), [0, 0, 0.5, 1, 1, 1, 0.5, 0, 0])


def test_a_frame_has_the_class_from_three_tenths_on() -> None:
    times = np.arange(0, 4, 0.05)
    labels = np.array(frame_labels([EPISODE], times))
    np.testing.assert_array_equal(labels == "anger", intensity_profile(times, EPISODE) >= 0.3)
    assert set(labels) == {"neutral", "anger"}


@pytest.mark.parametrize("duration_s", [1.0, 4.0, 20.0])
def test_episodes_fit_the_clip_with_rests_around_them(duration_s: float) -> None:
    for seed in range(10):
        episodes = draw_episodes(np.random.default_rng(seed), ("neutral", "anger", "fear", "sadness"), duration_s)
        assert len(episodes) == max(1, round(duration_s / 2.2))
        assert episodes[0].start_s > 0
        assert episodes[-1].end_s < duration_s
        for before, after in pairwise(episodes):
            assert before.end_s < after.start_s
            assert before.label != after.label


def test_every_class_but_neutral_has_timings() -> None:
    assert set(TIMINGS_S) == set(RECIPES) - {"neutral"}


def test_blinks_happen_without_any_expression() -> None:
    rest = Episode("other", 0.0, 1.0, 1.0, 1.0, neutral_vector())
    times = np.arange(0, 20, 1 / 30)
    lids = au_series([rest], times, np.random.default_rng(0))[:, 0, AU_INDEX[43]]
    closing = np.flatnonzero((lids[1:] > 0.5) & (lids[:-1] <= 0.5))
    assert 3 <= len(closing) <= 10
    assert (lids > 0).mean() < 0.25


def test_a_clip_repeats_and_its_labels_follow_its_intensity() -> None:
    person = draw_identity(np.random.default_rng(0))
    first, again = (
        draw_clip(person, np.random.default_rng(5), classes=("neutral", "happiness", "surprise"), frames=45, size=32)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.frames.shape == (45, 32, 32, 3)
    assert first.frames.dtype == np.uint8
    assert first.labels == again.labels
    np.testing.assert_array_equal(np.array(first.labels) != "neutral", first.intensity >= 0.3)
    assert first.labels[0] == "neutral"
    assert set(first.labels) <= {"neutral", "happiness", "surprise"}
