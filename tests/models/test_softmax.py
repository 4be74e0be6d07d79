from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from ray_fer.models.softmax import softmax


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (3, 5), elements={"min_value": -10000, "max_value": 10000}))
def test_softmax(logits: np.ndarray) -> None:
    kept = logits.copy()
    probs = softmax(logits)
    assert probs.dtype == np.float32
    assert (logits == kept).all()
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(softmax(logits.astype(np.float64) - 7), probs, atol=1e-6)
    assert (np.take_along_axis(probs, logits.argmax(axis=1)[:, None], axis=1)[:, 0] == probs.max(axis=1)).all()


def test_softmax_by_hand() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]], rtol=1e-6)
    assert softmax(np.empty((0, 3), np.float32)).shape == (0, 3)
