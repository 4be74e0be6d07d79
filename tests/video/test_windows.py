import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fer.video.windows import average_windows, fill_gaps, frame_grid, gather, window_starts


@pytest.mark.parametrize(
    ("frames", "step", "positions"),
    [
        ([3, 5, 7, 13], 2, [0, 1, 2, 5]),  # two frames of a clip at half the rate are missing
        ([0, 5, 11], 5, [0, 1, 2]),
        ([10, 11, 14], 1, [0, 1, 4]),
        ([7], 1, [0]),
    ],
)
def test_grid_by_hand(frames: list[int], step: int, positions: list[int]) -> None:
    grid = frame_grid(np.array(frames))
    assert grid.step == step
    assert grid.positions.tolist() == positions
    assert grid.length == positions[-1] + 1
    assert np.flatnonzero(grid.present).tolist() == positions


def test_spread_by_hand() -> None:
    grid = frame_grid(np.array([4, 5, 7]))
    assert grid.spread(np.array([1, 2, 3]), -1).tolist() == [1, 2, -1, 3]
    assert grid.spread(np.ones((3, 2), np.float32)).tolist() == [[1, 1], [1, 1], [0, 0], [1, 1]]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True))
def test_no_two_frames_share_a_step(numbers: list[int]) -> None:
    grid = frame_grid(np.array(sorted(numbers)))
    assert (np.diff(grid.positions) > 0).all()
    assert grid.positions[0] == 0
    assert grid.present.sum() == len(numbers)


@pytest.mark.parametrize(
    ("n_frames", "window", "stride", "starts"),
    [(10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 2, [0]), (3, 4, 1, [0]), (5, 4, 4, [0, 1])],
)
def test_starts_by_hand(n_frames: int, window: int, stride: int, starts: list[int]) -> None:
    assert window_starts(n_frames, window, stride).tolist() == starts


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)).filter(lambda s: s[2] <= s[1])


@given(SIZES)
def test_every_frame_is_in_a_window_and_comes_back_unchanged(sizes: tuple[int, int, int]) -> None:
    n_frames, window, stride = sizes
    values = np.random.default_rng(n_frames).random((n_frames, 3)).astype(np.float32)
    starts = window_starts(n_frames, window, stride)
    assert (np.diff(starts) > 0).all()
    windows = gather(values, starts, window, fill=np.nan)
    assert windows.shape == (len(starts), window, 3)
    if n_frames >= window:
        assert not np.isnan(windows).any()  # nothing is padded
    np.testing.assert_allclose(average_windows(windows, starts, n_frames), values, rtol=1e-6)


def test_a_clip_shorter_than_the_window_is_padded() -> None:
    windows = gather(np.array([1, 2, 3]), np.array([0]), 5, fill=-1)
    assert windows.tolist() == [[1, 2, 3, -1, -1]]


def test_the_average_by_hand() -> None:
    windows = np.array([[[1.0], [2.0], [3.0]], [[6.0], [7.0], [8.0]]], np.float32)
    average = average_windows(windows, np.array([0, 1]), 4)
    assert average[:, 0].tolist() == [1.0, 4.0, 5.0, 8.0]
    assert average.dtype == np.float32


def test_one_window_comes_back_to_the_last_bit() -> None:
    window = np.random.default_rng(0).random((1, 6, 4)).astype(np.float32)
    assert np.array_equal(average_windows(window, np.array([0]), 6), window[0])


def test_gaps_by_hand() -> None:
    filled = fill_gaps(np.array([1, 5]), np.array([[0.0, 1.0], [1.0, 0.0]]), 7)
    # At the left neighbour the left one counts, not the right one.
    assert filled[:, 0].tolist() == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    np.testing.assert_allclose(filled.sum(axis=1), 1)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=10, unique=True), st.integers(0, 5))
def test_filled_probabilities_are_probabilities(numbers: list[int], after: int) -> None:
    positions = np.array(sorted(numbers))
    probs = np.random.default_rng(len(numbers)).dirichlet([1, 1, 1], len(numbers)).astype(np.float32)
    filled = fill_gaps(positions, probs, int(positions[-1]) + 1 + after)
    assert np.array_equal(filled[positions], probs)
    assert (filled >= 0).all()
    np.testing.assert_allclose(filled.sum(axis=1), 1, atol=1e-6)
