"""Converts Pillow's pictures of any mode to 8 bits, and silences its warnings."""

import threading
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_8_bit(image: Image.Image) -> Image.Image:
    """Brings any mode to L, RGB or RGBA; wide integers and floats are scaled, never clipped."""
    if image.mode.startswith("I;16"):
        # The high byte, as Pillow itself takes from 16-bit colour.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return Image.fromarray(_scale_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def _scale_to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Maps 32-bit integers or floats (H, W), which declare no white level, to 8 bits.

    Values that fit 0..1 (floats), 0..255 or 0..65535 (integers) are read as such; all else is stretched from its
    minimum to its maximum.
    """
    integer = values.dtype.kind == "i"
    with np.errstate(invalid="ignore"):  # widening a signalling NaN warns
        levels = np.nan_to_num(values.astype(np.float64), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    if low >= 0 and not integer and high <= 1:
        levels *= 255
    elif low >= 0 and integer and 255 < high <= 65535:
        levels /= 257
    elif low < 0 or high > 255:
        levels -= low
        levels *= 255
        levels /= max(high - low, np.finfo(np.float64).tiny)
    return np.rint(levels, out=levels).clip(0, 255, out=levels).astype(np.uint8)


class _PillowSilence:
    """Ignores Pillow's warnings inside the block, from any number of threads.

    `warnings.catch_warnings` swaps a process-wide list: two threads whose blocks overlap can leave it swapped for
    good. Here the first one in swaps it and the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


pillow_silence = _PillowSilence()
