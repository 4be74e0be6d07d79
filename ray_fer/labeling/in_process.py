"""A little work is done in the driver's own process: Ray alone takes several times as long to start.

That is so where Ray would be started for this job and would find no GPU, and the config does not ask for workers.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray_fer import cluster
from ray_fer.labeling.dispatch import Dispatcher
from ray_fer.labeling.work import UnitResult, WorkUnit
from ray_fer.labeling.worker import Labeller, Plan

FEW_IMAGES = 512
# A listing that goes on for longer is that of a large bucket, for which Ray's start does not matter.
PATIENCE_SECONDS = 10.0


def may_label_here(plan: Plan) -> bool:
    """Whether this process may do what Ray's workers do."""
    return plan.device == "cpu" and plan.config.workers is None and cluster.is_local()


def label_few(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
    """Labels everything that ``dispatcher`` has as one unit, if it is little; else yields nothing.

    Raises:
        UserError: when a teacher cannot be loaded, or the table cannot be written.
    """
    keys = dispatcher.take_few(min(FEW_IMAGES, plan.unit_rows), PATIENCE_SECONDS)
    if keys is not None:
        # Isolated, for nobody would be left to tell which object has killed this process.
        result = Labeller(plan).label(WorkUnit(0, keys), isolated=True)
        dispatcher.finished(0, result.images, result.seconds)
        yield result
