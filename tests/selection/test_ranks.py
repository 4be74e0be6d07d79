from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ray_fer.selection import Rule, SelectionContext, fit, move
from ray_fer.selection.ranks import CReST, TopK
from tests.selection.arrays import Make, both, close, numpy_array, online_step, torch_tensor

PROBS = [[0.9, 0.1], [0.7, 0.3], [0.45, 0.55], [0.2, 0.8], [0.6, 0.4], [0.95, 0.05]]
KNOWN = SelectionContext(np.array([0.8, 0.8]))


def weights(rule: Rule, make: Make, probs: Any, known: SelectionContext = KNOWN) -> list[float]:
    """Of a whole data set."""
    given = make(probs)
    state = move(rule.start(known), given)
    state = rule.update(state, rule.measure(given, state), 0.0)
    found: list[float] = rule.accept(given, state, known).weights.tolist()
    if make is numpy_array:
        close(rule.accept(given, fit(rule, [given[:2], given[2:]], known), known).weights, found, 0)
    return found


# --- top k ---


@both
def test_top_k_cuts_the_abundant_and_repeats_the_scarce(make: Make) -> None:
    # The last of class 0 has the least confidence of its class.
    assert weights(TopK(per_class=3), make, PROBS) == pytest.approx([1, 1, 1.5, 1.5, 0, 1])


@both
def test_top_k_never_repeats_more_than_max_copies(make: Make) -> None:
    assert weights(TopK(per_class=100, max_copies=2), make, PROBS) == [2.0] * 6


@both
def test_top_k_wants_a_kth_of_what_passes(make: Make) -> None:
    assert weights(TopK(), make, PROBS) == [0, 0, 0, 1, 0, 1]  # three pass, so one of each


@both
def test_top_k_wants_a_kth_of_many(make: Make) -> None:
    """Seven pass of two classes, so three of each: of the four of class 1 the least sure one is left out."""
    probs = [[p, 1 - p] for p in (0.9, 0.85, 0.95)] + [[1 - p, p] for p in (0.9, 0.82, 0.85, 0.95)]
    assert weights(TopK(), make, probs) == [1, 1, 1, 1, 0, 1, 1]


@both
def test_top_k_goes_down_to_half_the_threshold(make: Make) -> None:
    probs = [[0.7, 0.2, 0.1], [0.41, 0.3, 0.29], [0.39, 0.31, 0.3]]
    assert weights(TopK(per_class=3, max_copies=9), make, probs, SelectionContext(np.full(3, 0.8))) == [1.5, 1.5, 0]


@both
def test_top_k_gives_nothing_of_a_class_that_is_never_predicted(make: Make) -> None:
    found = weights(TopK(per_class=2), make, [[0.9, 0.06, 0.04], [0.8, 0.1, 0.1]], SelectionContext(np.full(3, 0.8)))
    assert found == [1, 1]
    assert weights(TopK(), make, [[0.3, 0.3]]) == [0], "not even the best, below half the threshold"


@both
def test_equals_at_the_cut_share_what_is_left(make: Make) -> None:
    """Whichever would be taken depended on their order."""
    found = weights(TopK(per_class=2), make, [[0.9, 0.1]] * 3 + [[0.95, 0.05]])
    assert found == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert sum(found) == pytest.approx(2)


@both
def test_certain_predictions_have_a_bin(make: Make) -> None:
    assert weights(TopK(per_class=1, bins=512), make, [[1.0, 0.0], [1.0 - 2 / 512, 2 / 512]]) == [1, 0]


# --- CReST ---


@both
def test_rates_are_by_rank_of_the_labelled_counts_not_by_class_id(make: Make) -> None:
    rates = CReST(alpha=0.5).rates(make([25.0, 100.0, 1.0, 64.0]))
    # Sorted 100, 64, 25, 1; the rate of the l-th is √(the l-th from below / 100).
    close(rates, [0.8, 0.1, 1.0, 0.5])


@both
def test_the_rates_of_a_long_tail(make: Make) -> None:
    """Of 3,000 faces whose counts fall as FER2013's do."""
    rates = np.asarray(CReST().rates(make([754.0, 518.0, 517.0, 432.0, 420.0, 331.0, 46.0])))
    close(rates, [0.39, 0.76, 0.82, 0.83, 0.88, 0.88, 1.0], 0.01)


@both
def test_a_class_without_labels_counts_as_one(make: Make) -> None:
    close(CReST(alpha=0.5).rates(make([0.0, 4.0])), [1.0, 0.5])
    close(CReST(alpha=0.5).rates(make([0.0, 0.0])), [1.0, 1.0])


@both
def test_equally_frequent_classes_have_the_same_rate(make: Make) -> None:
    close(CReST(alpha=1).rates(make([4.0, 4.0, 1.0])), [(0.25 + 1) / 2, (0.25 + 1) / 2, 1.0])


@both
def test_crest_takes_the_most_confident_share_of_each_predicted_class(make: Make) -> None:
    known = SelectionContext(np.full(2, 0.8), labelled_counts=np.array([100, 25]))
    # Rates 1/2 of the four of class 0, and all of class 1, however unsure.
    assert weights(CReST(alpha=0.5), make, PROBS, known) == [1, 0, 1, 1, 0, 1]


@both
def test_crest_s_share_is_not_rounded(make: Make) -> None:
    """Rounded down, a scarce class of small batches would never get any."""
    known = SelectionContext(np.full(2, 0.8), labelled_counts=np.array([100, 36]))
    found = weights(CReST(alpha=0.5), make, PROBS, known)
    assert found == pytest.approx([1, 0.4, 1, 1, 0, 1], abs=1e-5)


@both
def test_ranks_are_with_the_batch(make: Make) -> None:
    """Before the first there are none, and every face would be the best of its class."""
    known, probs = SelectionContext(np.full(2, 0.8), labelled_counts=np.array([100, 36])), make(PROBS)
    for rule, expected in ((TopK(per_class=1), [0, 0, 0, 1, 0, 1]), (CReST(alpha=0.5), [1, 0.4, 1, 1, 0, 1])):
        accepted, _ = online_step(rule, move(rule.start(known), probs), probs, known, 0.9)
        close(accepted.weights, expected, 1e-5)


@both
def test_online_the_histogram_is_of_an_average_batch(make: Make) -> None:
    rule, probs = CReST(), make(PROBS)
    state = move(rule.start(KNOWN), probs)
    state = rule.update(state, rule.measure(probs, state), 0.9)
    close(state["histogram"].sum(), 6)
    state = rule.update(state, rule.measure(probs[:2], state), 0.9)
    close(state["histogram"].sum(), 0.9 * 6 + 0.1 * 2)
    state = rule.update(state, rule.measure(probs[:1], state), 0.9)
    close(state["histogram"].sum(), 0.9 * 5.6 + 0.1 * 1)


def test_both_kinds_cut_at_the_same_place() -> None:
    probs = np.random.default_rng(0).dirichlet(np.full(7, 0.3), 3000)
    known = SelectionContext(np.full(7, 0.8), labelled_counts=np.arange(7) * 50)
    for rule in (CReST(), TopK()):
        close(weights(rule, numpy_array, probs, known), weights(rule, torch_tensor, probs, known), 1e-4)
