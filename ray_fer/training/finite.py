"""What happens when a loss or a gradient is not finite: the run stops, or the step is left out on every rank.

A NaN in one picture, or in one rank's arithmetic, is in all weights one step later, and in the averaged weights, the
optimiser's moments and BatchNorm's statistics for good. So a loss is looked at before its backward pass, by all ranks
together: what one leaves out, all leave out, or they would wait for each other's gradients.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.training.world import World

log = logging.getLogger(__name__)

OnBadLoss = Literal["stop", "skip"]
_ALLOWED, _ALLOWED_SHARE = 10, 0.01
_NAMED = 8


class FiniteGuard:
    """Decides over steps that are not finite, the same on every rank.

    Args:
        world: the ranks.
        steps_per_epoch: of the method.
        on_bad: ``stop`` or ``skip``.
        skipped: steps left out in the run so far.
        folder: where the pictures of such a step are listed, in ``not_finite/epoch-N-step-N.json``, when they are too
            many for a message; None: the message names them all.

    Attributes:
        skipped: counted on. A run may leave out ten steps, or 1 % of an epoch's where that is more.
    """

    def __init__(
        self,
        world: World,
        steps_per_epoch: int,
        on_bad: OnBadLoss = "stop",
        skipped: int = 0,
        folder: str | None = None,
    ) -> None:
        self.world, self.on_bad, self.skipped, self.folder = world, on_bad, skipped, folder
        self._allowed = max(_ALLOWED, int(_ALLOWED_SHARE * steps_per_epoch))

    def finite(self, loss: torch.Tensor) -> bool:
        """Whether ``loss``, a scalar, is finite on every rank; every rank has to ask."""
        return self.world.all(torch.isfinite(loss.detach()))

    def bad_loss(self, loss: torch.Tensor, epoch: int, step: int, uris: list[str]) -> None:
        """Counts and logs a step that is left out because of its loss; every rank has to call it.

        Args:
            loss: this rank's.
            epoch: counts from 0.
            step: of the epoch, counts from 0.
            uris: this rank's pictures in it.

        Raises:
            UserError: when steps are not to be left out, or too many have been; it names the pictures concerned, or
                the first of them and the file with all.
        """
        losses = self.world.gather(float(loss.detach()))
        value = next(loss for loss in losses if not math.isfinite(loss))
        self._leave_out(f"the loss became {value}", epoch, step, [] if torch.isfinite(loss) else uris)

    def bad_gradient(self, epoch: int, step: int, uris: list[str]) -> None:
        """Likewise because of its gradients, which come from all ranks."""
        self._leave_out("the gradient is not finite", epoch, step, uris)

    def _leave_out(self, what: str, epoch: int, step: int, uris: list[str]) -> None:
        named = [uri for part in self.world.gather(uris) for uri in part]
        message = f"{what} in epoch {epoch + 1}, step {step + 1}"
        pictures = ", ".join(named)
        if self.folder is not None and len(named) > _NAMED:
            file = storage.join(self.folder, "not_finite", f"epoch-{epoch + 1}-step-{step + 1}.json")
            if self.world.rank == 0:
                storage.write_json(file, {"what": message, "pictures": named})
            self.world.broadcast(None)  # a rank that raises ends the others: not before the file is there
            pictures = f"{', '.join(named[:_NAMED])} and {len(named) - _NAMED} more, all of them in {file}"
        advice = f"lower learning_rate, or look at the pictures of that step: {pictures}"
        if self.on_bad == "stop":
            raise UserError(f"{message}: {advice}")
        self.skipped += 1
        if self.skipped > self._allowed:
            raise UserError(f"{message}, and more than {self._allowed} steps have been left out for that: {advice}")
        log.warning("%s and is left out; its pictures: %s", message, pictures)
