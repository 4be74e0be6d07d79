"""The feedback maps: hand-computed values, and the properties that keep the loop from running away."""

import dataclasses
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from ray_fer.feedback import controller, factors
from ray_fer.feedback.config import PARTS
from ray_fer.feedback.controller import next_state
from ray_fer.feedback.factors import (
    class_rates,
    debias_target,
    log_weight_target,
    loss_weights,
    moved_thresholds,
    sampling_probabilities,
    sampling_weights,
    threshold_target,
)
from ray_fer.feedback.state import SAMPLING_SHARE, FeedbackState, initial_state, snapshot

HAND = np.array([[40, 10, 0], [10, 40, 0], [20, 10, 20]])
UNIFORM = np.full(3, 1 / 3)
TIGHT = {"rtol": 0, "atol": 1e-12}


def random_matrices(n: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Matrices of 2 to 9 classes with at least 100 examples, random empty rows and columns, and a predicted mix."""
    rng = np.random.default_rng(seed)
    while n:
        k = int(rng.integers(2, 10))
        rows = rng.dirichlet(np.full(k, 10 ** rng.uniform(-1.5, 1)), size=k)
        counts = np.floor(rows * 10 ** rng.uniform(0, 4, size=(k, 1)))
        counts[rng.random(k) < 0.15] = 0
        counts[:, rng.random(k) < 0.15] = 0
        if counts.sum() >= 100:
            n -= 1
            yield counts, rng.dirichlet(np.full(k, 0.3))


def random_state(k: int, rng: np.random.Generator) -> FeedbackState:
    return dataclasses.replace(
        initial_state(k),
        log_weights=tuple(rng.uniform(-math.log(1.5), math.log(2), k)),
        thresholds=tuple(rng.uniform(0.60, 0.95, k)),
        log_debias=tuple(rng.uniform(-0.5, 0.5, k)),
    )


def assert_neutral(state: FeedbackState) -> None:
    view = snapshot(state)
    k = len(state.thresholds)
    np.testing.assert_allclose(view.loss_weights, np.ones(k), **TIGHT)
    np.testing.assert_allclose(view.sampling_weights, np.ones(k), **TIGHT)
    np.testing.assert_allclose(view.thresholds, np.full(k, 0.8), **TIGHT)
    np.testing.assert_allclose(view.log_debiasing_prior, np.full(k, -math.log(k)), **TIGHT)


def test_one_class_is_neutral() -> None:
    state = next_state([[200]], [1.0], next_state([[150]], [1.0], initial_state(1)))
    assert_neutral(state)
    assert state.version == 2


# The maps on one matrix, by hand. Recalls .8 .8 .4, mean 2/3; precisions 4/7 2/3 1, mean 47/63; pseudo-count 5.


def test_rates_by_hand() -> None:
    rates = class_rates(HAND)
    assert rates.mean_recall == pytest.approx(2 / 3)
    assert rates.mean_precision == pytest.approx(47 / 63)
    np.testing.assert_allclose(rates.recall, [0.787879, 0.787879, 0.424242], atol=1e-6)
    np.testing.assert_allclose(rates.recall_se, [0.055124, 0.055124, 0.066642], atol=1e-6)
    np.testing.assert_allclose(rates.precision, [0.583069, 0.672772, 0.949206], atol=1e-6)
    np.testing.assert_allclose(rates.precision_se[:2], [0.056932, 0.058197], atol=1e-6)


def test_one_example_is_enough_to_judge_predictions_by() -> None:
    # Of four predictions of class 2 one is right; the raw precisions 1, 1 and 1/4 have the mean 3/4.
    rates = class_rates([[50, 0, 3], [0, 60, 0], [0, 0, 1]])
    assert rates.mean_precision == 0.75
    assert rates.precision[2] == pytest.approx((1 + 5 * 0.75) / (4 + 5))
    assert rates.precision_se[2] ** 2 == pytest.approx(0.527778 * 0.472222 / 9, rel=1e-5)


def test_log_weights_by_hand() -> None:
    # 2 (-.121212 + .055124) twice, and 2 (.242424 - .066642): one standard error is ignored.
    target = log_weight_target(class_rates(HAND))
    np.testing.assert_allclose(target, [-0.132176, -0.132176, 0.351565], atol=2e-6)
    state = next_state(HAND, None, initial_state(3))
    np.testing.assert_allclose(state.log_weights, 0.3 * target, **TIGHT)


def test_loss_and_sampling_weights_by_hand() -> None:
    ell = np.log([2.0, 1.0, 0.5])
    np.testing.assert_allclose(loss_weights(ell, 1.0), np.array([2.0, 1.0, 0.5]) / 3.5 * 3, **TIGHT)
    np.testing.assert_allclose(loss_weights(ell, 1.0, [2, 1, 2]), np.array([2.0, 1.0, 0.5]) / 1.2, **TIGHT)
    np.testing.assert_allclose(sampling_weights(ell, 0.5), [math.sqrt(2), 1, math.sqrt(0.5)], **TIGHT)


def test_thresholds_by_hand() -> None:
    # Up .3 (.162963 - .056932) and .3 (.073259 - .058197); the precise but missed third class down .2 x .175783.
    target = threshold_target(class_rates(HAND), 0.8)
    np.testing.assert_allclose(target, [0.831809, 0.804519, 0.764843], atol=2e-6)
    np.testing.assert_allclose(next_state(HAND, None, initial_state(3)).thresholds, 0.8 + 0.3 * (target - 0.8), **TIGHT)


def test_precision_has_priority_by_hand() -> None:
    """Class 1 is missed and wrong: recall .3 of a mean of .6667, precision .5 of a mean of .6630. It only rises."""
    rates = class_rates([[900, 100, 0], [600, 300, 100], [0, 200, 800]])
    target = threshold_target(rates, 0.8)
    # Recall (300 + 5 (.666667)) / 1005 = .301824 +/- .014480: by itself it would fall by .2 x .350362 = .070072.
    # Precision (300 + 5 (.662963)) / 605 = .501347 +/- .020328: it rises by .3 (.161616 - .020328) = .042386.
    np.testing.assert_allclose(target[1], 0.842386, atol=2e-6)


def test_one_prediction_is_enough_to_show_precision() -> None:
    # Of class 1 one of 100 is found, and that is right. Recall (1 + 5 (.505)) / 105 = .033571 +/- .017578, of .505.
    target = threshold_target(class_rates([[100, 0], [99, 1]]), 0.8)
    np.testing.assert_allclose(target[1], 0.8 - 0.2 * (0.505 - 0.033571 - 0.017578), atol=2e-6)


def test_moves_are_made_from_another_threshold_within_bounds() -> None:
    np.testing.assert_allclose(moved_thresholds(0.95, [0.8, 0.7, 0.9]), [0.95, 0.85, 0.97])
    np.testing.assert_allclose(moved_thresholds(0.6, [0.6, 0.75, 0.95]), [0.5, 0.55, 0.75])
    # A base beyond the bounds stays, and is where the feedback stops.
    np.testing.assert_allclose(moved_thresholds(0.1, [0.6, 0.8, 0.95]), [0.1, 0.1, 0.25])
    np.testing.assert_allclose(moved_thresholds(0.98, [0.75, 0.8, 0.95]), [0.93, 0.98, 0.98])


def test_debiasing_by_hand() -> None:
    # One EM step from the uniform mix. The channel is [45 10 0; 10 45 0; 20 10 25] / 55, so the predicted mix it
    # expects is (75 65 25) / 165 and the classes are revised by the factors below, which add up to 3.
    factors = (
        np.array([(45 * 55 / 75 + 10 * 55 / 65), (10 * 55 / 75 + 45 * 55 / 65), (20 * 55 / 75 + 10 * 55 / 65 + 55)])
        / 55
    )
    np.testing.assert_allclose(factors, [0.753846, 0.825641, 1.420513], atol=1e-6)
    target = debias_target(HAND, UNIFORM, em_steps=1)
    np.testing.assert_allclose(target, 0.5 * np.log(0.95 * factors + 0.05), **TIGHT)
    np.testing.assert_allclose(target, [-0.133186, -0.090546, 0.168053], atol=2e-6)


def test_debiasing_by_hand_of_classes_of_other_sizes() -> None:
    # The channel is [13 2] / 15 and [10 35] / 45; of the uniform mix it expects (49 41) / 90.
    factors = np.array([39 / 49 + 6 / 41, 10 / 49 + 35 / 41])
    target = debias_target([[8, 2], [10, 30]], [0.5, 0.5], em_steps=1)
    np.testing.assert_allclose(target, 0.5 * np.log(0.95 * factors + 0.05), **TIGHT)


def test_debiasing_finds_the_mix_behind_the_predictions() -> None:
    channel = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]])
    mix = np.array([0.5, 0.3, 0.2])
    delta = debias_target(channel * 1e6, mix @ channel, em_steps=2000, em_pull=0.0, strength=1.0)
    np.testing.assert_allclose(delta, np.log(mix / (mix @ channel)), atol=2e-3)


def test_snapshot_is_the_documented_function_of_the_state() -> None:
    state = next_state(HAND, UNIFORM, initial_state(3))
    view = snapshot(state, [2, 1, 1])
    ell, delta = np.array(state.log_weights), np.array(state.log_debias)
    assert (view.loss_weights * [0.5, 0.25, 0.25]).sum() == pytest.approx(1)
    np.testing.assert_allclose(view.loss_weights / view.loss_weights[0], np.exp(ell / 2 - ell[0] / 2), **TIGHT)
    np.testing.assert_allclose(view.sampling_weights, np.exp(ell / 2), **TIGHT)
    np.testing.assert_allclose(np.exp(view.log_debiasing_prior), np.exp(-delta) / np.exp(-delta).sum(), **TIGHT)
    assert view.version == 1
    with pytest.raises(ValueError, match="read-only"):
        view.thresholds[0] = 0.0


# Neutral inputs.


@pytest.mark.parametrize("diagonal", [[0, 0, 0, 0], [50, 50, 50, 50], [400, 30, 7, 1], [300, 0, 20, 5]])
def test_empty_and_perfect_matrices_are_neutral(diagonal: list[int]) -> None:
    state = initial_state(4)
    for _ in range(5):
        state = next_state(np.diag(diagonal), [0.7, 0.2, 0.1, 0.0], state)
    assert_neutral(state)
    assert state.version == 5


def test_class_without_validation_examples_is_neutral() -> None:
    counts = np.array([[80, 10, 10], [0, 0, 0], [30, 20, 50]])
    state = next_state(counts, [0.5, 0.3, 0.2], initial_state(3))
    assert (state.log_weights[1], state.thresholds[1], state.log_debias[1]) == (0.0, 0.8, 0.0)
    assert state.log_weights[0] < 0 < state.log_weights[2]


def test_never_predicted_class_keeps_its_threshold_and_gains_weight() -> None:
    counts = np.array([[90, 0, 10], [40, 0, 60], [10, 0, 90]])
    state = next_state(counts, [0.5, 0.0, 0.5], initial_state(3))
    assert state.thresholds[1] == 0.8
    assert state.log_weights[1] == pytest.approx(0.3 * math.log(2))
    assert all(map(math.isfinite, state.log_debias))


def test_collapse_to_one_class_is_countered() -> None:
    counts = np.zeros((7, 7))
    counts[:, 3] = [100, 80, 20, 60, 10, 300, 5]
    state = initial_state(7)
    for _ in range(20):
        state = next_state(counts, np.eye(7)[3], state)
    view = snapshot(state)
    assert view.loss_weights[3] < 1
    assert view.loss_weights[3] < np.delete(view.loss_weights, 3).min()
    assert view.sampling_weights[3] < 1
    assert view.log_debiasing_prior[3] == view.log_debiasing_prior.max()
    for array in (view.loss_weights, view.sampling_weights, view.thresholds, view.log_debiasing_prior):
        assert np.isfinite(array).all()


# Bounds, symmetry, dynamics.


def test_every_factor_stays_in_its_box() -> None:
    rng = np.random.default_rng(0)
    for counts, q_hat in random_matrices(1500, seed=1):
        k = len(counts)
        view = snapshot(next_state(counts, q_hat, random_state(k, rng)), rng.dirichlet(np.ones(k)))
        root = math.sqrt(3) * (1 + 1e-12)
        assert 1 / root <= view.loss_weights.min() <= view.loss_weights.max() <= root
        assert math.sqrt(1 / 1.5) - 1e-12 <= view.sampling_weights.min()
        assert view.sampling_weights.max() <= math.sqrt(2) + 1e-12
        assert 0.60 - 1e-12 <= view.thresholds.min() <= view.thresholds.max() <= 0.95 + 1e-12
        assert np.ptp(view.log_debiasing_prior) <= 1 + 1e-12
        assert np.exp(view.log_debiasing_prior).sum() == pytest.approx(1)


def test_order_of_the_classes_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    for counts, q_hat in random_matrices(300, seed=3):
        order = rng.permutation(len(counts))
        state = random_state(len(counts), rng)
        shuffled = dataclasses.replace(
            state,
            **{
                name: tuple(np.array(getattr(state, name))[order])
                for name in ("log_weights", "thresholds", "log_debias")
            },
        )
        plain = snapshot(next_state(counts, q_hat, state))
        other = snapshot(next_state(counts[np.ix_(order, order)], q_hat[order], shuffled))
        for name in ("loss_weights", "sampling_weights", "thresholds", "log_debiasing_prior"):
            np.testing.assert_allclose(getattr(other, name), getattr(plain, name)[order], rtol=0, atol=1e-9)


def test_repeated_matrix_converges_and_does_not_wind_up() -> None:
    target = log_weight_target(class_rates(HAND))
    state = initial_state(3)
    for rounds in range(1, 101):
        state = next_state(HAND, UNIFORM, state)
        np.testing.assert_allclose(state.log_weights, (1 - 0.7**rounds) * target, **TIGHT)
    settled = next_state(HAND, UNIFORM, state)
    np.testing.assert_allclose(settled.thresholds, threshold_target(class_rates(HAND), 0.8), **TIGHT)
    np.testing.assert_allclose(settled.log_debias, debias_target(HAND, UNIFORM), **TIGHT)


def test_wild_round_is_forgotten_geometrically() -> None:
    good = np.diag([60, 60, 60])
    wild = np.roll(np.diag([60, 60, 60]), 1, axis=1) + np.array([[0, 0, 0], [0, 0, 0], [60, 0, 0]])
    hit = next_state(wild, [1, 0, 0], next_state(good, UNIFORM, initial_state(3)))
    state = hit
    for rounds in range(1, 21):
        state = next_state(good, UNIFORM, state)
        np.testing.assert_allclose(state.log_weights, 0.7**rounds * np.array(hit.log_weights), **TIGHT)
        np.testing.assert_allclose(
            np.array(state.thresholds) - 0.8, 0.7**rounds * (np.array(hit.thresholds) - 0.8), **TIGHT
        )
        np.testing.assert_allclose(state.log_debias, 0.7**rounds * np.array(hit.log_debias), **TIGHT)


# Hold, roll-back, brake.


@pytest.mark.parametrize(
    "bad",
    [
        np.full((3, 3), np.nan),
        np.where(np.eye(3), np.inf, 50),
        HAND - 10 * np.eye(3) * [0, 0, 3],
        np.diag([33, 33, 33]),
    ],
    ids=["nan", "infinite", "negative", "99 examples"],
)
def test_bad_matrix_holds_the_state(bad: np.ndarray) -> None:
    state = next_state(HAND, UNIFORM, initial_state(3))
    assert next_state(bad, UNIFORM, state, accepted_share=0.0) is state


def test_a_hundred_examples_are_enough() -> None:
    assert next_state(np.diag([33, 33, 34]), None, initial_state(3)).version == 1


@pytest.mark.parametrize("shape", [(3, 4), (2, 2), (3,), (9,)])
def test_wrong_shape_raises(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="confusion matrix has shape"):
        next_state(np.full(shape, 100), None, initial_state(3))


def test_wrong_q_hat_shape_raises() -> None:
    with pytest.raises(ValueError, match="q_hat has shape"):
        next_state(HAND, [0.5, 0.5], initial_state(3))


@pytest.mark.parametrize("q_hat", [None, [math.nan, 0.5, 0.5], [-1, 1, 1], [0, 0, 0]])
def test_unusable_q_hat_holds_the_debiasing_only(q_hat: list[float] | None) -> None:
    state = next_state(HAND, UNIFORM, initial_state(3))
    after = next_state(HAND, q_hat, state)
    assert after.log_debias == state.log_debias
    assert after.log_weights != state.log_weights


def test_empty_matrix_relaxes_a_biased_state() -> None:
    state = next_state(HAND, UNIFORM, initial_state(3))
    relaxed = next_state(np.zeros((3, 3)), UNIFORM, state)
    np.testing.assert_allclose(relaxed.log_weights, 0.7 * np.array(state.log_weights), **TIGHT)
    np.testing.assert_allclose(relaxed.log_debias, 0.7 * np.array(state.log_debias), **TIGHT)
    assert relaxed.best_macro_f1 == state.best_macro_f1


def test_two_clear_losses_roll_back_for_one_round() -> None:
    good, poor = np.diag([100, 100, 100]), HAND * 2
    state = next_state(good, UNIFORM, initial_state(3))
    assert (state.best_macro_f1, state.best_version) == (1.0, 0)
    once = next_state(poor, UNIFORM, state)
    assert once.worse_rounds == 1
    assert once.log_weights[2] > 0
    twice = next_state(poor, UNIFORM, once)
    assert twice.worse_rounds == 0
    np.testing.assert_allclose(twice.log_weights, 0.7 * np.array(once.log_weights), **TIGHT)
    np.testing.assert_allclose(np.array(twice.thresholds) - 0.8, 0.7 * (np.array(once.thresholds) - 0.8), **TIGHT)
    thrice = next_state(poor, UNIFORM, twice)
    assert thrice.log_weights[2] > twice.log_weights[2]
    assert (thrice.best_macro_f1, thrice.best_version) == (1.0, 0)


def test_loss_within_the_noise_does_not_roll_back() -> None:
    state = next_state(np.diag([100, 100, 100]), UNIFORM, initial_state(3))
    for _ in range(4):
        state = next_state(HAND * 2, UNIFORM, state, macro_f1_se=1.0)
        assert state.worse_rounds == 0


def test_volume_brake_lowers_tau0_after_two_scarce_rounds_down_to_the_floor() -> None:
    state, good = initial_state(3), np.diag([100, 100, 100])
    seen = []
    for share in (0.04, 0.20, 0.04, 0.04, 0.04, 0.04):
        state = next_state(good, None, state, accepted_share=share)
        seen.append(round(state.tau0, 10))
    assert seen == [0.8, 0.8, 0.8, 0.78, 0.78, 0.76]
    enough = next_state(good, None, dataclasses.replace(state, low_share_rounds=1), accepted_share=0.05)
    assert (enough.tau0, enough.low_share_rounds) == (state.tau0, 0)
    for _ in range(100):
        state = next_state(good, None, state, accepted_share=0.0)
    assert state.tau0 == 0.60
    np.testing.assert_allclose(state.thresholds, np.full(3, 0.60), atol=1e-6)


def test_harmful_prior_is_withdrawn() -> None:
    state = next_state(HAND, UNIFORM, initial_state(3))
    after = next_state(HAND, UNIFORM, state, prior_helps=False)
    np.testing.assert_allclose(after.log_debias, 0.7 * np.array(state.log_debias), **TIGHT)


# Ablation, storage, configuration, sampling.


@pytest.mark.parametrize(
    ("part", "factor", "neutral"),
    [
        ("loss_weights", "loss_weights", 1.0),
        ("sampling_weights", "sampling_weights", 1.0),
        ("thresholds", "thresholds", 0.8),
        ("debiasing", "log_debiasing_prior", -math.log(3)),
    ],
)
def test_each_part_can_be_switched_off(part: str, factor: str, neutral: float) -> None:
    parts = [other for other in PARTS if other != part]
    full = snapshot(next_state(HAND, [0.2, 0.3, 0.5], initial_state(3)))
    ablated = snapshot(next_state(HAND, [0.2, 0.3, 0.5], initial_state(3, parts), parts, accepted_share=0.01))
    for name in ("loss_weights", "sampling_weights", "thresholds", "log_debiasing_prior"):
        expected = np.full(3, neutral) if name == factor else getattr(full, name)
        np.testing.assert_allclose(getattr(ablated, name), expected, **TIGHT)


def test_what_a_round_uses_is_never_changed() -> None:
    state = initial_state(2)
    assert hash(state) == hash(initial_state(2))
    for fixed, field in (
        (state, "tau0"),
        (snapshot(state), "version"),
        (class_rates(HAND), "support"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(fixed, field, getattr(fixed, field))


def test_state_survives_json() -> None:
    state = next_state(HAND, UNIFORM, initial_state(3))
    assert FeedbackState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False))) == state
    fresh = initial_state(3)
    assert FeedbackState.from_json(json.loads(json.dumps(fresh.to_json()))) == fresh


@pytest.mark.parametrize(
    ("value", "lowest", "highest"),
    [
        *((controller.STEP, 1e-6, 1.0), (SAMPLING_SHARE, 0.0, 1.0), (factors.EM_PULL, 0.0, 1.0)),
        *((factors.EPSILON, 1e-12, 1.0), (factors.PSEUDO_COUNT, 1e-6, math.inf), (factors.MAX_BOOST, 1.0, math.inf)),
        *((factors.MIN_THRESHOLD, 0.5, factors.BASE_THRESHOLD), (factors.MAX_THRESHOLD, factors.BASE_THRESHOLD, 1.0)),
        *((factors.MAX_CUT, 1.0, math.inf), (factors.WEIGHT_GAIN, 0.0, math.inf)),
        *((factors.PRECISION_GAIN, 0.0, math.inf), (factors.RECALL_GAIN, 0.0, math.inf)),
        *((factors.DEBIAS_STRENGTH, 0.0, math.inf), (controller.BRAKE_STEP, 0.0, math.inf)),
    ],
)
def test_the_constants_keep_the_bounds(value: float, lowest: float, highest: float) -> None:
    assert lowest <= value <= highest


def test_the_start_by_hand() -> None:
    assert initial_state(2) == FeedbackState(
        log_weights=(0.0, 0.0),
        thresholds=(0.8, 0.8),
        log_debias=(0.0, 0.0),
        tau0=0.8,
        loss_share=0.5,
        sampling_share=0.5,
        version=0,
        low_share_rounds=0,
        worse_rounds=0,
        best_macro_f1=None,
        best_version=0,
    )


def test_sampling_guard_caps_what_feedback_adds() -> None:
    even = [1, 1, 1]
    # A class of 5 images is drawn 20 times each already: wanted [.5 .25 .25], but no boost for it.
    np.testing.assert_allclose(
        sampling_probabilities([2, 1, 1], even, [5, 1000, 1000], 300), np.full(3, 1 / 3), **TIGHT
    )
    # Four draws of 60 images are .4 of 600; the two others share the rest in proportion, 1 to 2.
    np.testing.assert_allclose(sampling_probabilities([4, 1, 2], even, [60, 1000, 1000], 600), [0.4, 0.2, 0.4], **TIGHT)
    # What one cap gives away meets another: wanted [.73 .18 .09], then [.5 .33 .17], and 75 images may be .3 of 1000.
    np.testing.assert_allclose(
        sampling_probabilities([4, 2, 1], [0.5, 0.25, 0.25], [100, 75, 1000], 1000), [0.5, 0.3, 0.2], **TIGHT
    )
    np.testing.assert_allclose(sampling_probabilities([2, 1], [0.25, 0.75], [900, 900], 100), [0.4, 0.6], **TIGHT)


def test_neutral_sampling_is_the_base_and_an_absent_class_is_never_drawn() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        counts = rng.integers(0, 50, 6) * rng.integers(0, 2, 6)
        counts[0] += 1
        base = rng.dirichlet(np.ones(6)) * (counts > 0) + (counts > 0)
        np.testing.assert_allclose(
            sampling_probabilities(np.ones(6), base, counts, 500), base / base.sum(), rtol=0, atol=1e-12
        )
        weights = rng.uniform(math.sqrt(1 / 1.5), math.sqrt(2), 6)
        probabilities = sampling_probabilities(weights, base, counts, 500)
        assert probabilities.sum() == pytest.approx(1)
        assert (probabilities[counts == 0] == 0).all()
        assert (probabilities <= np.maximum(4 * counts / 500, base / base.sum()) + 1e-9).all()
