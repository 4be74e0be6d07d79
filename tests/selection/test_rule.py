"""What holds for every rule."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.selection import (
    CONCATENATED,
    RULES,
    Rule,
    SelectionContext,
    debias,
    fit,
    harden,
    move,
    smoothed_prior,
)
from ray_fer.selection.rule import asarray_like, average, moving, number
from tests.selection.arrays import Make, both, close, combine, numpy_array

K, N = 5, 240
EVERY = pytest.mark.parametrize("name", RULES)


def drawn(seed: int = 0, rows: int = N) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(K, 0.25), rows).astype(np.float32)


def known(k: int = K) -> SelectionContext:
    counts = np.array([7, 900, 55, 55, 0])[:k]
    thresholds, confidence = np.linspace(0.7, 0.9, k), np.linspace(0.95, 0.75, k)
    return SelectionContext(thresholds, smoothed_prior(counts), counts, confidence, epoch=2.0)


def trained(rule: Rule, make: Make, steps: int = 3) -> tuple[dict, SelectionContext]:  # type: ignore[type-arg]
    """The state and what is known after some steps, on arrays of the kind that ``make`` makes."""
    probs = [make(drawn(seed)) for seed in range(steps)]
    state, mine = move(rule.start(known(), rows=N), probs[0]), known().to(probs[0])
    for each in probs:
        state = rule.update(state, rule.measure(each, state, make(np.arange(N))), 0.9)
    return state, mine


@EVERY
def test_numpy_and_torch_agree(name: str) -> None:
    rule, probs = RULES[name](), drawn(9)
    results = []
    for make in (numpy_array, lambda values: torch.from_numpy(np.array(values))):
        state, mine = trained(rule, make)
        accepted = rule.accept(make(probs), state, mine)
        results.append((state, accepted, rule.margin(state)))
    (state, accepted, margin), (other_state, other, other_margin) = results
    assert state.keys() == other_state.keys()
    for key in state:
        assert isinstance(other_state[key], torch.Tensor)
        assert str(other_state[key].dtype) == f"torch.{state[key].dtype}"
        close(state[key], other_state[key])
    assert (accepted.weights.dtype, accepted.labels.dtype, accepted.targets.dtype) == (np.float32, np.int64, np.float32)
    assert (other.weights.dtype, other.labels.dtype, other.targets.dtype) == (
        *(torch.float32, torch.int64, torch.float32),
    )
    # The cut through a bin of hundreds is of single precision.
    close(accepted.weights, other.weights, 1e-5 if name in ("crest", "top_k") else 1e-6)
    close(accepted.labels, other.labels)
    close(accepted.targets, other.targets)
    assert 0 < (accepted.weights > 0).sum() <= N
    assert (margin is None) == (other_margin is None)


@EVERY
def test_nothing_waits_for_an_accelerator(name: str) -> None:
    """Meta tensors have no values: whatever asks for one, and so would wait for the device, raises."""
    rule, probs, rows = (
        RULES[name](),
        torch.empty(N, K, device="meta"),
        torch.empty(N, dtype=torch.int64, device="meta"),
    )
    mine = known().to(probs)
    state = rule.refresh(move(rule.start(known(), N), probs), mine)
    measured = combine([rule.measure(probs, state, rows)] * 2)
    state = rule.update(state, measured, 0.9)
    accepted = rule.accept(probs, state, mine)
    assert {each.device.type for each in (*state.values(), *measured.values(), *vars(accepted).values())} == {"meta"}
    assert (accepted.weights.shape, accepted.labels.shape, accepted.targets.shape) == ((N,), (N,), (N, K))
    margin = rule.margin(state)
    assert margin is None or margin.shape == (K,)


@EVERY
@both
def test_parts_add_up_to_the_whole(name: str, make: Make) -> None:
    """As workers, each with its part of a batch, do."""
    rule, probs, rows = RULES[name](), make(drawn(4)), make(np.arange(N))
    state, _ = trained(rule, make)
    parts = [slice(0, 100), slice(100, 100), slice(100, N)]
    together = combine([rule.measure(probs[part], state, rows[part]) for part in parts])
    whole = rule.measure(probs, state, rows)
    assert together.keys() == whole.keys()
    for key in whole:
        close(together[key], whole[key], 1e-5)
    assert set(whole) <= CONCATENATED or not set(whole) & CONCATENATED
    one, other = rule.update(state, together, 0.9), rule.update(state, whole, 0.9)
    for key in one:
        close(one[key], other[key])


@EVERY
def test_the_order_of_the_classes_does_not_matter(name: str) -> None:
    rule = RULES[name]()
    order = np.array([3, 0, 4, 2, 1])

    def outcome(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts, thresholds, confidence = known().labelled_counts, known().thresholds, known().labelled_confidence
        assert counts is not None
        assert confidence is not None
        mine = SelectionContext(
            thresholds[columns], smoothed_prior(counts)[columns], counts[columns], confidence[columns], epoch=2.0
        )
        state = rule.start(mine, N)
        for seed in range(3):
            state = rule.update(state, rule.measure(drawn(seed)[:, columns], state, np.arange(N)), 0.9)
        accepted = rule.accept(drawn(9)[:, columns], state, mine)
        return accepted.weights, columns[accepted.labels], accepted.targets[:, np.argsort(columns)]

    for one, other in zip(outcome(np.arange(K)), outcome(order), strict=True):
        close(one, other, 1e-5)


ONE_CLASS = np.tile(np.array([[0.96, 0.01, 0.01, 0.01, 0.01]], np.float32), (40, 1))
CERTAIN = np.eye(K, dtype=np.float32)[np.arange(40) % 2]  # three classes are never predicted, and have no probability


@EVERY
@both
@pytest.mark.parametrize("probs", [ONE_CLASS, CERTAIN, drawn(1)[:0], drawn(1)[:1]], ids=["one", "certain", "no", "row"])
def test_states_stay_finite(name: str, probs: np.ndarray, make: Make) -> None:
    rule = RULES[name]()
    batch, rows = make(probs), make(np.arange(len(probs)))
    state, mine = move(rule.start(known(), rows=50), batch), known().to(batch)
    for _ in range(30):
        state = rule.update(state, rule.measure(batch, state, rows), 0.9)
        accepted = rule.accept(batch, state, mine)
        for each in (*state.values(), accepted.weights, accepted.targets):
            assert np.isfinite(np.asarray(each)).all()
        assert (np.asarray(accepted.weights) >= 0).all()
        close(np.asarray(accepted.targets).sum(axis=1), np.ones(len(probs)), 1e-5)


@EVERY
def test_every_constant_can_be_given_and_none_changed(name: str) -> None:
    rule = RULES[name]
    for field in fields(rule):
        assert getattr(rule(**{field.name: 7}), field.name) == 7
    with pytest.raises(FrozenInstanceError):
        setattr(rule(), "another", 1)  # noqa: B010


@EVERY
@both
def test_of_one_class_everything_is_accepted(name: str, make: Make) -> None:
    """Where there is nothing to tell apart, every prediction is certain."""
    rule, probs, told = RULES[name](), make(np.ones((6, 1), np.float32)), known(1)
    state = move(rule.start(told, 6), probs)
    state = rule.update(state, rule.measure(probs, state, make_rows(probs, 6)), 0.0)
    accepted = rule.accept(probs, state, told.to(probs))
    close(accepted.weights, [1] * 6)
    close(accepted.targets, [[1]] * 6)
    assert accepted.labels.tolist() == [0] * 6


def make_rows(probs: np.ndarray | torch.Tensor, count: int) -> np.ndarray | torch.Tensor:
    return torch.arange(count) if isinstance(probs, torch.Tensor) else np.arange(count)


@EVERY
@both
def test_an_empty_batch_changes_nothing(name: str, make: Make) -> None:
    rule = RULES[name]()
    state, _ = trained(rule, make)
    empty = make(drawn()[:0])
    with np.errstate(all="raise"):
        after = rule.update(state, rule.measure(empty, state, make(np.arange(0))), 0.9)
    for key in state:
        close(after[key], state[key], 0)


@EVERY
def test_online_with_momentum_0_is_offline(name: str) -> None:
    rule, probs = RULES[name](), drawn(2)
    offline = fit(rule, [probs[:90], probs[90:]], known())
    online = rule.start(known())
    for _ in range(rule.passes):
        online = rule.update(online, rule.measure(probs, online), 0.0)
    for key in online:
        close(offline[key], online[key], 1e-5)


@both
def test_averages_by_hand(make: Make) -> None:
    """Of a total of 6 over 3 rows, nine tenths of what was; zeros are what was, unless they are said to be nothing."""
    old, total, rows = make([4.0, 0.0]), make([6.0, 3.0]), make([3.0])[0]
    close(average(old, total, rows, 0.9), [3.8, 0.1])
    zeros = make([0.0, 0.0])
    close(average(zeros, total, rows, 0.9), [0.2, 0.1])
    close(average(zeros, total, rows, 0.9, from_first=True), [2.0, 1.0])
    close(moving(zeros, total, rows > 0, 0.9), [0.6, 0.3])
    close(moving(old, total, rows > 3, 0.9), [4.0, 0.0])
    assert asarray_like(old, total) is old


@both
def test_whatever_is_known_becomes_single_precision_of_the_kind_of_the_probabilities(make: Make) -> None:
    probs = make([[0.5, 0.5]])
    wide = probs.double() if isinstance(probs, torch.Tensor) else probs.astype(np.float64)
    given = [np.float64(0.25), 0.25, [0.25], (0.25,), np.array([0.25]), wide[0][:1] / 2]
    for found in (*(asarray_like(each, probs) for each in given), number(3, probs)):
        assert type(found) in (type(probs), np.float32)
        assert found.dtype == probs.dtype
    assert [np.asarray(asarray_like(each, probs)).ravel().tolist() for each in given] == [[0.25]] * 6


def test_what_a_rule_says_and_knows_is_never_changed() -> None:
    accepted = RULES["threshold"]().accept(drawn(0, 2), {}, known())
    for fixed, field in ((accepted, "weights"), (known(), "epoch")):
        with pytest.raises(FrozenInstanceError):
            setattr(fixed, field, 1)


def test_nothing_to_fit_is_the_start() -> None:
    for rule in (each() for each in RULES.values()):
        state = fit(rule, [], known())
        start = rule.start(known())
        assert state.keys() == start.keys()
        for key in start:
            close(state[key], start[key], 0)


def test_the_config_takes_every_rule_and_no_other_name() -> None:
    places = ["table=t", "teacher=m", "out=o"]
    for name in RULES:
        assert load_config("select_pseudo_labels", [*places, f"selection.rule={name}"]).selection.rule == name
    with pytest.raises(
        UserError, match=r"^select_pseudo_labels: selection\.rule='none': input should be 'threshold', "
    ):
        load_config("select_pseudo_labels", [*places, "selection.rule=none"])


@both
def test_a_prior_is_removed(make: Make) -> None:
    probs = make([[0.6, 0.4]])
    assert debias(probs, None) is probs
    close(debias(probs, np.log([0.5, 0.5])), probs)
    close(debias(probs, np.log([0.8, 0.2])), np.array([[0.75, 2.0]]) / 2.75)
    close(debias(make([[1.0, 0.0]]), np.array([-900.0, 0.0])), [[1, 0]])


@both
def test_hard_targets(make: Make) -> None:
    hard = harden(make([1, 0, 2]), 3)
    assert hard.dtype == make([0.0]).dtype
    close(hard, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_no_class_is_without_a_prior() -> None:
    close(smoothed_prior([0, 2, 5]), np.array([1, 3, 6]) / 10)


def test_what_is_known_moves_to_the_device_once() -> None:
    mine = known().to(torch.zeros(1, K))
    assert isinstance(mine.labelled_counts, torch.Tensor)
    assert (mine.labelled_counts.dtype, mine.log_prior, mine.epoch) == (torch.float32, None, 2.0)
    assert mine.to(torch.zeros(1, K)).thresholds is mine.thresholds
