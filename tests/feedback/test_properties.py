"""The loop cannot run away: whatever matrices come, in whatever order, and also where its own effect feeds it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fer.evaluation.metrics import macro_f1
from ray_fer.feedback.controller import STEP, next_state
from ray_fer.feedback.factors import (
    BASE_THRESHOLD,
    DEBIAS_STRENGTH,
    MAX_BOOST,
    MAX_CUT,
    MAX_THRESHOLD,
    MIN_THRESHOLD,
    moved_thresholds,
)
from ray_fer.feedback.state import FeedbackState, initial_state, snapshot
from ray_fer.feedback.store import FeedbackStore
from tests.feedback.test_formulas import assert_neutral

ROUND_OFF = 1e-12


def assert_in_its_boxes(state: FeedbackState) -> None:
    """The bounds that the formulas promise, with the default constants."""
    view = snapshot(state)
    root = math.sqrt(MAX_BOOST * MAX_CUT) + ROUND_OFF
    assert 1 / root <= view.loss_weights.min() <= view.loss_weights.max() <= root
    assert 1 / math.sqrt(MAX_CUT) - ROUND_OFF <= view.sampling_weights.min()
    assert view.sampling_weights.max() <= math.sqrt(MAX_BOOST) + ROUND_OFF
    assert MIN_THRESHOLD - ROUND_OFF <= view.thresholds.min() <= view.thresholds.max() <= MAX_THRESHOLD + ROUND_OFF
    assert MIN_THRESHOLD <= state.tau0 <= BASE_THRESHOLD
    assert np.ptp(view.log_debiasing_prior) <= 2 * DEBIAS_STRENGTH + ROUND_OFF


@st.composite
def rounds(draw: st.DrawFn) -> tuple[int, list[dict[str, Any]]]:
    """Number of classes, and the arguments of some rounds: any counts, any mix, NaN and nonsense among them."""
    k = draw(st.integers(2, 8))
    count = st.one_of(st.just(0.0), st.integers(0, 10**6).map(float), st.sampled_from([math.nan, -1.0, math.inf]))
    line = st.lists(count, min_size=k, max_size=k)
    matrix = st.lists(st.one_of(st.just([0.0] * k), line), min_size=k, max_size=k)
    mix = st.one_of(st.none(), st.lists(st.floats(0, 1), min_size=k, max_size=k))
    share = st.one_of(st.none(), st.floats(0, 1))
    one = st.fixed_dictionaries(
        {"confusion": matrix, "q_hat": mix, "accepted_share": share, "prior_helps": st.booleans()}
    )
    return k, draw(st.lists(one, min_size=1, max_size=8))


@settings(max_examples=150, deadline=None)
@given(rounds())
def test_no_sequence_of_rounds_leaves_the_boxes(case: tuple[int, list[dict[str, Any]]]) -> None:
    k, updates = case
    state = initial_state(k)
    for update in updates:
        following = next_state(update.pop("confusion"), update.pop("q_hat"), state, **update)
        assert following.version in (state.version, state.version + 1)
        state = following
        assert_in_its_boxes(state)
    assert FeedbackState.from_json(state.to_json()) == state


@settings(max_examples=150, deadline=None)
@given(rounds(), st.floats(0.01, 1.0))
def test_no_base_lets_a_class_be_closed_or_opened_up(case: tuple[int, list[dict[str, Any]]], base: float) -> None:
    k, updates = case
    state = initial_state(k)
    assert moved_thresholds(base, snapshot(state).thresholds).tolist() == [base] * k, "without feedback it is the base"
    for update in updates:
        state = next_state(update.pop("confusion"), update.pop("q_hat"), state, **update)
        thresholds = snapshot(state).thresholds
        moved = moved_thresholds(base, thresholds)
        assert min(0.5, base) <= moved.min() <= moved.max() <= max(0.97, base)
        assert (np.abs(moved - base) <= np.abs(thresholds - BASE_THRESHOLD) + ROUND_OFF).all()
        usual = moved_thresholds(BASE_THRESHOLD, thresholds)
        np.testing.assert_allclose(usual, thresholds, rtol=0, atol=ROUND_OFF, err_msg="no bound meets the usual base")


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.data())
def test_a_perfect_student_is_left_alone(k: int, data: st.DataObject) -> None:
    diagonal = data.draw(st.lists(st.integers(0, 5000), min_size=k, max_size=k))
    mix = data.draw(st.lists(st.floats(0.01, 1), min_size=k, max_size=k))
    state = initial_state(k)
    for _ in range(3):
        state = next_state(np.diag(diagonal), mix, state)
    assert_neutral(state)


def adversary(k: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """One of the worst students: everything one class, everything the next class, one class never right, noise."""
    support = rng.integers(20, 500, k)
    if number % 4 == 0:
        matrix = np.zeros((k, k))
        matrix[:, number % k] = support
    elif number % 4 == 1:
        matrix = np.roll(np.diag(support), 1, axis=1)
    elif number % 4 == 2:
        matrix = np.diag(support)
        matrix[number % k] = np.roll(matrix[number % k], 1)
    else:
        matrix = rng.integers(0, 500, (k, k)) * (rng.random((k, k)) < 0.3)
        matrix[0, 0] += 100
    return np.asarray(matrix, np.float64)


@pytest.mark.parametrize("changing", [True, False])
@pytest.mark.parametrize("k", [3, 7])
def test_fifty_hostile_rounds_leave_no_trace(k: int, changing: bool) -> None:
    rng = np.random.default_rng(k)
    state, largest = initial_state(k), 0.0
    for number in range(50):
        matrix, mix = adversary(k, number if changing else 0, rng), rng.dirichlet(np.full(k, 0.1))
        state = next_state(matrix, mix, state, prior_helps=not changing or bool(rng.integers(2)))
        assert_in_its_boxes(state)
        largest = max(largest, np.abs(state.log_weights).max())
    assert largest > 0.1, "they did something"
    hit, good = state, np.diag(np.full(k, 100))
    for number in range(1, 41):
        state = next_state(good, np.full(k, 1 / k), state)
        for name, neutral in (("log_weights", 0.0), ("thresholds", state.tau0), ("log_debias", 0.0)):
            left = np.array(getattr(state, name)) - neutral
            expected = (1 - STEP) ** number * (np.array(getattr(hit, name)) - neutral)
            np.testing.assert_allclose(left, expected, rtol=0, atol=ROUND_OFF)
    assert np.abs(state.log_weights).max() < 1e-6


def test_a_stream_of_late_and_repeated_matrices_is_the_stream_without_them(tmp_path: Any) -> None:
    rng = np.random.default_rng(1)
    classes = [f"c{number}" for number in range(5)]
    clean, noisy = FeedbackStore(str(tmp_path / "clean"), classes), FeedbackStore(str(tmp_path / "noisy"), classes)
    sent: list[tuple[np.ndarray, str, int]] = []
    for number in range(20):
        matrix, source = adversary(5, number, rng), f"run/epoch-{number}"
        clean.update(matrix, source, trained_under=number)
        noisy.update(matrix, source, trained_under=number)
        sent.append((matrix, source, number))
        again = sent[rng.integers(len(sent))]
        noisy.update(again[0], again[1], trained_under=again[2])
        noisy.update(adversary(5, number, rng), f"other/epoch-{number}", trained_under=int(rng.integers(0, number + 1)))
    assert noisy.history() == clean.history()


class Student:
    """A toy whose recalls answer the feedback: a class that counts more is predicted more, at the others' cost.

    Its logits are a fixed bias and the log of what each class counts and is drawn; its pseudo-labels are its own
    predictions, so that whatever is over-predicted is also over-learnt, by ``gain`` of its excess per round.
    """

    def __init__(self, bias: np.ndarray, skill: float, gain: float) -> None:
        self.bias, self.skill, self.gain, self.habit = bias, skill, gain, np.zeros(len(bias))

    def validate(self, state: FeedbackState, support: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Confusion counts and predicted mix after a round under ``state``."""
        view = snapshot(state)
        push = np.log(view.loss_weights * view.sampling_weights) - (view.thresholds - 0.8)
        logits = self.bias + push + self.habit - view.log_debiasing_prior + self.skill * np.eye(len(self.bias))
        channel = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        mix = support @ channel / support.sum()
        self.habit = 0.7 * self.habit + self.gain * np.log(mix / (support / support.sum()))
        return np.round(support[:, None] * channel), mix


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.2])
def test_a_closed_loop_settles_and_helps(gain: float) -> None:
    support = np.array([754, 700, 250, 300, 200, 46, 90])
    bias = np.array([1.0, 0.8, 0.0, 0.2, -0.2, -1.2, -0.8])
    with_feedback, without = (Student(bias, 2.5, gain) for _ in range(2))
    state, neutral, scores, moves = initial_state(7), initial_state(7), [], []
    for _ in range(60):
        counts, mix = with_feedback.validate(state, support)
        plain, _ = without.validate(neutral, support)
        before, state = state, next_state(counts, mix, state)
        assert_in_its_boxes(state)
        scores.append((macro_f1(counts), macro_f1(plain)))
        moves.append(np.abs(np.subtract(state.log_weights, before.log_weights)).max())
    assert max(moves[40:]) < 0.02, "it neither winds up nor swings"
    ours, plain_f1 = np.mean(scores[40:], axis=0)
    assert ours > plain_f1
