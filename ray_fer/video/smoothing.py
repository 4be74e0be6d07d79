"""Smoothing of per-frame probabilities: the baseline that every temporal model has to beat.

Expressions last for seconds and a frame for a thirtieth of one, so the mean over the neighbours is a better posterior
than the frame's own. On Aff-Wild2 a box filter over +/-50 frames alone is published to give a frame classifier four
points of macro-F1; too wide a box crosses changes of expression and loses them again. The width is therefore chosen on
validation videos, never on those that are reported on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.evaluation.metrics import confusion_matrix, macro_f1
from ray_fer.video.windows import fill_gaps, frame_grid

Ints = NDArray[np.int64]


def box_filter(probs: NDArray[np.floating[Any]], half_width: int) -> NDArray[np.float32]:
    """The mean over the frames from ``t - half_width`` to ``t + half_width`` that the clip has.

    Args:
        probs: (N, K) of one clip, every row on the simplex.
        half_width: in frames; 0 changes nothing.

    Returns:
        float32 (N, K), every row on the simplex.
    """
    n = len(probs)
    if half_width == 0:
        return probs.astype(np.float32)
    sums = np.concatenate([np.zeros((1, probs.shape[1])), np.cumsum(probs, axis=0, dtype=np.float64)])
    low = np.maximum(np.arange(n) - half_width, 0)
    high = np.minimum(np.arange(n) + half_width + 1, n)
    # A difference of sums can be a rounding error below zero.
    means: NDArray[np.float64] = np.maximum((sums[high] - sums[low]) / (high - low)[:, None], 0)
    return means.astype(np.float32)


def smooth_clip(frames: Ints, probs: NDArray[np.floating[Any]], half_width: int) -> NDArray[np.float32]:
    """Smoothed probabilities (M, K) of the frames of one clip: gaps are filled before the filter, dropped after it.

    Args:
        frames: frame numbers, int64 (M,), strictly increasing.
        probs: (M, K).
        half_width: in steps of the clip's grid (`ray_fer.video.windows.frame_grid`).
    """
    grid = frame_grid(frames)
    return box_filter(fill_gaps(grid.positions, probs, grid.length), half_width)[grid.positions]


def choose_half_width(
    clips: Sequence[tuple[Ints, NDArray[np.floating[Any]], Ints]], half_widths: Sequence[int]
) -> tuple[int, dict[int, float]]:
    """The half-width with the best pooled macro-F1 on validation clips; the narrowest of equals.

    Args:
        clips: frame numbers (M,), probabilities (M, K) and labels (M,), -1 for none, of each clip.
        half_widths: candidates, in steps of a clip's grid.

    Returns:
        The choice, and macro-F1 by candidate; NaN where no frame is labelled.
    """
    scores = {half_width: smoothed_macro_f1(clips, half_width) for half_width in sorted(half_widths)}
    return max(scores, key=lambda half_width: scores[half_width]), scores


def smoothed_macro_f1(clips: Sequence[tuple[Ints, NDArray[np.floating[Any]], Ints]], half_width: int) -> float:
    """Macro-F1 over the pooled labelled frames of ``clips`` (see `choose_half_width`) after smoothing."""
    n_classes = clips[0][1].shape[1]
    confusion = np.zeros((n_classes, n_classes), np.int64)
    for frames, probs, labels in clips:
        predictions = smooth_clip(frames, probs, half_width).argmax(axis=1)
        confusion += confusion_matrix(labels, predictions, n_classes)
    return macro_f1(confusion)
