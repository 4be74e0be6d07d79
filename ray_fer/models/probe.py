"""A check of a net's outputs on varied pictures, before the net labels millions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ray_fer.data.decode import Pixels
from ray_fer.errors import UserError
from ray_fer.models.softmax import softmax, why_not_finite

if TYPE_CHECKING:
    from ray_fer.models.sidecar import OnnxSidecar

Floats = npt.NDArray[np.float32]

# The step of a probability in eight bits. K rounded ones sum to 1 up to K/2 steps, or K if a library rounds down.
_STEP = 1 / 256


def probe_pictures(side: int) -> Pixels:
    """Eight pictures uint8 (8, side, side, 3): black, white, two gradients, blots, noise, a dim and a bright one."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 255, side)
    across, down = np.broadcast_to(slope, (side, side)), np.broadcast_to(slope[:, None], (side, side))
    blots = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((-(-side // 4), -(-side // 4), 1)))[:side, :side]
    noise = rng.integers(0, 256, (side, side, 3))
    return np.stack(
        [
            np.zeros((side, side, 3)),
            np.stack([across, down, 255 - across], axis=2),
            np.full((side, side, 3), 255),
            blots,
            blots[::-1] / 4,
            noise,
            np.stack([255 - down, across / 2, down], axis=2),
            255 - noise / 4,
        ]
    ).astype(np.uint8)


def check_outputs(engine: Callable[[Pixels], Floats], sidecar: OnnxSidecar, uri: str, sidecar_uri: str) -> None:
    """Runs a net on `probe_pictures` and checks its outputs.

    Args:
        engine: Maps uint8 (B, S, S, 3) to the net's own outputs (B, M).
        sidecar: The description of the net.
        uri: The URI of the net, for messages.
        sidecar_uri: The URI of the sidecar, for messages.

    Raises:
        UserError: If the outputs contradict the sidecar, are not finite for any picture, or change from call to call.
    """
    pictures = probe_pictures(sidecar.image_size)
    raw = engine(pictures)
    if raw.shape != (len(pictures), len(sidecar.classes)):
        raise UserError(f"{sidecar_uri}: classes: {len(sidecar.classes)} names: {uri} puts out {raw.shape[1:]} numbers")
    if np.isnan(softmax(raw)).all():
        raise UserError(f"{uri}: {why_not_finite(raw[-1], sidecar.classes)}, whatever the picture")
    if not np.allclose(raw, engine(pictures), rtol=1e-2, atol=1e-3, equal_nan=True):
        raise UserError(f"{uri}: puts out something else for the same pictures: it seems to be in training mode")
    finite = raw[np.isfinite(raw).all(axis=1)]
    said = f"{sidecar_uri}: output: {sidecar.output}: by what {uri} puts out, they are"
    total = share_of(finite)
    if sidecar.output == "probabilities" and total != 1:
        sums = finite.sum(axis=1)
        low, high = (f"{sum_:.4g}" for sum_ in (sums.min(initial=np.inf), sums.max(initial=-np.inf)))
        raise UserError(
            f"{said} not probabilities but numbers from {finite.min():.4g} on with sums from {low} to {high}"
        )
    if sidecar.output == "logits" and total == 1:
        raise UserError(f"{said} probabilities")
    if sidecar.output == "logits" and total is not None:
        raise UserError(f"{said} neither logits nor probabilities but shares of {total:.4g}")


def share_of(raw: Floats) -> float | None:
    """The common sum of the outputs (B, K) of every picture: 1 for probabilities, even in eight bits, else None.

    A net may also put out shares of another sum, such as 100.
    """
    if not len(raw):
        return None
    sums = raw.sum(axis=1, dtype=np.float64)
    tolerance = raw.shape[1] * _STEP
    if raw.min() >= -_STEP and (np.abs(sums - 1) <= tolerance).all():
        return 1.0
    mean = float(sums.mean())
    # Equal sums mean nothing if the net puts out the same for every picture.
    varied = float(np.ptp(raw, axis=0).max()) > tolerance * abs(mean)
    if mean > 0 and varied and raw.min() >= -_STEP * mean and (np.abs(sums / mean - 1) <= tolerance).all():
        return mean
    return None
