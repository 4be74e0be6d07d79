"""The feedback store as one named Ray actor per folder, for every job of a cluster that asks.

Training sends a confusion matrix per epoch, selection reads the thresholds; both see versioned snapshots only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.feedback.config import PARTS, FeedbackPart
from ray_fer.feedback.state import Snapshot
from ray_fer.feedback.store import FeedbackStore

NAMESPACE = "ray-fer"


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class FeedbackActor(FeedbackStore):
    """`FeedbackStore` as an actor; a restart reads the versions back."""


def get_feedback_actor(uri: str, classes: Sequence[str], parts: Sequence[FeedbackPart] = PARTS) -> Any:
    """Returns the cluster's actor for ``uri`` and starts it if there is none; it lives while a job that holds it does.

    Only the start reads the versions.

    Raises:
        UserError: ``uri`` holds the state of other classes or parts, or a damaged one.
    """
    uri = storage.normalise(uri)
    name = "feedback-" + hashlib.sha256(uri.encode()).hexdigest()[:16]
    try:
        actor: Any = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        FeedbackStore(uri, classes, parts)  # raises a message that is clearer than that of an actor that fails to start
        options = FeedbackActor.options(name=name, namespace=NAMESPACE, get_if_exists=True)  # type: ignore[attr-defined]
        actor = options.remote(uri, tuple(classes), tuple(parts))
    answer: Any = actor.mismatch.remote(tuple(classes), tuple(parts))
    if problem := ray.get(answer):
        raise UserError(problem)
    return actor


def update(actor: Any, confusion: Any, source: str, **evidence: Any) -> Snapshot:
    """Calls `FeedbackStore.update` on the actor and raises its `UserError` as one line, without Ray's traceback."""
    try:
        answer: Snapshot = ray.get(actor.update.remote(confusion, source, **evidence))
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    return answer
