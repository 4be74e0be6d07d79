"""Ensembles: pure functions from what several teachers say of each picture to what they say together.

An ensemble is one function of probabilities (T, N, K) -> `Combined` and one entry in `ENSEMBLES`. Selection rules then
look at the combined probabilities as they would at those of a single teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Combined:
    """What the teachers say together.

    Attributes:
        rows: int64 (M,), indices of the pictures that they have a common answer for, ascending.
        probs: float32 (M, K), that answer.
    """

    rows: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float32]


def mean(probs: Floats) -> Combined:
    """The mean of the probability vectors, each calibrated by itself, for every picture.

    A uniformly weighted mixture, as in deep ensembles (Lakshminarayanan et al., NeurIPS 2017, section 2.4).

    Args:
        probs: (T, N, K) of T teachers.
    """
    return Combined(np.arange(probs.shape[1]), np.asarray(probs.mean(axis=0, dtype=np.float64), np.float32))


def agreement(probs: Floats) -> Combined:
    """The mean, only of pictures that every teacher puts into the same class.

    Agreement as in tri-training (Zhou & Li, IEEE TKDE 2005), where what two classifiers agree on becomes a label for
    the third; here all of them have to agree.

    Args:
        probs: (T, N, K) of T teachers.
    """
    named = probs.argmax(axis=2)
    rows = np.flatnonzero((named == named[0]).all(axis=0))
    return Combined(rows, mean(probs[:, rows]).probs)


ENSEMBLES: dict[str, Callable[[Floats], Combined]] = {"mean": mean, "agreement": agreement}
