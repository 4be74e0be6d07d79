from collections import Counter

import numpy as np
import pytest

from ray_fer.data.stream import stream_order


@pytest.mark.parametrize("start", [0, 3, 10, 25])
def test_the_sequence_of_shuffles_is_one(start: int) -> None:
    whole = stream_order(10, 0, 60, seed=1)
    assert stream_order(10, start, 17, seed=1).tolist() == whole[start : start + 17].tolist()
    assert Counter(whole.tolist()) == dict.fromkeys(range(10), 6)
    assert not np.array_equal(whole[:10], whole[10:20])
    assert not np.array_equal(whole, stream_order(10, 0, 60, seed=2))
