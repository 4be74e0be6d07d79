from __future__ import annotations

import numpy as np

from ray_fer.selection import SelectionContext, fit, move
from ray_fer.selection.priors import Alignment, DebiasPL
from tests.selection.arrays import Make, both, close, online_step

# --- distribution alignment ---

KNOWN = SelectionContext(np.array([0.6, 0.6]), labelled_prior=np.array([0.25, 0.75]))
PROBS = [[0.6, 0.4], [0.9, 0.1]]  # mean 0.75, 0.25


@both
def test_alignment_multiplies_by_the_ratio_of_the_marginals(make: Make) -> None:
    probs = make(PROBS)
    state = move({"mean": np.array([0.75, 0.25])}, probs)
    accepted = Alignment(kappa=1).accept(probs, state, KNOWN)
    # · 1/3 and · 3: [.2, 1.2] and [.3, .3], normalised.
    close(accepted.targets, [[1 / 7, 6 / 7], [0.5, 0.5]], 1e-4)
    assert accepted.weights.tolist() == [1, 0]
    assert accepted.labels.tolist()[0] == 1


@both
def test_alignment_can_be_partial(make: Make) -> None:
    probs = make(PROBS)
    state = move({"mean": np.array([0.75, 0.25])}, probs)
    half = Alignment(kappa=0.5).accept(probs, state, KNOWN).targets  # ratios √(1/3), √3: 1 to 3
    close(half, [[0.6 / 1.8, 1.2 / 1.8], [0.75, 0.25]], 1e-4)
    close(Alignment(kappa=0).accept(probs, state, KNOWN).targets, PROBS)
    close(Alignment().accept(probs, state, KNOWN).targets, half, 0)


@both
def test_alignment_starts_from_the_first_batch_and_moves_on(make: Make) -> None:
    """Not from 1/K, which a momentum of .999 would remember for a thousand steps."""
    rule, probs = Alignment(), make(PROBS)
    state = move(rule.start(KNOWN), probs)
    close(rule.accept(probs, state, KNOWN).targets, PROBS)
    state = rule.update(state, rule.measure(probs, state), 0.9)
    close(state["mean"], [0.75, 0.25])
    state = rule.update(state, rule.measure(make([[0.25, 0.75]]), state), 0.9)
    close(state["mean"], [0.7, 0.3])


@both
def test_alignment_does_not_align_a_batch_with_itself(make: Make) -> None:
    """As ReMixMatch does; with the batch p̃ would be [.75, .25]."""
    rule, probs = Alignment(kappa=1), make(PROBS)
    accepted, after = online_step(rule, move({"mean": np.array([0.25, 0.75], np.float32)}, probs), probs, KNOWN, 0.0)
    close(accepted.targets, PROBS, 1e-5)
    close(after["mean"], [0.75, 0.25])


@both
def test_a_class_that_is_never_predicted_is_aligned_by_a_finite_factor(make: Make) -> None:
    probs = make([[1.0, 0.0], [0.999, 0.001]])
    state = move({"mean": np.array([1.0, 0.0])}, probs)
    targets = np.asarray(Alignment(kappa=1).accept(probs, state, KNOWN).targets)
    assert np.isfinite(targets).all()
    close(targets[0], [1, 0])
    # A quarter of .999 against .001 times .75 / 10⁻⁶.
    close(targets[1], np.array([0.24975, 750.0]) / 750.24975, 1e-5)


# --- DebiasPL ---

HALF = SelectionContext(np.array([0.6, 0.6]))


@both
def test_debiaspl_removes_the_prior_in_log_space(make: Make) -> None:
    rule, probs = DebiasPL(strength=1), make([[0.6, 0.4], [0.9, 0.1]])
    state = move({"prior": np.array([0.8, 0.2], np.float32)}, probs)
    accepted = rule.accept(probs, state, HALF)
    # .6/.8 : .4/.2 = 3 : 8; .9/.8 : .1/.2 = 9 : 4
    close(accepted.targets, [[3 / 11, 8 / 11], [9 / 13, 4 / 13]])
    assert accepted.labels.tolist() == [1, 0]
    assert accepted.weights.tolist() == [1, 1]
    weaker = DebiasPL(strength=0.5).accept(probs, state, HALF).targets
    close(weaker[0], np.array([0.6, 0.8]) / 1.4)  # .6/√.8 : .4/√.2 = 3 : 4


@both
def test_the_margin_of_debiaspl(make: Make) -> None:
    rule = DebiasPL()
    state = move({"prior": np.array([0.8, 0.2], np.float32)}, make([[0.0]]))
    close(rule.margin(state), 0.4 * np.log([0.8, 0.2]))


@both
def test_debiaspl_averages_raw_probabilities_per_class(make: Make) -> None:
    """Not the debiased ones, not masked ones, and not over all entries, which is 1/K for ever."""
    rule, probs = DebiasPL(), make([[0.9, 0.1], [0.5, 0.5]])
    state = move({"prior": np.array([0.8, 0.2], np.float32)}, probs)
    close(rule.update(state, rule.measure(probs, state), 0.9)["prior"], [0.9 * 0.8 + 0.1 * 0.7, 0.9 * 0.2 + 0.1 * 0.3])


@both
def test_debiaspl_makes_the_label_before_the_batch_moves_the_prior(make: Make) -> None:
    """With the batch p̂ would be [.75, .25], and the first face of class 1."""
    rule, probs = DebiasPL(strength=1), make([[0.6, 0.4], [0.9, 0.1]])
    accepted, after = online_step(rule, move(rule.start(HALF), probs), probs, HALF, 0.0)
    close(accepted.targets, [[0.6, 0.4], [0.9, 0.1]])
    assert accepted.labels.tolist() == [0, 0]
    close(after["prior"], [0.75, 0.25])


@both
def test_debiaspl_keeps_its_prior_from_epoch_to_epoch(make: Make) -> None:
    rule, probs = DebiasPL(), make([[0.9, 0.1]])
    state = move(rule.start(HALF), probs)
    close(state["prior"], [0.5, 0.5])
    for _ in range(200):
        state = rule.update(state, rule.measure(probs, state), 0.99)
        state = rule.refresh(state, HALF)
    close(state["prior"], [0.9 - 0.4 * 0.99**200, 0.1 + 0.4 * 0.99**200], 1e-4)


@both
def test_debiaspl_bounds_what_a_class_without_predictions_gains(make: Make) -> None:
    rule, probs = DebiasPL(strength=1), make([[1.0, 0.0], [0.9999, 0.0001]])
    state = move({"prior": np.array([1.0, 0.0], np.float32)}, probs)
    close(rule.margin(state), [0, np.log(1e-4)])
    close(rule.accept(probs, state, HALF).targets, [[1, 0], [0.5, 0.5]], 1e-4)


def test_offline_debiaspl_takes_the_mean_of_all() -> None:
    probs = np.array([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]], np.float32)
    close(fit(DebiasPL(), [probs[:1], probs[1:]], HALF)["prior"], [0.7, 0.3])
