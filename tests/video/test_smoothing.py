import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fer.video.smoothing import box_filter, choose_half_width, smooth_clip, smoothed_macro_f1


def two_columns(values: list[float]) -> np.ndarray:
    first = np.array(values, np.float32)
    return np.stack([first, 1 - first], axis=1)


def test_the_box_by_hand() -> None:
    smoothed = box_filter(two_columns([1.0, 0.0, 0.0, 0.5]), 1)
    np.testing.assert_allclose(smoothed[:, 0], [1 / 2, 1 / 3, 0.5 / 3, 0.25], rtol=1e-6)  # fewer frames at the ends
    assert smoothed.dtype == np.float32


@given(st.integers(1, 40), st.integers(0, 60))
def test_smoothed_probabilities_are_probabilities(n_frames: int, half_width: int) -> None:
    probs = np.random.default_rng(n_frames).dirichlet([0.2] * 4, n_frames).astype(np.float32)
    smoothed = box_filter(probs, half_width)
    assert (smoothed >= 0).all()
    np.testing.assert_allclose(smoothed.sum(axis=1), 1, atol=1e-5)
    if half_width == 0:
        assert np.array_equal(smoothed, probs)
    if half_width >= n_frames:
        np.testing.assert_allclose(smoothed, np.broadcast_to(probs.mean(axis=0), probs.shape), atol=1e-6)


def test_a_constant_stays_as_it_is() -> None:
    probs = np.tile(np.array([[0.7, 0.2, 0.1]], np.float32), (9, 1))
    np.testing.assert_allclose(box_filter(probs, 3), probs, atol=1e-6)


def test_gaps_are_filled_before_the_filter() -> None:
    """Frames 0, 1, 4: 2 and 3 are interpolated to 2/3 and 1/3, so the last frame's mean is of 1/3 and 0."""
    smoothed = smooth_clip(np.array([10, 11, 14]), two_columns([1.0, 1.0, 0.0]), 1)
    np.testing.assert_allclose(smoothed[:, 0], [1.0, (1 + 1 + 2 / 3) / 3, (1 / 3 + 0) / 2], rtol=1e-6)


def test_the_width_is_in_steps_of_the_clip() -> None:
    dense = smooth_clip(np.arange(6), two_columns([1, 0, 1, 1, 0, 0]), 2)
    sparse = smooth_clip(np.arange(6) * 5, two_columns([1, 0, 1, 1, 0, 0]), 2)
    assert np.array_equal(dense, sparse)


def test_one_frame() -> None:
    probs = two_columns([0.3])
    np.testing.assert_allclose(smooth_clip(np.array([7]), probs, 50), probs)


def test_the_choice_by_hand() -> None:
    """One wrong frame in the middle: a box over +/-1 mends it, a box over everything loses the short class."""
    probs = two_columns([0.9, 0.9, 0.4, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1])
    labels = np.array([0] * 7 + [1] * 3)
    width, scores = choose_half_width([(np.arange(10), probs, labels)], [9, 2, 1, 0])
    assert width == 1
    assert scores[1] == 1.0
    assert scores[0] == pytest.approx((2 * 6 / 13 + 2 * 3 / 7) / 2)
    assert scores[9] == pytest.approx((2 * 7 / 17 + 0) / 2)


def test_of_equals_the_narrowest() -> None:
    clip = (np.arange(6), two_columns([0.9] * 6), np.zeros(6, np.int64))
    assert choose_half_width([clip], [5, 2, 3])[0] == 2


def test_clips_are_pooled_and_unlabelled_frames_ignored() -> None:
    right = (np.arange(2), two_columns([0.9, 0.1]), np.array([0, 1]))
    wrong = (np.arange(3), two_columns([0.9, 0.9, 0.9]), np.array([-1, -1, 1]))
    assert smoothed_macro_f1([right, wrong], 0) == pytest.approx((2 * 1 / 3 + 2 * 1 / 3) / 2)
    assert math.isnan(smoothed_macro_f1([(np.arange(1), two_columns([1.0]), np.array([-1]))], 0))


def test_the_best_width_grows_with_the_runs() -> None:
    """Noisy frames, labels in runs: smoothing helps, up to about a run's half, and loses it again."""

    def clips(run: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        made = []
        for seed in range(6):
            rng = np.random.default_rng((run, seed))
            labels = np.repeat(rng.permutation(np.arange(480 // run) % 3), run)
            logits = rng.normal(0, 1.5, (480, 3)) + 1.2 * np.eye(3)[labels]
            probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            made.append((np.arange(480), probs, labels))
        return made

    widths = [0, 1, 3, 6, 12, 25, 100]
    chosen = [choose_half_width(clips(run), widths) for run in (10, 80)]
    assert 0 < chosen[0][0] < chosen[1][0] < 100
    for width, scores in chosen:
        assert scores[width] > scores[0] + 0.1
        assert scores[width] > scores[100] + 0.1
