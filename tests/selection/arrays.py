"""Both kinds of arrays that rules work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

Make = Callable[[Any], Any]


def numpy_array(values: Any) -> Any:
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def torch_tensor(values: Any) -> Any:
    return torch.from_numpy(numpy_array(values).copy())


both = pytest.mark.parametrize("make", [numpy_array, torch_tensor], ids=["numpy", "torch"])


def close(actual: Any, wanted: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(wanted), rtol=tolerance, atol=tolerance)
