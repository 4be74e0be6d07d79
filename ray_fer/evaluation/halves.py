"""Metrics of a model on both halves of its validation set: one drives the feedback, the other chooses the model.

`ray_fer.data.splits` divides the set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import (
    apply_temperature,
    confidence_of_correct,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from ray_fer.evaluation.metrics import confusion_matrix, evaluate_probs, macro_f1


def evaluate_halves(
    probs: ArrayLike,
    labels: ArrayLike,
    feedback_rows: NDArray[np.bool_],
    classes: Sequence[str],
    log_prior: ArrayLike | None = None,
) -> dict[str, Any]:
    """Compute every metric of the complete set and of each half, ready for JSON.

    Args:
        probs: Uncalibrated probabilities, (N, K).
        labels: True class indices, (N,); rows with -1 are ignored.
        feedback_rows: The feedback half, bool (N,).
        classes: The K class names.
        log_prior: The feedback's debiasing prior log p_d, (K,); None is uniform.

    Returns:
        The result of `evaluate_probs` for the complete set, and under ``feedback`` and ``choice`` for each half, with:

        - ``temperature``, fitted on the feedback half;
        - ``confidence_of_correct``, and ``confidence_of_correct_uncalibrated`` without the temperature, of that half;
        - ``feedback.macro_f1_debiased`` of the calibrated predictions under the prior;
        - ``choice.ece_calibrated``, which is unbiased because the temperature was fitted on the other half.

    Raises:
        UserError: When no row of the choice half has a label.
    """
    p, y = np.asarray(probs, np.float64), np.asarray(labels, np.int64)
    halves = {"feedback": feedback_rows, "choice": ~feedback_rows}
    metrics = evaluate_probs(p, y, classes)
    metrics |= {name: evaluate_probs(p[rows], y[rows], classes) for name, rows in halves.items()}
    if not metrics["choice"]["n"]:
        raise UserError("val: not one picture of the half that chooses the model can be read")
    metrics["temperature"] = round(fit_temperature(p[feedback_rows], y[feedback_rows]), 4)
    calibrated = apply_temperature(p, metrics["temperature"])
    bins = reliability_bins(calibrated[~feedback_rows], y[~feedback_rows])
    metrics["choice"]["ece_calibrated"] = expected_calibration_error(bins)
    seen, truth = calibrated[feedback_rows], y[feedback_rows]
    metrics["feedback"]["macro_f1_debiased"] = _debiased(seen, truth, log_prior)
    metrics["confidence_of_correct"] = confidence_of_correct(seen, truth)
    metrics["confidence_of_correct_uncalibrated"] = confidence_of_correct(p[feedback_rows], truth)
    return metrics


def prior_helps(half: Mapping[str, Any]) -> bool:
    """Return whether the debiasing prior does no harm on the feedback half; True where it has no labels.

    Args:
        half: ``feedback`` of the result of `evaluate_halves`.
    """
    return half["macro_f1"] is None or half["macro_f1_debiased"] >= half["macro_f1"]


def _debiased(probs: NDArray[np.float64], labels: NDArray[np.int64], log_prior: ArrayLike | None) -> float | None:
    if not (labels >= 0).any():
        return None
    tilted = probs if log_prior is None else probs * np.exp(-np.asarray(log_prior, np.float64))
    return macro_f1(confusion_matrix(labels, tilted.argmax(axis=1), probs.shape[1]))
