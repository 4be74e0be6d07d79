"""Both kinds of arrays that rules work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ray_fer.selection import CONCATENATED, Accepted, Measured, Rule, SelectionContext, State

Make = Callable[[Any], Any]


def numpy_array(values: Any) -> Any:
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def torch_tensor(values: Any) -> Any:
    return torch.from_numpy(numpy_array(values).copy())


both = pytest.mark.parametrize("make", [numpy_array, torch_tensor], ids=["numpy", "torch"])


def close(actual: Any, wanted: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(wanted), rtol=tolerance, atol=tolerance)


def combine(parts: list[Measured]) -> Measured:
    """What several workers have measured together."""
    together: Measured = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name in CONCATENATED:
            together[name] = torch.cat(arrays) if isinstance(arrays[0], torch.Tensor) else np.concatenate(arrays)
        else:
            together[name] = sum(arrays[1:], start=arrays[0])
    return together


def online_step(
    rule: Rule, state: State, probs: Any, known: SelectionContext, momentum: float, rows: Any = None
) -> tuple[Accepted, State]:
    """What a training step accepts, and the state after it, in the order that the rule asks for."""
    after = rule.update(state, rule.measure(probs, state, rows), momentum)
    return rule.accept(probs, after if rule.update_first else state, known), after
