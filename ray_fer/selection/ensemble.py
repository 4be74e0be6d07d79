"""Ensembles: pure functions from what several teachers say of each picture to what they say together.

An ensemble is one function of T arrays of probabilities (N, K) -> `Combined` and one entry in `ENSEMBLES`. Selection
rules then look at the combined probabilities as they would at those of a single teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Probs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Combined:
    """What the teachers say together.

    Attributes:
        rows: int64 (M,), indices of the pictures that they have a common answer for, ascending.
        probs: float32 (M, K), that answer.
    """

    rows: npt.NDArray[np.int64]
    probs: Probs


def mean(probs: Sequence[Probs]) -> Combined:
    """The mean of the probability vectors, each calibrated by itself, for every picture.

    A uniformly weighted mixture, as in deep ensembles (Lakshminarayanan et al., NeurIPS 2017, section 2.4).

    Args:
        probs: of each teacher float32 (N, K).
    """
    return Combined(np.arange(len(probs[0])), sum(probs[1:], start=probs[0]) / np.float32(len(probs)))


def agreement(probs: Sequence[Probs]) -> Combined:
    """The mean, only of pictures that every teacher puts into the same class.

    Agreement as in tri-training (Zhou & Li, IEEE TKDE 2005), where what two classifiers agree on becomes a label for
    the third; here all of them have to agree.

    Args:
        probs: of each teacher float32 (N, K).
    """
    named = [each.argmax(axis=1) for each in probs]
    rows = np.flatnonzero(np.logical_and.reduce([each == named[0] for each in named]))
    return Combined(rows, mean([each[rows] for each in probs]).probs)


def named_otherwise_without(probs: Sequence[Probs]) -> list[float]:
    """What each teacher adds: the share of the pictures that the mean of the others puts into another class.

    Args:
        probs: of each of two or more teachers float32 (N, K), N > 0.
    """
    together, count = sum(probs[1:], start=probs[0]), len(probs[0])
    named = together.argmax(axis=1)
    return [round(float(np.mean((together - each).argmax(axis=1) != named)), 4) if count else 0.0 for each in probs]


ENSEMBLES: dict[str, Callable[[Sequence[Probs]], Combined]] = {"mean": mean, "agreement": agreement}
