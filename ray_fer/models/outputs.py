"""From what a net puts out to logits over our classes: calibrated, mapped and, where its classes are more, merged.

A class of the model that maps to none of ours is dropped and the probability of the others renormalised; classes that
map to the same one of ours add their probabilities. In logits the first is leaving a column out, the second a
log-sum-exp, and the softmax that follows renormalises both. Pure numpy, (B, K): microseconds beside the net.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DROPPED = -1
# Of a probability that a net rounded to zero.
_SMALLEST = 1e-30
# Logits beyond are moved, which changes no probability, before float32 would call them infinite.
_LARGE = 1e30


@dataclass(frozen=True)
class Outputs:
    """How the M outputs of a net become logits over our K classes.

    Attributes:
        columns: for each of the M outputs the index of our class, or `DROPPED`.
        probabilities: whether the net puts out probabilities, else logits.
        temperature: T of arXiv:1706.04599, eq. 9: the net's logits are divided by it before anything else.
    """

    columns: tuple[int, ...]
    probabilities: bool = False
    temperature: float = 1.0

    @property
    def trivial(self) -> bool:
        """Whether the net's own outputs are what is wanted."""
        return self == Outputs(tuple(range(len(self.columns))))

    def __call__(self, raw: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Logits float32 (B, K) of ``raw`` (B, M); their softmax is the renormalised probability of each class.

        What is not finite stays so: NaN or plus infinity in a class that is dropped is NaN in all others, and
        probabilities that are all zero are logits of minus infinity.
        """
        kept = [output for output, column in enumerate(self.columns) if column != DROPPED]
        wanted = [self.columns[output] for output in kept]
        z = raw[:, kept].astype(np.float64)
        if self.probabilities:
            z = np.log(np.maximum(z, _SMALLEST))
            z[(raw <= 0).all(axis=1)] = -np.inf
        if len(kept) < len(self.columns):
            dropped = np.delete(raw, kept, axis=1)
            z[(np.isnan(dropped) | np.isposinf(dropped)).any(axis=1)] = np.nan
        z /= self.temperature
        largest = z.max(axis=1, keepdims=True)
        beyond = np.isfinite(largest) & (np.abs(largest) > _LARGE)
        z -= np.where(beyond, largest, 0)
        if len(set(wanted)) < len(wanted):
            largest = np.where(np.isfinite(largest) & ~beyond, largest, 0)
            with np.errstate(invalid="ignore"):  # infinity times zero
                merged = np.exp(z - largest) @ np.eye(max(wanted) + 1)[wanted]
            z = np.log(np.maximum(merged, _SMALLEST)) + largest
            z[(merged == 0).all(axis=1)] = -np.inf
        else:
            z = z[:, np.argsort(wanted)]
        # Far below the largest a probability is zero.
        return np.asarray(np.where(z < -_LARGE, -np.inf, z), np.float32)
