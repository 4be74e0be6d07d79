"""The map from a net's outputs to calibrated logits over the package's classes.

A class of the net that maps to no class of the package is dropped, and the probabilities of the others are
renormalised. Classes that map to the same class add their probabilities. In logits, the first leaves a column out, the
second is a log-sum-exp, and the softmax that follows renormalises both. The map takes microseconds in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DROPPED = -1
# The value of a probability that a net rounded to zero.
_SMALLEST = 1e-30
# Logits of a larger magnitude would be infinite in float32, so they are shifted, which changes no probability.
_LARGE = 1e30


@dataclass(frozen=True)
class Outputs:
    """The map from the M outputs of a net to logits over K classes.

    Attributes:
        columns: For each of the M outputs, the index of its class, or `DROPPED`.
        probabilities: Whether the net puts out probabilities, rather than logits.
        temperature: T of arXiv:1706.04599, eq. 9, which divides the net's logits before anything else.
    """

    columns: tuple[int, ...]
    probabilities: bool = False
    temperature: float = 1.0

    @property
    def trivial(self) -> bool:
        """Whether the map is the identity."""
        return self == Outputs(tuple(range(len(self.columns))))

    def __call__(self, raw: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Logits float32 (B, K) of ``raw`` (B, M), whose softmax is the renormalised probability of each class.

        Outputs that are not finite give logits that are not finite. NaN or plus infinity in a dropped class becomes NaN
        in all others, and probabilities that are all zero become logits of minus infinity.
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
        # A logit far below the largest has a probability of zero.
        return np.asarray(np.where(z < -_LARGE, -np.inf, z), np.float32)
