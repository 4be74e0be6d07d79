"""Rules that accept the most confident predictions of each class, however confident they are.

Ranks come from a histogram of the confidence per predicted class: it adds up over batches and workers, and needs no
sorting of all rows. Of the bin that the cut goes through every row gets the same fraction as its weight, so that the
weights add up to what is wanted: a few rows of a batch with 4,096 bins, one of a table with 2^20. Thresholds are
rounded down to the edge of a bin.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace, device

from ray_fer.selection.rule import (
    Accepted,
    Array,
    Measured,
    Rule,
    SelectionContext,
    State,
    asarray_like,
    count,
    moving,
    top,
)

_BINS = 1 << 12


@dataclass(frozen=True)
class Ranked(Rule):
    """What both rules share.

    State: ``histogram`` (K, bins), predictions per class and bin of confidence; online of an average batch.

    Attributes:
        bins: of the histogram, equal ones of [0, 1].
    """

    bins: int = _BINS
    update_first: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def start(self, context: SelectionContext, rows: int = 0) -> State:
        """See `Rule.start`."""
        return {"histogram": np.zeros((len(context.thresholds), self.bins), np.float32)}

    def measure(self, probs: Array, state: State, rows: Array | None = None) -> Measured:
        """See `Rule.measure`."""
        xp = array_namespace(probs)
        classes = probs.shape[1]
        flat = count(_cells(*top(probs), self.bins), classes * self.bins)
        return {"histogram": xp.reshape(flat, (classes, self.bins))}

    def update(self, state: State, measured: Measured, momentum: float) -> State:
        """See `Rule.update`."""
        new = measured["histogram"]
        return {"histogram": moving(state["histogram"], new, new.sum() > 0, momentum, from_first=True)}

    def accept(self, probs: Array, state: State, context: SelectionContext) -> Accepted:
        """See `Rule.accept`."""
        xp = array_namespace(probs)
        labels, confidence = top(probs)
        shares = self.shares(asarray_like(state["histogram"], probs), context)
        return Accepted(xp.take(xp.reshape(shares, (-1,)), _cells(labels, confidence, self.bins)), labels, probs)

    @abstractmethod
    def shares(self, histogram: Array, context: SelectionContext) -> Array:
        """The weight (K, bins) of the predictions in each bin of ``histogram``."""


@dataclass(frozen=True)
class TopK(Ranked):
    """Noisy Student's balancing (Xie et al., CVPR 2020), as in the released filter.

    Of each predicted class the N most confident, down to half its threshold. A class with only n < N has the weight
    N/n, at most ``max_copies`` (the paper's copies, unbounded there); one that is never predicted gives nothing. N is
    ``per_class``, by default a K-th of what the thresholds accept, at least 1.

    Attributes:
        per_class: N; online it counts per batch, over all workers.
        max_copies: bound of N/n.
    """

    per_class: float | None = None
    max_copies: float = 4.0

    def shares(self, histogram: Array, context: SelectionContext) -> Array:
        """See `Ranked.shares`."""
        xp = array_namespace(histogram)
        thresholds = asarray_like(context.thresholds, histogram)
        classes = histogram.shape[0]
        passing = xp.sum(xp.where(_at_least(thresholds, self.bins), histogram, xp.zeros_like(histogram)))
        wanted = xp.clip(xp.floor(passing / classes), 1, None) if self.per_class is None else self.per_class
        candidates = _at_least(thresholds / 2, self.bins)
        number = xp.sum(xp.where(candidates, histogram, xp.zeros_like(histogram)), axis=1)
        wanted = xp.zeros_like(number) + wanted
        copies = xp.clip(wanted / xp.clip(number, 1e-6, None), 1, self.max_copies)
        best = _best(histogram, wanted) * copies[:, None]
        return xp.where(candidates, best, xp.zeros_like(best))


@dataclass(frozen=True)
class CReST(Ranked):
    """Class-rebalancing self-training (Wei et al., CVPR 2021): most of the rarest class, whose precision is high.

    Of the predictions of the class with the l-th largest labelled count N_l the share μ_l = (N_{K+1−l} / N_1)^α, the
    most confident ones, is accepted, whatever the confidence; weights add up to μ_l times their number, which is not
    rounded. Ranks are of the labelled counts, at least 1 each; classes with equal counts share the mean of their rates.

    Attributes:
        alpha: α.
    """

    alpha: float = 1 / 3
    needs: ClassVar[tuple[str, ...]] = ("labelled_counts",)

    def rates(self, counts: Array) -> Array:
        """μ (K,) of each class, for the labelled counts (K,)."""
        xp = array_namespace(counts)
        counts = xp.clip(counts, 1, None)
        ascending = xp.sort(counts)
        by_rank = (ascending / ascending[-1]) ** self.alpha  # of the most frequent class first
        # Of class c the ranks are from the number of more frequent ones to that of at least as frequent ones.
        equal = xp.astype(counts[:, None] == counts[None, :], counts.dtype)
        rank = xp.sum(xp.astype(counts[None, :] > counts[:, None], counts.dtype), axis=1)
        ranks = xp.arange(counts.shape[0], device=device(counts))[None, :]
        mine = xp.astype((ranks >= rank[:, None]) & (ranks < (rank + xp.sum(equal, axis=1))[:, None]), counts.dtype)
        return xp.sum(mine * by_rank[None, :], axis=1) / xp.sum(mine, axis=1)

    def shares(self, histogram: Array, context: SelectionContext) -> Array:
        """See `Ranked.shares`."""
        xp = array_namespace(histogram)
        rates = self.rates(asarray_like(context.labelled_counts, histogram))
        return _best(histogram, rates * xp.sum(histogram, axis=1))


def _bin_of(confidence: Array, bins: int) -> Array:
    xp = array_namespace(confidence)
    return xp.astype(xp.clip(xp.floor(confidence * bins), 0, bins - 1), xp.int64)


def _cells(labels: Array, confidence: Array, bins: int) -> Array:
    return labels * bins + _bin_of(confidence, bins)


def _at_least(thresholds: Array, bins: int) -> Array:
    """Which bins (K, bins) reach the thresholds (K,)."""
    xp = array_namespace(thresholds)
    return xp.arange(bins, device=device(thresholds))[None, :] >= _bin_of(thresholds, bins)[:, None]


def _best(histogram: Array, wanted: Array) -> Array:
    """The share (K, bins) of each bin among the ``wanted`` (K,) most confident of its class."""
    xp = array_namespace(histogram)
    up_to = xp.cumulative_sum(histogram, axis=1)
    above = up_to[:, -1:] - up_to
    return xp.clip((wanted[:, None] - above) / xp.clip(histogram, 1e-6, None), 0, 1)
