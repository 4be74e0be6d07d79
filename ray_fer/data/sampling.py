"""Which labelled rows a training step sees: classes uniformly, or rows by weight.

Drawing the class first, with probability 1/C, and then an instance of it is how the paper trains its teacher
(arXiv 2403.11942). On a long tail it is worth more than a weighted loss, because a rare class is in every batch. Its
cost is repetition: thirteen pictures of disgust are seen hundreds of times an epoch. So an instance comes back only
after all others of its class, and augmentation has to make it look new.

Everything is a pure function of (seed, epoch, step), not of a generator's history: a resumed run, and a run with the
same number of workers elsewhere, sees the same batches. Ranks cut disjoint parts out of one global order.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLASS_POWERS = {"uniform": 0.0, "sqrt": 0.5, "natural": 1.0}
"""How often a class of n faces is drawn, as a power of n, by the name that a config has for it."""

_CLASSES, _INSTANCES, _WEIGHTED, PICTURES = range(4)  # independent random streams of one seed


class ClassUniformSampler:
    """Class by probability, instance without replacement inside its class, over epochs without a seam.

    The classes of an epoch are independent draws (their counts a multinomial, their order a shuffle). Each class has
    an endless stream of its instances, one shuffle of them after another, and every draw takes the next.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        num_classes: int,
        batch_size: int,
        *,
        steps: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        class_probs: ArrayLike | None = None,
    ) -> None:
        """Prepares the index of each class.

        Args:
            labels: int64 (N,), class index per row; rows of -1 are never drawn.
            num_classes: C.
            batch_size: Rows per step and rank.
            steps: Steps per epoch; without, as many as it takes to draw as many rows as are labelled.
            seed: Same seed, same batches.
            rank: This worker.
            world_size: Number of workers.
            class_probs: (C,) probability per class up to a factor; uniform if None. A class without instances is left
                out and its share goes to the others.

        Raises:
            ValueError: if nothing can be drawn.
        """
        self._rows = [np.flatnonzero(labels == index) for index in range(num_classes)]
        present = np.array([rows.size for rows in self._rows]) > 0
        weights = np.where(present, np.ones(num_classes) if class_probs is None else np.asarray(class_probs, float), 0)
        if not (weights >= 0).all() or not weights.sum() > 0:
            raise ValueError("no class can be drawn: no labelled row, or no class with both rows and a probability")
        self._probs: dict[int, NDArray[np.float64]] = {0: weights / weights.sum()}  # by the epoch from which they hold
        self.steps = steps or -(-int((labels >= 0).sum()) // (batch_size * world_size))
        self._batch_size, self._rank, self._world_size, self._seed = batch_size, rank, world_size, seed

    @property
    def schedule(self) -> list[tuple[int, list[float]]]:
        """The probabilities of the classes, (C,), each with the epoch from which they hold."""
        return [(epoch, self._probs[epoch].tolist()) for epoch in sorted(self._probs)]

    @schedule.setter
    def schedule(self, schedule: Sequence[tuple[int, Sequence[float]]]) -> None:
        self._probs = {epoch: np.asarray(probs, np.float64) for epoch, probs in schedule}

    def class_probs(self, epoch: int) -> NDArray[np.float64]:
        """The probabilities of the classes in one epoch, (C,)."""
        return self._probs[max(first for first in self._probs if first <= epoch)]

    def reweight(self, epoch: int, class_probs: NDArray[np.float64]) -> None:
        """Draws the classes by other probabilities (C,), sum 1, from ``epoch`` on; earlier epochs stay as they were."""
        self._probs[epoch] = class_probs

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The rows of one epoch for this rank: int64 (steps, batch_size)."""
        past = sum((self._class_counts(earlier) for earlier in range(epoch)), np.zeros(len(self._rows), np.int64))
        counts = self._class_counts(epoch)
        rows = [self._stream(int(index), int(past[index]), int(counts[index])) for index in np.flatnonzero(counts)]
        order = np.random.default_rng((self._seed, _CLASSES, epoch, 1)).permutation(int(counts.sum()))
        # Instances of a class are taken in the order of the places that the shuffle gave to the class.
        drawn = np.empty(order.size, np.int64)
        start = 0
        for part in rows:
            drawn[np.sort(order[start : start + part.size])] = part
            start += part.size
        return drawn.reshape(self.steps, self._world_size, self._batch_size)[:, self._rank]

    def _class_counts(self, epoch: int) -> NDArray[np.int64]:
        total = self.steps * self._world_size * self._batch_size
        generator = np.random.default_rng((self._seed, _CLASSES, epoch, 0))
        return generator.multinomial(total, self.class_probs(epoch)).astype(np.int64)

    def _stream(self, index: int, start: int, count: int) -> NDArray[np.int64]:
        """Instances number ``start`` to ``start + count`` of a class's endless sequence of shuffles."""
        rows = self._rows[index]
        order: NDArray[np.int64] = rows[shuffled(rows.size, start, count, self._seed, _INSTANCES, index)]
        return order


def shuffled(rows: int, start: int, count: int, seed: int, *stream: int) -> NDArray[np.int64]:
    """Places ``start`` to ``start + count`` of an endless sequence of shuffles of ``range(rows)``, int64 (count,).

    Args:
        rows: how many there are.
        start: the first place.
        count: how many places.
        seed: same seed and stream, same sequence.
        stream: numbers of one of the seed's independent sequences.
    """
    first, last = start // rows, (start + count - 1) // rows
    shuffles = [np.random.default_rng((seed, *stream, number)).permutation(rows) for number in range(first, last + 1)]
    offset = start - first * rows
    places: NDArray[np.int64] = np.concatenate(shuffles)[offset : offset + count]
    return places


def weighted_indices(
    weights: ArrayLike | Sequence[float], count: int, *, seed: int = 0, epoch: int = 0
) -> NDArray[np.int64]:
    """Draws rows with expectation proportional to their weight, by systematic resampling, in random order.

    Row i is drawn floor or ceil of count * w_i / sum(w) times, with far less noise than independent draws have. Rank r
    of W takes ``[r::W]``.

    Args:
        weights: (N,), not negative, not all zero.
        count: How many rows to draw.
        seed: Same (seed, epoch), same rows.
        epoch: Another epoch, another draw.

    Returns:
        int64 (count,).

    Raises:
        ValueError: for a negative or NaN weight, or none above zero.
    """
    array = np.asarray(weights, np.float64)
    if not (array >= 0).all() or not 0 < array.sum() < np.inf:
        raise ValueError("weights must be finite, not negative, and not all zero")
    generator = np.random.default_rng((seed, _WEIGHTED, epoch))
    bounds = np.cumsum(array)
    marks = (np.arange(count) + generator.random()) * (bounds[-1] / count)
    # The last mark may round up to the very end, where no row is.
    rows = np.minimum(np.searchsorted(bounds, marks, side="right"), np.flatnonzero(array)[-1])
    return generator.permutation(rows)
