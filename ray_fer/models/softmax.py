"""Softmax in numpy, for drivers that would wait seconds for the import of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Probabilities float32 (B, K) of ``logits`` (B, K), computed in float64 so that rows sum to one in float32.

    A logit of minus infinity is a probability of zero. A row that holds NaN or plus infinity, or only minus infinity,
    becomes NaN, and `why_not_finite` gives the reason.
    """
    z = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        return np.asarray(e / e.sum(axis=1, keepdims=True), np.float32)


def why_not_finite(logits: npt.NDArray[np.floating], classes: Sequence[str]) -> str:
    """The reason, in words, why the logits (K,) of a picture have no softmax."""
    nan, above = np.isnan(logits), np.isposinf(logits)
    found, where = ("NaN", nan) if nan.any() else ("infinity", above) if above.any() else ("minus infinity", ~nan)
    names = [name for name, there in zip(classes, where, strict=True) if there]
    which = "every class" if len(names) == len(classes) else ", ".join(names)
    return f"the model puts out {found} for {which}"
