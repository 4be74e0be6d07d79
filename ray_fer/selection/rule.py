"""What every selection rule is, and the array helpers they share.

A rule is a frozen dataclass of its constants; what it learns from the unlabeled predictions is a `State`, a small dict
of arrays that the caller keeps. The same code runs over the predictions table (numpy) and inside a training step (torch
tensors on any device): nothing here branches on a value of an array, so nothing waits for an accelerator.

Online, once a step, ``rule.update_first`` says in which order::

    measured = all_reduce(rule.measure(probs, state, rows))     # sums; what is `CONCATENATED` is appended instead
    state = rule.update(state, measured, momentum)              # of the caller's choice
    accepted = rule.accept(probs, state, context)

Offline `fit` turns the sums over all batches into dataset-wide statistics. N is the number of rows, K of classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

Array = Any  # a numpy array or a torch tensor
State = dict[str, Any]
Measured = dict[str, Any]

# Of the entries of `Measured` these are not sums: workers exchange and append them.
CONCATENATED = frozenset({"rows", "labels"})
# No threshold that a rule makes up by itself falls below this: FlexMatch would start by accepting everything, FreeMatch
# would take a class that is 16 times rarer at a 16th of the confidence. Our own choice.
LOWEST_THRESHOLD = 0.5


@dataclass(frozen=True)
class SelectionContext:
    """What a rule may know besides the probabilities.

    Attributes:
        thresholds: (K,) in (0, 1], the config's base threshold, moved by the feedback.
        labelled_prior: (K,), class frequencies of the labelled set, see `smoothed_prior`; None where unknown.
        labelled_counts: (K,), of the labelled set; None where unknown.
        labelled_confidence: (K,), mean confidence of the correctly predicted held-out faces of each class, NaN for a
            class without any; None where unknown.
        log_prior: (K,), the feedback's debiasing prior, which the caller removes with `debias`; None without.
        epoch: of training; infinite offline, where the model is finished.
    """

    thresholds: Array
    labelled_prior: Array | None = None
    labelled_counts: Array | None = None
    labelled_confidence: Array | None = None
    log_prior: Array | None = None
    epoch: float = math.inf

    def to(self, probs: Array) -> SelectionContext:
        """The same with float32 arrays of the kind and on the device of ``probs``: once, rather than in each step."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "epoch"}
        return replace(self, **{name: asarray_like(a, probs) for name, a in arrays.items() if a is not None})


@dataclass(frozen=True)
class Accepted:
    """What a rule makes of N predictions, row by row; no row is dropped here.

    Attributes:
        weights: float32 (N,), 0 where rejected; fractional or above 1 where the rule says so.
        labels: int64 (N,).
        targets: float32 (N, K), soft: the probabilities that the label is the largest of; see `harden`.
    """

    weights: Array
    labels: Array
    targets: Array


@dataclass(frozen=True)
class Rule(ABC):
    """A selection rule, and what one without statistics does.

    Attributes:
        update_first: whether a batch enters the statistics before they are applied to it.
        passes: how often `fit` goes over the data: 0 without statistics, 2 where some depend on others.
        needs: the fields of `SelectionContext` without which the rule makes no sense.
    """

    update_first: ClassVar[bool] = False
    passes: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def start(self, context: SelectionContext, rows: int = 0) -> State:
        """The numpy state before any prediction was seen; ``rows``: size of the unlabeled set, FlexMatch needs it."""
        return {}

    def refresh(self, state: State, context: SelectionContext) -> State:
        """The state after ``context`` has changed, as a new feedback version does."""
        return state

    def measure(self, probs: Array, state: State, rows: Array | None = None) -> Measured:
        """Sums over the rows of ``probs`` (N, K): those of parts add up to those of the whole, see `CONCATENATED`.

        Args:
            probs: of the weak views.
            state: for sums that depend on earlier statistics.
            rows: int64 (N,), indices into the unlabeled set, FlexMatch needs them.
        """
        return {}

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        """The next state: moving averages of the means; ``momentum`` 0 takes the means themselves."""
        return state

    @abstractmethod
    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """Weights, labels and targets of ``probs`` (N, K)."""

    def margin(self, state: State) -> Array | None:
        """What to add to the student's logits of the strong views, (K,); None for nothing."""
        return None


def fit(rule: Rule, batches: Iterable[Array], context: SelectionContext) -> State:
    """The state of ``rule`` over a whole data set.

    Args:
        rule: any.
        batches: float32 (n, K) each; gone over ``rule.passes`` times, so not an iterator.
        context: of the data set.
    """
    state = rule.start(context)
    for _ in range(rule.passes):
        totals: Measured = {}
        for probs in batches:
            measured = rule.measure(probs, state)
            # Batch by batch in double precision: 10⁷ float32 numbers lose digits when added up one after another.
            totals = {name: totals.get(name, 0.0) + np.asarray(each, np.float64) for name, each in measured.items()}
        state = rule.update(state, totals, 0.0) if totals else state
    return state


def move(state: State, probs: Array) -> State:
    """The state as arrays of the kind and on the device of ``probs``, of the same number formats."""
    xp, where = array_namespace(probs), device(probs)
    return {
        name: xp.asarray(np.asarray(each), device=where) if isinstance(each, np.ndarray | np.generic) else each
        for name, each in state.items()
    }


# --- arrays ---


def asarray_like(value: Array, probs: Array) -> Array:
    """``value`` as float32 of the kind and on the device of ``probs``; as it is where it is so already."""
    xp = array_namespace(probs)
    if isinstance(value, type(probs)) and value.dtype == xp.float32 and device(value) == device(probs):
        return value
    if isinstance(value, np.ndarray | np.generic | list | tuple | float):
        value = np.asarray(value, np.float32)
    return xp.asarray(value, dtype=xp.float32, device=device(probs))


def smoothed_prior(counts: Array) -> npt.NDArray[np.float32]:
    """Class frequencies (n + 1) / (N + K) of counts (K,), float32: no class has none."""
    smoothed = np.asarray(counts, np.float64) + 1
    return np.asarray(smoothed / smoothed.sum(), np.float32)


def top(probs: Array) -> tuple[Array, Array]:
    """The class int64 (N,) and confidence (N,) of each row."""
    xp = array_namespace(probs)
    return xp.astype(xp.argmax(probs, axis=1), xp.int64), xp.max(probs, axis=1)


def harden(labels: Array, classes: int) -> Array:
    """One-hot targets, float32 (N, K), of labels int (N,); a row of zeros for a label of none of the classes."""
    xp = array_namespace(labels)
    return xp.astype(labels[:, None] == xp.arange(classes, device=device(labels))[None, :], xp.float32)


def count(indices: Array, bins: int) -> Array:
    """How often each of 0 … bins − 1 occurs, float32 (bins,); ``bins`` itself is not counted."""
    xp = array_namespace(indices)
    if isinstance(indices, np.ndarray):
        return np.bincount(indices, minlength=bins + 1)[:bins].astype(np.float32)
    # Sorted and searched rather than scattered: exact, deterministic, and nothing waits for an accelerator.
    ordered = xp.sort(xp.astype(indices, xp.int64))
    ends = xp.searchsorted(ordered, xp.arange(bins + 1, device=device(indices)))
    return xp.astype(ends[1:] - ends[:-1], xp.float32)


def number(rows: int, probs: Array) -> Array:
    """A 0-d float32 array."""
    xp = array_namespace(probs)
    return xp.full((), float(rows), dtype=xp.float32, device=device(probs))


def moving(old: Array, new: Array, seen: Array, momentum: float, from_first: bool = False) -> Array:
    """Moving average of sums or means, in the number format of ``old``.

    Args:
        old: the average so far.
        new: of this batch.
        seen: whether the batch has any row, 0-d; the average stays as it is where it has none.
        momentum: weight of ``old``.
        from_first: an average that is all zeros has seen nothing, and ``new`` takes its place.
    """
    xp = array_namespace(old)
    new, seen = xp.asarray(new), xp.asarray(seen)
    mixed = momentum * old + (1 - momentum) * new
    if from_first:
        mixed = xp.where(xp.any(old != 0), mixed, new)
    return xp.astype(xp.where(seen, mixed, old), old.dtype)


def average(old: Array, total: Array, rows: Array, momentum: float, from_first: bool = False) -> Array:
    """`moving` of the mean total / rows, with ``rows`` 0-d."""
    xp = array_namespace(old)
    rows = xp.asarray(rows)
    return moving(old, total / xp.where(rows > 0, rows, xp.ones_like(rows)), rows > 0, momentum, from_first)


def normalise(rows: Array) -> Array:
    """Rows (N, K) that add up to 1."""
    xp = array_namespace(rows)
    return rows / xp.sum(rows, axis=1, keepdims=True)


def debias(probs: Array, log_prior: Array | None) -> Array:
    """Probabilities (N, K) with a prior removed: softmax(log p − log prior), float32.

    The form is DebiasPL's (Wang et al., CVPR 2022) with strength 1; the prior comes from the measured confusion, see
    `feedback.factors`.
    """
    xp = array_namespace(probs)
    probs = asarray_like(probs, probs)
    if log_prior is None:
        return probs
    prior = asarray_like(log_prior, probs)
    # Relative to the smallest, so that nothing overflows.
    return normalise(probs * xp.exp(xp.min(prior) - prior)[None, :])


def accept_above(probs: Array, thresholds: Array) -> Accepted:
    """Accepts with weight 1 what is at least as confident as the threshold (K,) of its class; ≥ as in FixMatch."""
    xp = array_namespace(probs)
    labels, confidence = top(probs)
    weights = xp.astype(confidence >= xp.take(asarray_like(thresholds, probs), labels), xp.float32)
    return Accepted(weights, labels, probs)
