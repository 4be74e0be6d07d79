"""What each half of a validation set says, and that neither knows of the other."""

import json

import numpy as np
import pytest

from ray_fer.errors import UserError
from ray_fer.evaluation.calibration import apply_temperature, confidence_of_correct, fit_temperature
from ray_fer.evaluation.halves import evaluate_halves, prior_helps
from ray_fer.evaluation.metrics import evaluate_probs

CLASSES = ("neutral", "anger", "happiness")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 600)
ROWS = RNG.random(600) < 0.5
PROBS = RNG.dirichlet([1, 1, 1], 600) * 0.4 + 0.6 * np.eye(3)[np.where(RNG.random(600) < 0.7, LABELS, 0)]


def test_each_half_and_the_whole() -> None:
    metrics = evaluate_halves(PROBS, LABELS, ROWS, CLASSES)
    assert (
        metrics["feedback"]["confusion_matrix"]
        == evaluate_probs(PROBS[ROWS], LABELS[ROWS], CLASSES)["confusion_matrix"]
    )
    halves = [np.array(metrics[half]["confusion_matrix"]) for half in ("feedback", "choice")]
    assert (halves[0] + halves[1]).tolist() == metrics["confusion_matrix"]
    assert metrics["n"] == 600
    json.dumps(metrics, allow_nan=False)


def test_the_temperature_is_of_the_feedback_half_and_judged_on_the_other() -> None:
    metrics = evaluate_halves(PROBS, LABELS, ROWS, CLASSES)
    assert metrics["temperature"] == pytest.approx(fit_temperature(PROBS[ROWS], LABELS[ROWS]), abs=1e-4)
    calibrated = apply_temperature(PROBS[ROWS], metrics["temperature"])
    assert metrics["confidence_of_correct"] == confidence_of_correct(calibrated, LABELS[ROWS])
    assert metrics["confidence_of_correct_uncalibrated"] == confidence_of_correct(PROBS[ROWS], LABELS[ROWS])
    others = np.where(ROWS, LABELS, (LABELS + 1) % 3)
    spoiled = evaluate_halves(PROBS, others, ROWS, CLASSES)
    assert spoiled["temperature"] == metrics["temperature"]
    assert spoiled["feedback"] == metrics["feedback"]
    assert spoiled["choice"]["ece_calibrated"] > metrics["choice"]["ece_calibrated"] + 0.2


def test_a_prior_is_tried_on_the_feedback_half() -> None:
    # A third of anger and happiness is taken for neutral, by a little.
    labels = np.repeat([0, 1, 2], 90)
    probs = 0.1 + 0.7 * np.eye(3)[labels]
    probs[(np.arange(270) % 3 == 0) & (labels == 1)] = [0.46, 0.44, 0.10]
    probs[(np.arange(270) % 3 == 0) & (labels == 2)] = [0.46, 0.10, 0.44]
    half = np.arange(270) % 2 == 0
    plain = evaluate_halves(probs, labels, half, CLASSES)["feedback"]
    uniform = evaluate_halves(probs, labels, half, CLASSES, np.full(3, -np.log(3)))["feedback"]
    helped = evaluate_halves(probs, labels, half, CLASSES, [-0.7, -1.2, -1.2])["feedback"]
    spoiled = evaluate_halves(probs, labels, half, CLASSES, [-3.5, -1.2, -0.1])["feedback"]
    assert plain["macro_f1_debiased"] == uniform["macro_f1_debiased"] == plain["macro_f1"] < 1
    assert helped["macro_f1_debiased"] == 1
    assert spoiled["macro_f1_debiased"] < spoiled["macro_f1"] == plain["macro_f1"]
    assert [prior_helps(each) for each in (plain, uniform, helped, spoiled)] == [True, True, True, False]


def test_a_half_without_labels() -> None:
    metrics = evaluate_halves(PROBS, np.where(ROWS, -1, LABELS), ROWS, CLASSES)
    assert (metrics["feedback"]["n"], metrics["feedback"]["macro_f1_debiased"], metrics["temperature"]) == (
        0,
        None,
        1.0,
    )
    with pytest.raises(UserError, match="val: not one picture of the half that chooses"):
        evaluate_halves(PROBS, np.where(ROWS, LABELS, -1), ROWS, CLASSES)
