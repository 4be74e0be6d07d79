"""What a method is given: the faces, the numbers, the ranks and the start of its model, all in one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ray_fer.feedback.state import Snapshot
from ray_fer.methods.batch import Faces, PseudoLabels, Stream
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.training.world import World


class Feedback(Protocol):
    """What a validation is reported to."""

    def __call__(
        self,
        confusion: NDArray[np.int64],
        epoch: int,
        *,
        trained_under: int,
        prior_helps: bool,
        q_hat: Sequence[float] | None,
        accepted_share: float | None,
    ) -> Snapshot:
        """The factors of the next epoch, from counts (K, K) of the feedback half; see `FeedbackStore.update`."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """What every method is built from on one rank.

    Attributes:
        config: Config of the job, with ``backbone``, ``image_size`` and ``classes`` resolved.
        numbers: An instance of the method's ``Config``.
        classes: K names.
        mean: Of the normalisation, per channel, for pixels in [0, 1].
        std: Standard deviation of the same.
        backbone: Makes the backbone that the run starts from, with a classifier over the classes; the same each time.
        labeled: Faces with a label each.
        val: Faces with a label each.
        feedback_rows: Which rows of ``val`` are the feedback half, bool (N,).
        pseudo: The selected pseudo-labels, if any.
        unlabeled: Faces whose labels are never looked at, the same on every rank.
        stream: From the unlabeled faces per step over all ranks, and the steps of an epoch, to their `Stream`, which
            every rank has to use; or to None where they fit in memory, to be drawn by index.
        world: The ranks.
        feedback: Called on rank 0 after every validation, if feedback is on.
        snapshot: The feedback's factors of the first epoch; None is neutral.
        steps_per_epoch: None stands for as many as it takes to draw as many faces as there are.
    """

    config: TrainBackboneConfig
    numbers: Any
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backbone: Callable[[], torch.nn.Module]
    labeled: Faces
    val: Faces
    feedback_rows: NDArray[np.bool_]
    unlabeled: Faces
    pseudo: PseudoLabels | None = None
    stream: Callable[[int, int], Stream | None] = lambda per_step, steps: None
    world: World = World()  # noqa: RUF009
    feedback: Feedback | None = None
    snapshot: Snapshot | None = None
    steps_per_epoch: int | None = None
