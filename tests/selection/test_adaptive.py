from __future__ import annotations

import math
from typing import Any

import numpy as np

from ray_fer.selection import SelectionContext, fit, move
from ray_fer.selection.adaptive import FlexMatch, FreeMatch, SoftMatch
from tests.selection.arrays import Make, both, close, combine, online_step

# --- FlexMatch ---

TAU = SelectionContext(np.array([0.8, 0.8]))
SURE_A, SURE_B, UNSURE = [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]


def flexed(make: Make, *batches: tuple[list[int], list[list[float]]], size: int = 4) -> dict[str, Any]:
    rule = FlexMatch()
    state = move(rule.start(TAU, size), make([[0.0]]))
    for rows, probs in batches:
        state = rule.update(state, rule.measure(make(probs), state, make(rows)), 0.9)
    return state


@both
def test_flexmatch_does_not_begin_by_accepting_everything(make: Make) -> None:
    state = flexed(make)
    assert state["counts"].tolist() == [0, 0, 4]
    probs = make([[0.49, 0.49], [0.5, 0.5], [0.3, 0.2]])
    assert FlexMatch().accept(probs, state, TAU).weights.tolist() == [0, 1, 0]


@both
def test_flexmatch_lowers_the_threshold_of_the_class_with_fewer_sure_labels(make: Make) -> None:
    state = flexed(make, ([0, 1, 2, 3], [SURE_A, SURE_A, SURE_A, SURE_B]))
    assert state["assigned"].tolist() == [0, 0, 0, 1]
    assert state["counts"].tolist() == [3, 1, 0]
    # β = 1, 1/3: thresholds 0.8 and 0.8 · (1/3) / (5/3) = 0.16, floored to a half.
    probs = make([[0.79, 0.21], [0.8, 0.2], [0.49, 0.51], [0.2, 0.8]])
    assert FlexMatch().accept(probs, state, TAU).weights.tolist() == [0, 1, 1, 1]
    # β = 1, 9/10: 0.8 · 0.9 / 1.1 = 0.6545.
    state = move({"counts": np.array([10.0, 9.0, 3.0], np.float32)}, probs)
    probs = make([[0.35, 0.65], [0.34, 0.66]])
    assert FlexMatch().accept(probs, state, TAU).weights.tolist() == [0, 1]


@both
def test_flexmatch_warms_up_over_what_was_not_seen(make: Make) -> None:
    """While most faces have no sure label, β is small for every class."""
    state = flexed(make, ([0], [SURE_A]), size=10)
    assert state["counts"].tolist() == [1, 0, 9]
    # β = 1/9: 0.8 · (1/9) / (17/9) = 0.047.
    assert FlexMatch().accept(make([[0.55, 0.45]]), state, TAU).weights.tolist() == [1]


@both
def test_flexmatch_counts_what_changes_in_the_rows_of_the_batch_alone(make: Make) -> None:
    state = flexed(make, ([0, 1], [SURE_A, SURE_B]), ([1, 3], [SURE_A, UNSURE]))
    assert state["assigned"].tolist() == [0, 0, -1, -1]
    assert state["counts"].tolist() == [2, 0, 2]
    state = flexed(make, ([0, 1], [SURE_A, SURE_B]), ([0, 1], [UNSURE, UNSURE]))
    assert state["assigned"].tolist() == [0, 1, -1, -1], "a sure label stays until another comes"


@both
def test_flexmatch_counts_a_face_once_that_is_drawn_twice(make: Make) -> None:
    state = flexed(make, ([2, 2, 2, 1, 2], [SURE_B, SURE_A, UNSURE, SURE_B, UNSURE]))
    assert state["assigned"].tolist() == [-1, 1, 0, -1], "the last sure one"
    assert state["counts"].tolist() == [1, 1, 2]


@both
def test_flexmatch_takes_the_last_of_many_predictions_of_a_face(make: Make) -> None:
    """Sorting keeps those of one face in their order, however many there are."""
    for last, of_last in ((SURE_A, 0), (SURE_B, 1)):
        state = flexed(make, ([1] * 99, [SURE_A, SURE_B] * 49 + [last]), size=2)
        assert state["assigned"].tolist() == [-1, of_last]


@both
def test_flexmatch_of_an_endless_stream_averages_counts(make: Make) -> None:
    """The first batch's counts as they are, then nine tenths of them and a tenth of the next batch's."""
    rule, first, second = FlexMatch(), make([SURE_A, SURE_A, SURE_B, UNSURE]), make([SURE_B])
    state = move(rule.start(TAU), first)
    assert state["counts"].tolist() == [0, 0, 0]
    state = rule.update(state, rule.measure(first, state), 0.9)
    close(state["counts"], [2, 1, 1])
    state = rule.update(state, rule.measure(second, state), 0.9)
    close(state["counts"], [1.8, 0.9 + 0.1, 0.9])
    close(state["thresholds"], [0.8, 0.8])
    # β is of averages also where they are below 1: 1 and 9/10, thresholds .8 and .6545.
    few = move({"counts": np.array([0.5, 0.45, 0.1], np.float32)}, first)
    assert rule.accept(make([[0.79, 0.21], [0.35, 0.65], [0.34, 0.66]]), few, TAU).weights.tolist() == [0, 0, 1]


@both
def test_flexmatch_masks_by_the_counts_before_the_batch(make: Make) -> None:
    """Before it β of class 1 is 0, its threshold the floor; after it β is 1 and the last face would be rejected."""
    state = flexed(make, ([0, 1, 2], [SURE_A, SURE_A, SURE_A]))
    probs = make([SURE_B, SURE_B, SURE_B, [0.45, 0.55]])
    accepted, after = online_step(FlexMatch(), state, probs, TAU, 0.9, make([0, 1, 2, 3]))
    assert accepted.weights.tolist() == [1, 1, 1, 1]
    assert after["counts"].tolist() == [0, 3, 1]
    assert online_step(FlexMatch(), after, probs, TAU, 0.9, make([0, 1, 2, 3]))[0].weights.tolist() == [1, 1, 1, 0]


@both
def test_workers_of_flexmatch_keep_one_table(make: Make) -> None:
    """Each exchanges the pairs of its part of the batch; the table of one that does not would differ."""
    rule = FlexMatch()
    state = flexed(make)
    parts = [rule.measure(make([SURE_A, SURE_B]), state, make([0, 3])), rule.measure(make([SURE_B]), state, make([1]))]
    after = rule.update(state, combine(parts), 0.9)
    assert after["assigned"].tolist() == [0, 1, -1, 1]
    assert after["counts"].tolist() == [1, 2, 1]
    assert state["assigned"].tolist() == [-1] * 4, "the state before is still there"


@both
def test_flexmatch_marks_sure_what_the_feedback_s_thresholds_say(make: Make) -> None:
    rule, probs = FlexMatch(), make([[0.7, 0.3], [0.3, 0.7]])
    state = move(rule.start(TAU, 2), probs)
    assert rule.measure(probs, state, make([0, 1]))["labels"].tolist() == [-1, -1]
    state = rule.refresh(state, SelectionContext(np.array([0.8, 0.65])))
    assert rule.measure(probs, state, make([0, 1]))["labels"].tolist() == [-1, 1]


def test_offline_flexmatch_counts_each_face_once() -> None:
    probs = np.array([SURE_A, SURE_A, SURE_B, UNSURE], np.float32)
    state = fit(FlexMatch(), [probs[:1], probs[1:]], TAU)
    assert state["counts"].tolist() == [2, 1, 1]
    # β = 1, 1/2: 0.8 and 0.8 · 0.5 / 1.5 = 0.27, floored; the unsure one is of class 0.
    assert FlexMatch().accept(probs, state, TAU).weights.tolist() == [1, 1, 1, 0]


# --- FreeMatch ---


@both
def test_freematch_updates_first_and_scales_the_global_threshold(make: Make) -> None:
    rule, probs = FreeMatch(), make([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    assert rule.update_first
    state = move(rule.start(TAU), probs)
    close([float(state["threshold"]), *state["mean"]], [0.5, 0.5, 0.5])
    state = rule.update(state, rule.measure(probs, state), 0.9)
    close(state["threshold"], 0.9 * 0.5 + 0.1 * 0.8)
    close(state["mean"], [0.9 * 0.5 + 0.1 * 0.6, 0.9 * 0.5 + 0.1 * 0.4])
    # t = .53 for class 0; .53 · .49 / .51 = .509 for class 1.
    probs = make([[0.52, 0.48], [0.54, 0.46], [0.495, 0.505], [0.49, 0.51]])
    assert rule.accept(probs, state, TAU).weights.tolist() == [0, 1, 0, 1]


@both
def test_freematch_masks_by_the_averages_with_the_batch(make: Make) -> None:
    """Without it, t is 1/K and the floor would accept both."""
    probs = make([[0.9, 0.1], [0.6, 0.4]])
    accepted, _ = online_step(FreeMatch(), move(FreeMatch().start(TAU), probs), probs, TAU, 0.0)
    assert accepted.weights.tolist() == [1, 0]  # t = .75


@both
def test_freematch_does_not_take_a_rare_class_at_any_confidence(make: Make) -> None:
    """With a 16:1 tail the threshold of the rare class would be a 16th."""
    state = move({"threshold": np.float32(0.9), "mean": np.array([0.94, 0.06], np.float32)}, make([[0.0]]))
    probs = make([[0.4, 0.49], [0.45, 0.55], [0.89, 0.11], [0.9, 0.1]])
    assert FreeMatch().accept(probs, state, TAU).weights.tolist() == [0, 1, 0, 1]


@both
def test_freematch_does_not_begin_by_accepting_everything(make: Make) -> None:
    probs = make([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25]])
    state = move(FreeMatch().start(SelectionContext(np.full(3, 0.8))), probs)
    assert FreeMatch().accept(probs, state, TAU).weights.tolist() == [0, 1]


# --- SoftMatch ---


@both
def test_softmatch_weighs_on_a_truncated_gaussian(make: Make) -> None:
    state = move(
        {"mean": np.array([0.5, 0.5]), "mu": np.array(0.8), "variance": np.array(0.04)},
        make([[0.0]]),
    )
    accepted = SoftMatch().accept(make([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]), state, TAU)
    # exp(−.1² · 4 / .08), exp(−.2² · 4 / .08)
    close(accepted.weights, [1, 1, math.exp(-0.5), math.exp(-2)])
    assert accepted.labels.tolist() == [0, 0, 1, 0]


@both
def test_softmatch_takes_moments_of_the_aligned_confidence(make: Make) -> None:
    rule, probs = SoftMatch(), make([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert rule.update_first
    state = move(rule.start(TAU), probs)
    state = rule.update(state, rule.measure(probs, state), 0.99)
    # Nothing to align with yet: the moments are of .9, .6, .6, with the unbiased variance .03.
    close(state["mean"], [1.9 / 3, 1.1 / 3])
    close(state["mu"], 0.99 * 0.5 + 0.01 * 0.7)
    close(state["variance"], 0.99 * 0.05 + 0.01 * 0.03)
    measured = rule.measure(probs, state)
    aligned = np.array([[0.9 * 1.1, 0.1 * 1.9], [0.6 * 1.1, 0.4 * 1.9], [0.4 * 1.1, 0.6 * 1.9]])
    aligned = aligned.max(axis=1) / aligned.sum(axis=1)
    close(measured["confidence"], aligned.sum(), 1e-5)
    close(measured["squares"], (aligned**2).sum(), 1e-5)
    close(rule.update(state, measured, 0.0)["variance"], aligned.var(ddof=1))


@both
def test_softmatch_weighs_by_the_moments_with_the_batch(make: Make) -> None:
    """Of .9 and .6, before there is anything to align with: μ = .75, σ² = .045; p̃ = .75, .25 aligns the weights."""
    probs = make([[0.9, 0.1], [0.6, 0.4]])
    accepted, _ = online_step(SoftMatch(), move(SoftMatch().start(TAU), probs), probs, TAU, 0.0)
    aligned = [max(p / 0.75, (1 - p) / 0.25) / (p / 0.75 + (1 - p) / 0.25) for p in (0.9, 0.6)]  # 3/4, 2/3
    close(accepted.weights, [math.exp(-(min(q - 0.75, 0) ** 2) * 4 / 0.09) for q in aligned], 1e-4)


@both
def test_softmatch_aligns_the_weight_alone(make: Make) -> None:
    """Aligned, the face is of class 1; its label and target are not."""
    state = move({"mean": np.array([0.9, 0.1]), "mu": np.array(0.9), "variance": np.array(0.04)}, make([[0.0]]))
    accepted = SoftMatch().accept(make([[0.6, 0.4]]), state, TAU)
    assert accepted.labels.tolist() == [0]
    close(accepted.targets, [[0.6, 0.4]])
    aligned = 0.4 / 0.1 / (0.4 / 0.1 + 0.6 / 0.9)
    close(accepted.weights, [math.exp(-((aligned - 0.9) ** 2) * 2 / 0.04)], 1e-4)


@both
def test_softmatch_is_selective_from_the_start(make: Make) -> None:
    """With σ² = 1 even a face that says nothing has a weight above .6 for thousands of steps."""
    probs = make([[0.98, 0.01, 0.01], [0.34, 0.33, 0.33]])
    rule = SoftMatch()
    known = SelectionContext(np.full(3, 0.8))
    state = move(rule.start(known), probs) | move({"mu": np.float32(0.9)}, probs)
    assert float(rule.accept(probs, state, known).weights[1]) < 0.01


@both
def test_softmatch_keeps_its_variance_over_a_single_row_and_survives_none(make: Make) -> None:
    rule, probs = SoftMatch(), make([[0.9, 0.1]])
    state = move(rule.start(TAU), probs)
    after = rule.update(state, rule.measure(probs, state), 0.9)
    close(after["variance"], 0.05)
    close(after["mu"], 0.54)
    same = make([SURE_A] * 4)
    for _ in range(3):
        after = rule.update(after, rule.measure(same, after), 0.0)
    close(after["variance"], 0)
    close(rule.accept(same, after, TAU).weights, np.ones(4), 1e-3)


def test_offline_softmatch_aligns_with_the_mean_of_all() -> None:
    """Two passes: the confidence that the second measures is aligned with the mean that the first has found."""
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.7, 0.3]], np.float32)
    state = fit(SoftMatch(), [probs[:2], probs[2:]], TAU)
    ratio = 0.5 / probs.mean(axis=0)
    aligned = probs * ratio
    confidence = aligned.max(axis=1) / aligned.sum(axis=1)
    close(state["mean"], probs.mean(axis=0))
    close(state["mu"], confidence.mean(), 1e-5)
    close(state["variance"], confidence.var(ddof=1), 1e-5)
