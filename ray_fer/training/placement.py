"""What Ray Train's controller tells the driver about room for the ranks. Without torch: the controller imports it."""

from __future__ import annotations

from typing import Any

from ray_fer.compat.ray import WorkerGroupCallback

PLACED = "placed"


class PlacementTeller(WorkerGroupCallback):
    """Puts (`PLACED`, False) into a queue when ranks are to be placed, and (`PLACED`, True) when all of them are there.

    Args:
        lines: a `ray.util.queue.Queue`.
    """

    def __init__(self, lines: Any) -> None:
        self.lines = lines

    def before_worker_group_start(self, _context: Any) -> None:
        """Called before room is asked for, also after the loss of a rank."""
        self.lines.actor.put_nowait.remote((PLACED, False))

    def after_worker_group_start(self, _group: Any) -> None:
        """Called when every rank has its process."""
        self.lines.actor.put_nowait.remote((PLACED, True))
