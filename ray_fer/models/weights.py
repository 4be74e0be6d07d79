"""A check that all weights of a net are finite, because one NaN makes every prediction NaN.

The check reads every weight once, which takes 20 ms for 100 MB, less than hashing them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - this registers bfloat16 with numpy
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ray_fer.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

Tensors = Iterable[tuple[str, npt.NDArray[Any]]]


def check_finite(what: str, tensors: Tensors) -> None:
    """Checks tensors for NaN and infinity.

    Minus infinity is allowed, because it occurs in masks, and so is an infinite tensor of one number, which is a bound.

    Args:
        what: The file, for the message.
        tensors: Names and arrays; arrays that are not of floating point numbers count as finite.

    Raises:
        UserError: If a tensor is not finite; the message names the first one.
    """
    for name, values in tensors:
        # The formats of ml_dtypes are of kind V.
        if values.dtype.kind not in "fV" or np.isfinite(values).all():
            continue
        nans = int(np.isnan(values).sum())
        if nans or (values.size > 1 and bool((values == np.inf).any())):
            found = "NaN" if nans else "infinite"
            count = nans or int(np.isinf(values).sum())
            raise UserError(f"{what}: its weights are broken: {count} of {values.size} numbers of {name} are {found}")


def check_safetensors(uri: str, path: Path) -> None:
    """Checks that ``path``, a copy of ``uri``, is a .safetensors file of finite numbers.

    Raises:
        UserError: If it is not; the message names ``uri`` and the tensor.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            check_finite(uri, ((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{uri}: cannot be read ({one_line(error)})") from None


def state_of(model: torch.nn.Module) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The names and values of the weights and buffers of a model on the CPU, as `check_finite` takes them."""
    for name, values in model.state_dict().items():
        yield name, (values.float() if values.is_floating_point() else values).numpy()
