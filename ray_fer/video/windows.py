"""Windows over the frames of a clip: how they are cut, gathered and averaged, and how gaps are filled.

A temporal model sees T frames at once, a clip has any number. Windows start every ``stride`` frames and the last one is
flush with the clip's end, so that no frame is left out and no window but a short clip's only one needs padding. Where
windows overlap, their logits are averaged: a frame near the edge of one window is in the middle of another.

Frames go missing: no face found, a broken picture, a video annotated every fifth frame. Windows therefore lie on a grid
of equal time steps (`frame_grid`), absent frames are masked, and probabilities at absent frames are interpolated
(`fill_gaps`). Everything here is a pure function over arrays; N frames, W windows of T frames, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FrameGrid:
    """Equal time steps that hold the frames of a clip.

    Attributes:
        positions: The step of each of the M frames, int64 (M,), strictly increasing from 0.
        length: N, the number of steps from the first frame to the last, both included.
        step: Frames of the video per step of the grid.
    """

    positions: Ints
    length: int
    step: int

    @property
    def present(self) -> Bools:
        """Mark the N steps that hold a frame, bool (N,)."""
        present = np.zeros(self.length, np.bool_)
        present[self.positions] = True
        return present

    def spread(self, values: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """Map (M, ...) values of the frames to (N, ...) values of the steps, ``fill`` at absent ones."""
        spread = np.full((self.length, *values.shape[1:]), fill, values.dtype)
        spread[self.positions] = values
        return spread


def frame_grid(frames: Ints) -> FrameGrid:
    """Return the grid of a clip, whose step is the smallest distance between two frames.

    A clip with some frames missing keeps its holes; one annotated every fifth frame is dense, at a fifth of the rate.

    Args:
        frames: Frame numbers, int64 (M,), strictly increasing, M >= 1.
    """
    step = int(np.diff(frames).min()) if len(frames) > 1 else 1
    # Frames are at least a step apart, so rounding down puts no two of them in the same place.
    positions = (frames - frames[0]) // step
    return FrameGrid(positions, int(positions[-1]) + 1, step)


def common_step(clips: Sequence[Ints]) -> int:
    """Return the step of most frames, because clips may differ and an encoder has only one rate.

    Args:
        clips: Frame numbers of each clip, int64 (M,), strictly increasing.
    """
    frames: dict[int, int] = {}
    for clip in clips:
        # A single frame has no rate.
        step = frame_grid(clip).step if len(clip) > 1 else 0
        frames[step] = frames.get(step, 0) + len(clip)
    frames.pop(0, None)
    if len(frames) > 1:
        log.warning("the training clips have different steps (frames by step: %s)", dict(sorted(frames.items())))
    return max(frames, key=lambda step: (frames[step], -step), default=1)


def window_starts(n_frames: int, window: int, stride: int) -> Ints:
    """Return the first frames of the windows, int64 (W,): 0, stride, 2 stride, ... and one flush with the end.

    Every frame is in at least one window when ``stride <= window``. A clip no longer than the window has one, at 0.
    """
    if n_frames <= window:
        return np.zeros(1, np.int64)
    return np.append(np.arange(0, n_frames - window, stride, dtype=np.int64), n_frames - window)


def gather(values: NDArray[Any], starts: Ints, window: int, fill: float = 0) -> NDArray[Any]:
    """Map (N, ...) values of frames to (W, T, ...) values of windows, ``fill`` where a window reaches past the end."""
    short = int(starts[-1]) + window - len(values)
    if short > 0:
        values = np.concatenate([values, np.full((short, *values.shape[1:]), fill, values.dtype)])
    windows: NDArray[Any] = values[starts[:, None] + np.arange(window)]
    return windows


def average_windows(values: NDArray[np.floating[Any]], starts: Ints, n_frames: int) -> NDArray[np.float32]:
    """Map (W, T, K) values of windows to float32 (N, K), the mean over the windows that contain a frame.

    What lies past the last frame is dropped. The mean is taken in float64, so that one window comes back unchanged.
    """
    window = values.shape[1]
    sums = np.zeros((max(n_frames, int(starts[-1]) + window), values.shape[2]))
    counts = np.zeros((len(sums), 1))
    for start, one in zip(starts, values, strict=True):
        sums[start : start + window] += one
        counts[start : start + window] += 1
    return np.divide(sums[:n_frames], counts[:n_frames]).astype(np.float32)


def fill_gaps(positions: Ints, values: NDArray[np.floating[Any]], length: int) -> NDArray[np.float32]:
    """Interpolate values at every step of a clip: linear in between, constant outside the first and the last.

    With w the share of the way from the left neighbour to the right one, the result is (1 - w) left + w right; systems
    that publish code have mixed the two up. Mixtures of probabilities are probabilities.

    Args:
        positions: Steps at which values are known, int64 (M,), strictly increasing, M >= 1.
        values: The known values, (M, K).
        length: N.

    Returns:
        float32 (N, K), equal to ``values`` at ``positions``.
    """
    steps = np.arange(length)
    columns = [np.interp(steps, positions, values[:, k]) for k in range(values.shape[1])]
    return np.stack(columns, axis=1).astype(np.float32)
