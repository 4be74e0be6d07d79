from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ray_fer.errors import UserError
from ray_fer.models.weights import check_finite, check_safetensors

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_named(kind: type) -> None:
    fine = ("conv.weight", np.ones((2, 3), kind))
    for value, found in ((NAN, "1 of 4 numbers of fc.weight are NaN"), (INF, "1 of 4 numbers of fc.weight are inf")):
        with pytest.raises(UserError, match=f"^w.pth: its weights are broken: {found}"):
            check_finite("w.pth", [fine, ("fc.weight", np.array([1, value, 2, 3], kind))])
    check_finite("w.pth", [fine, ("empty", np.empty((0, 3), kind)), ("largest", np.full(9, ml_dtypes.finfo(kind).max))])


def test_masks_bounds_and_integers_are_no_broken_weights() -> None:
    mask = np.array([[0, -INF], [0, 0]], np.float32)
    check_finite("w", [("mask", mask), ("bound", np.array(INF)), ("counts", np.array([7])), ("flags", mask == 0)])
    with pytest.raises(UserError, match="bound are NaN"):
        check_finite("w", [("bound", np.array(NAN))])


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.float16)}, path)
    check_safetensors("the/uri", path)
    save_file({"a": torch.ones(3), "b": torch.tensor([1, NAN], dtype=torch.bfloat16)}, path)
    with pytest.raises(UserError, match=r"^the/uri: its weights are broken: 1 of 2 numbers of b are NaN$"):
        check_safetensors("the/uri", path)
    for data in (b"", b"no weights", path.read_bytes()[:-3], (1 << 60).to_bytes(8, "little") + b"{}"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"^the/uri: cannot be read \("):
            check_safetensors("the/uri", path)
