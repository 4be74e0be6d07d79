"""Rules whose thresholds or weights follow the confidence of the unlabeled predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace, device

from ray_fer.selection.rule import (
    LOWEST_THRESHOLD,
    Accepted,
    Array,
    Measured,
    Rule,
    SelectionContext,
    State,
    accept_above,
    asarray_like,
    average,
    count,
    moving,
    normalise,
    number,
    top,
)


@dataclass(frozen=True)
class FlexMatch(Rule):
    """Curriculum pseudo-labelling (Zhang et al., NeurIPS 2021): lower thresholds for classes with few sure labels.

    With σ_c the number of unlabeled faces whose last sure prediction (max p ≥ τ_ĉ) was c, and u of those without any,
    β_c = σ_c / max(max σ, u); accepted is max p ≥ τ_ĉ · β_ĉ / (2 − β_ĉ): warm-up and convex map as released. The floor
    is ours: at the start β = 0 would accept everything.

    State: ``assigned`` int8 (rows,), the class of each face or −1; ``counts`` (K + 1,), of it, the last of −1;
    ``thresholds`` (K,), those of the context. With ``rows`` given, `measure` returns ``rows`` and ``labels`` (−1: not
    sure), to be appended rather than added up; `update` changes those rows alone, and of several predictions of a face
    takes the last sure one. Without (offline, where each face is seen once, or for endless streams) it returns sums
    like any rule, and ``counts`` are their moving average.
    """

    passes: ClassVar[int] = 1

    def start(self, context: SelectionContext, rows: int = 0) -> State:
        """See `Rule.start`."""
        counts = np.zeros(len(context.thresholds) + 1, np.float32)
        counts[-1] = rows
        return self.refresh({"assigned": np.full(rows, -1, np.int8), "counts": counts}, context)

    def refresh(self, state: State, context: SelectionContext) -> State:
        """See `Rule.refresh`."""
        return state | {"thresholds": asarray_like(context.thresholds, state["counts"])}

    def measure(self, probs: Array, state: State, rows: Array | None = None) -> Measured:
        """See `Rule.measure`."""
        xp = array_namespace(probs)
        named, confidence = top(probs)
        sure = confidence >= xp.take(asarray_like(state["thresholds"], probs), named)
        classes = probs.shape[1]
        if rows is None:
            return {"counts": count(xp.where(sure, named, classes), classes + 1)}
        return {"rows": rows, "labels": xp.where(sure, named, -1)}

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        """See `Rule.update`."""
        if "counts" in measured:
            new = measured["counts"]
            return state | {"counts": moving(state["counts"], new, new.sum() > 0, momentum, from_first=True)}
        xp = array_namespace(measured["rows"])
        assigned, counts = state["assigned"], state["counts"]
        classes = counts.shape[0] - 1
        # The predictions of a face together, its sure ones last and in their order.
        order = xp.argsort(2 * measured["rows"] + (measured["labels"] >= 0), stable=True)
        rows, labels = xp.take(measured["rows"], order), xp.take(measured["labels"], order)
        last = xp.searchsorted(rows, rows, side="right") - 1
        before = xp.astype(xp.take(assigned, rows), xp.int64)
        decisive = xp.take(labels, last)
        after = xp.where(decisive >= 0, decisive, before)
        assigned = xp.asarray(assigned, copy=True)
        assigned[rows] = xp.astype(after, assigned.dtype)
        once = last == xp.arange(rows.shape[0], device=device(rows))
        change = [
            count(xp.where(once, xp.where(c >= 0, c, classes), classes + 1), classes + 1) for c in (after, before)
        ]
        return state | {"assigned": assigned, "counts": counts + change[0] - change[1]}

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        xp = array_namespace(probs)
        counts = asarray_like(state["counts"], probs)
        most = xp.max(counts)
        beta = counts[:-1] / xp.where(most > 0, most, xp.ones_like(most))
        base = asarray_like(context.thresholds, probs)
        return accept_above(probs, xp.minimum(base, xp.clip(base * beta / (2 - beta), LOWEST_THRESHOLD, None)))


@dataclass(frozen=True)
class FreeMatch(Rule):
    """The self-adaptive thresholds of FreeMatch (Wang et al., ICLR 2023): τ_c = t · p̃_c / max p̃.

    t is the moving average of the mean confidence, p̃ of the mean probabilities; both start at 1/K. It has no base
    threshold, so those of the config and the feedback do not reach it. The floor is ours: with a 16:1 tail a rare class
    would be accepted at t/16. The other half of the paper, its fairness term L_f, is left out: it is a loss on the
    strong views, of a weight of .001 to .01, and no selection; so is the histogram of predictions that only it needs.

    State: ``threshold`` t, 0-d; ``mean`` p̃ (K,).
    """

    update_first: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def start(self, context: SelectionContext, rows: int = 0) -> State:
        """See `Rule.start`."""
        classes = len(context.thresholds)
        return {
            "threshold": np.asarray(1 / classes, np.float32),
            "mean": np.full(classes, 1 / classes, np.float32),
        }

    def measure(self, probs: Array, state: State, rows: Array | None = None) -> Measured:
        """See `Rule.measure`."""
        xp = array_namespace(probs)
        return {
            "number": number(probs.shape[0], probs),
            "threshold": xp.sum(top(probs)[1]),
            "mean": xp.sum(probs, axis=0),
        }

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        """See `Rule.update`."""
        return {name: average(old, measured[name], measured["number"], momentum) for name, old in state.items()}

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        xp = array_namespace(probs)
        mean = asarray_like(state["mean"], probs)
        thresholds = asarray_like(state["threshold"], probs) * mean / xp.max(mean)
        return accept_above(probs, xp.clip(thresholds, LOWEST_THRESHOLD, None))


@dataclass(frozen=True)
class SoftMatch(Rule):
    """Weights on a truncated Gaussian (Chen et al., ICLR 2023): exp(−min(q − μ, 0)² · n_σ² / 2σ²).

    q is the confidence of the uniformly aligned p^a = N(p · (1/K) / p̃); it makes the weight alone, label and target are
    of the probabilities as they are. μ and σ² are moving averages of its mean and (unbiased) variance. The variant with
    them per class is left out: for a class that a batch lacks it averages in what it does not have. σ² starts at
    `variance`, not at the paper's 1, which gives every face a weight above .6 for thousands of steps.

    State: ``mean`` p̃ (K,), the first batch's at first (zeros: none yet, nothing is aligned); ``mu``, ``variance`` 0-d.

    Attributes:
        n_sigma: how many deviations the Gaussian is narrower.
        variance: where σ² starts.
    """

    n_sigma: float = 2.0
    variance: float = 0.05
    update_first: ClassVar[bool] = True
    passes: ClassVar[int] = 2

    def start(self, context: SelectionContext, rows: int = 0) -> State:
        """See `Rule.start`."""
        classes = len(context.thresholds)
        return {
            "mean": np.zeros(classes, np.float32),
            "mu": np.asarray(1 / classes, np.float32),
            "variance": np.asarray(self.variance, np.float32),
        }

    def measure(self, probs: Array, state: State, rows: Array | None = None) -> Measured:
        """See `Rule.measure`; aligned with the p̃ before these rows."""
        xp = array_namespace(probs)
        confidence = self._confidence(probs, state)
        return {
            "number": number(probs.shape[0], probs),
            "mean": xp.sum(probs, axis=0),
            "confidence": xp.sum(confidence),
            "squares": xp.sum(confidence**2),
        }

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        """See `Rule.update`; σ² needs two rows."""
        n, total, squares = measured["number"], measured["confidence"], measured["squares"]
        xp = array_namespace(state["mean"])
        n, total, squares = xp.asarray(n), xp.asarray(total), xp.asarray(squares)
        deviations = xp.clip(squares - total * total / xp.clip(n, 1, None), 0, None)
        return {
            "mean": average(state["mean"], measured["mean"], n, momentum, from_first=True),
            "mu": average(state["mu"], total, n, momentum),
            "variance": average(state["variance"], deviations, xp.clip(n - 1, 0, None), momentum),
        }

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        xp = array_namespace(probs)
        below = xp.clip(self._confidence(probs, state) - asarray_like(state["mu"], probs), None, 0)
        # Confidences that are all the same have no variance.
        spread = xp.clip(asarray_like(state["variance"], probs), 1e-6, None)
        weights = xp.exp(-(below**2) * self.n_sigma**2 / (2 * spread))
        return Accepted(weights, top(probs)[0], probs)

    def _confidence(self, probs: Array, state: State) -> Array:
        """q, (N,)."""
        xp = array_namespace(probs)
        classes = probs.shape[1]
        mean = asarray_like(state["mean"], probs)
        mean = xp.where(xp.any(mean > 0), mean, xp.full_like(mean, 1 / classes))
        return xp.max(normalise(probs * ((1 / classes + 1e-6) / (mean + 1e-6))[None, :]), axis=1)
