"""Corrections of soft labels by what a labelled set says."""

from typing import Any

import numpy as np
import pytest

from benchmarks.ssl.corrections import (
    class_mix,
    corrected_posteriors,
    macro_f1_offsets,
    precision_thresholds,
    transition,
    with_offsets,
)

NOISE = np.array([[0.6, 0.4], [0.0, 1.0]])


def hard(labels: list[int]) -> Any:
    return np.eye(2)[labels]


def test_a_transition_is_the_mean_of_each_class_and_believes_the_teacher_of_an_unseen_one() -> None:
    np.testing.assert_allclose(
        transition([[0.7, 0.3], [0.5, 0.5]], [0, 0], pseudo_count=0.5)[0], [1.7 / 2.5, 0.8 / 2.5]
    )
    np.testing.assert_allclose(transition([[0.7, 0.3]], [0])[1], [0, 1])


def test_the_class_mix_is_seen_through_the_noise() -> None:
    seen = np.array([0.5, 0.5]) @ NOISE
    np.testing.assert_allclose(class_mix(seen[None], NOISE, steps=2000), [0.5, 0.5], atol=1e-3)


def test_a_corrected_posterior_is_bayes() -> None:
    corrected = corrected_posteriors(hard([0, 1]), NOISE, [0.5, 0.5])
    np.testing.assert_allclose(corrected, [[1.0, 0.0], [0.4 / 1.4, 1 / 1.4]])


def test_without_noise_nothing_is_corrected() -> None:
    probs = np.random.default_rng(0).dirichlet([1, 1, 1], size=20)
    np.testing.assert_allclose(corrected_posteriors(probs, np.eye(3), [0.2, 0.3, 0.5]), probs)


def test_offsets_raise_a_suppressed_class_and_ignore_chance() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [900, 100])
    score = np.where(labels == 1, 1.0, -1.0) + 0.5 * generator.normal(size=1000) - 1.5
    probs = with_offsets(np.full((1000, 2), 0.5), np.stack([-score, score], 1))
    offsets = macro_f1_offsets(probs, labels)
    assert offsets[1] - offsets[0] > 0.5
    noise = generator.dirichlet([1, 1], size=60)
    np.testing.assert_allclose(macro_f1_offsets(noise, generator.integers(2, size=60)), 0, atol=0.7)


def test_a_threshold_is_where_a_class_is_right_often_enough() -> None:
    confidence = np.linspace(0.99, 0.51, 200)
    probs = np.stack([confidence, 1 - confidence], 1)
    labels = (confidence < 0.75).astype(int)
    first, second = precision_thresholds(probs, labels, target=0.9, floor=0.3)
    assert 0.70 < first < 0.76
    assert second == pytest.approx(0.3)
