"""Smoothing of per-frame probabilities: the baseline that every temporal model has to beat.

Expressions last for seconds and a frame for a thirtieth of one, so the mean over the neighbours is a better posterior
than the frame's own. A published result on Aff-Wild2 is that a box filter over +/-50 frames alone gives a frame
classifier four points of macro-F1. A box that is too wide crosses changes of expression and loses them again. The width
is therefore chosen on validation videos, never on those that are reported on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_fer.evaluation.metrics import confusion_matrix, macro_f1
from ray_fer.video.windows import fill_gaps, frame_grid

Ints = NDArray[np.int64]
Scored = tuple[Ints, NDArray[np.floating[Any]], Ints]
"""Frame numbers (M,), probabilities (M, K) and labels (M,), -1 for none, of one clip."""

log = logging.getLogger(__name__)


def box_filter(probs: NDArray[np.floating[Any]], half_width: int) -> NDArray[np.float32]:
    """Replace each frame by the mean over the frames from ``t - half_width`` to ``t + half_width`` that the clip has.

    Args:
        probs: Probabilities of one clip, (N, K).
        half_width: Half-width in frames; 0 changes nothing.

    Returns:
        float32 (N, K); every row is a distribution.
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
    """Smooth the probabilities of one clip; gaps are filled before the filter and dropped after it.

    Args:
        frames: Frame numbers, int64 (M,), strictly increasing.
        probs: Probabilities, (M, K).
        half_width: Half-width in steps of the clip's grid (`ray_fer.video.windows.frame_grid`).

    Returns:
        float32 (M, K).
    """
    grid = frame_grid(frames)
    return box_filter(fill_gaps(grid.positions, probs, grid.length), half_width)[grid.positions]


def choose_half_width(clips: Sequence[Scored], half_widths: Sequence[int]) -> tuple[int, dict[int, float]]:
    """Choose the half-width with the best pooled macro-F1 on validation clips; the narrowest of equals.

    Args:
        clips: The clips.
        half_widths: Candidates, in steps of a clip's grid.

    Returns:
        The choice, and macro-F1 by candidate; NaN where no frame is labelled.
    """
    scores = {half_width: smoothed_macro_f1(clips, half_width) for half_width in sorted(half_widths)}
    return max(scores, key=lambda half_width: scores[half_width]), scores


def smoothed_macro_f1(clips: Sequence[Scored], half_width: int) -> float:
    """Compute macro-F1 over the pooled labelled frames of ``clips`` after smoothing."""
    n_classes = clips[0][1].shape[1]
    confusion = np.zeros((n_classes, n_classes), np.int64)
    for frames, probs, labels in clips:
        predictions = smooth_clip(frames, probs, half_width).argmax(axis=1)
        confusion += confusion_matrix(labels, predictions, n_classes)
    return macro_f1(confusion)


def choose_smoothing(
    framewise: Sequence[Scored], encoded: Sequence[Scored], half_widths: Sequence[int]
) -> dict[str, Any]:
    """Choose the half-widths of both models on validation clips; warn where the encoder is of no use.

    Args:
        framewise: The clips with the probabilities of the frame classifier.
        encoded: The same clips with the encoder's probabilities.
        half_widths: Candidates, in steps of a clip's grid.

    Returns:
        ``smoothing``, ``frame_smoothing``; ``scores`` (macro-F1 by name: ``frame``, ``frame_smoothed``, ``encoder``,
        ``encoder_smoothed``); ``by_half_width`` (macro-F1 of both by candidate).
    """
    frame_width, frame_scores = choose_half_width(framewise, half_widths)
    width, scores = choose_half_width(encoded, half_widths)
    four = {
        "frame": smoothed_macro_f1(framewise, 0),
        "frame_smoothed": frame_scores[frame_width],
        "encoder": smoothed_macro_f1(encoded, 0),
        "encoder_smoothed": scores[width],
    }
    log.info(
        "val macro-F1: frame classifier %.2f, smoothed over +/-%d steps %.2f; encoder %.2f, smoothed over +/-%d %.2f",
        *(100 * four["frame"], frame_width, 100 * four["frame_smoothed"]),
        *(100 * four["encoder"], width, 100 * four["encoder_smoothed"]),
    )
    if four["encoder_smoothed"] <= four["frame_smoothed"]:
        log.warning("the encoder does not beat the smoothed frame classifier on val: smoothing alone is as good")
    by_half_width = {"frame": frame_scores, "encoder": scores}
    return {
        "smoothing": width,
        "frame_smoothing": frame_width,
        "scores": four,
        "by_half_width": {name: {str(key): f1 for key, f1 in found.items()} for name, found in by_half_width.items()},
    }
