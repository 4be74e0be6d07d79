"""Logits to probabilities, without torch: the drivers that need it would wait seconds for the import."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Probabilities float32 (B, K), computed in float64 so that rows sum to one to the last bit of float32."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    e = np.exp(z)
    return np.asarray(e / e.sum(axis=1, keepdims=True), np.float32)
