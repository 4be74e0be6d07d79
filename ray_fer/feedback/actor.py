"""The feedback actor: one place that remembers what the students' validations taught, for every job that asks.

A named Ray actor around the pure `formulas`. Training sends a confusion matrix per epoch, selection reads the
thresholds; both only see versioned snapshots. Every version is a JSON file under the actor's URI, written before the
update is answered, so that the state outlives the actor, the cluster and the loop, and any tool can read its history.

Guarantees: an update with a `source` seen before changes nothing and answers with the snapshot that it made the first
time, so a retried or resumed epoch neither counts twice nor sees another state. An update names the version that its
model was trained under; if a newer one was made since, it says nothing about that and changes nothing. So a late matrix
delays the feedback and never doubles it. One cluster has one actor per URI; two clusters writing the same URI at once
are not detected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import ray
from numpy.typing import ArrayLike

from ray_fer import storage
from ray_fer.config import FeedbackPart
from ray_fer.errors import UserError
from ray_fer.evaluation.metrics import macro_f1
from ray_fer.feedback.formulas import (
    FeedbackConfig,
    FeedbackState,
    Snapshot,
    feedback,
    initial_state,
    snapshot,
)
from ray_fer.feedback.history import Document, file_name, read_history

PARTS: tuple[FeedbackPart, ...] = get_args(FeedbackPart)
NAMESPACE = "ray-fer"


class FeedbackStore:
    """The state behind the actor, and the actor's whole behaviour without Ray.

    Args:
        uri: folder of the versions, local or ``s3://``.
        classes: names in the order of the confusion matrices.
        parts: which factors the updates move; the others stay neutral.

    Raises:
        UserError: when ``uri`` holds the state of other classes or parts, or a damaged one.
    """

    def __init__(self, uri: str, classes: Sequence[str], parts: Sequence[FeedbackPart] = PARTS) -> None:
        self.uri = storage.normalise(uri)
        self.classes = tuple(classes)
        self.config = FeedbackConfig(**{part: part in parts for part in PARTS})
        self._parts = [part for part in PARTS if part in parts]
        self._documents = read_history(self.uri, self.classes)
        for document in self._documents:
            made_with = document.get("parts", list(PARTS))
            if made_with != self._parts:
                theirs, ours = ", ".join(made_with), ", ".join(self._parts)
                raise UserError(f"feedback={uri}: it was made with feedback_parts=[{theirs}], not [{ours}]")

    def update(
        self,
        confusion: ArrayLike,
        source: str,
        trained_under: int | None = None,
        q_hat: ArrayLike | None = None,
        accepted_share: float | None = None,
        prior_helps: bool = True,
    ) -> Snapshot:
        """Applies one validation and returns the snapshot that follows from it.

        Args:
            confusion: validation counts (K, K), rows true, columns predicted.
            source: the run and what of it was validated, for example ``student-12ab/epoch-3``; applied once.
            trained_under: version under which the validated model was trained, None for whichever is the newest. If it
                is no longer the newest, nothing changes and the answer is the newest.
            q_hat: class shares of the predictions on unlabelled images, (K,).
            accepted_share: share of the unlabelled images that became pseudo-labels.
            prior_helps: see `feedback`.

        Raises:
            UserError: when there is no version ``trained_under``.
        """
        for document in self._documents:
            if document["source"] == source:
                return _snapshot(document)
        state = self._state(source)
        if trained_under is not None and trained_under != state.version:
            _find(self.uri, self.classes, self._documents, trained_under)
            return self.snapshot()
        following = feedback(
            confusion, q_hat, state, self.config, accepted_share=accepted_share, prior_helps=prior_helps
        )
        if following is state:  # the formulas do not trust this matrix
            return self.snapshot()
        counts = np.asarray(confusion, dtype=np.float64)
        document = {
            "version": following.version,
            "source": source,
            "classes": list(self.classes),
            "parts": self._parts,
            "macro_f1": macro_f1(counts) if counts.any() else None,
            "confusion_matrix": counts.tolist(),
            "q_hat": None if q_hat is None else np.asarray(q_hat, dtype=np.float64).tolist(),
            "accepted_share": accepted_share,
            "prior_helps": prior_helps,
            "state": following.to_json(),
        }
        storage.write_json(storage.join(self.uri, file_name(following.version)), document)
        self._documents.append(document)
        return _snapshot(document)

    def snapshot(self, version: int | None = None) -> Snapshot:
        """Returns the factors of one version; None is the newest, which is the neutral 0 before the first update.

        Raises:
            UserError: when there is no such version.
        """
        return _snapshot(_find(self.uri, self.classes, self._documents, version))

    def history(self) -> list[Document]:
        """Every version as it is stored, oldest first."""
        return list(self._documents)

    def _state(self, source: str) -> FeedbackState:
        if not self._documents:
            return initial_state(len(self.classes), self.config)
        last = self._documents[-1]
        state = FeedbackState.from_json(last["state"])
        if _run_of(source) == _run_of(last["source"]):
            return state
        # Only epochs of one run are compared: a student's first is no loss against its teacher's best.
        return replace(state, best_macro_f1=None, worse_rounds=0)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class FeedbackActor(FeedbackStore):
    """`FeedbackStore` as an actor; a restart reads the versions back."""


def get_feedback_actor(uri: str, classes: Sequence[str], parts: Sequence[FeedbackPart] = PARTS) -> Any:
    """The cluster's actor for ``uri``, started if there is none; it lives while a job that holds it does.

    Raises:
        UserError: when ``uri`` holds the state of other classes or parts, or a damaged one.
    """
    uri = storage.normalise(uri)
    FeedbackStore(uri, classes, parts)  # an actor that fails to start says it worse
    name = "feedback-" + hashlib.sha256(uri.encode()).hexdigest()[:16]
    return FeedbackActor.options(  # type: ignore[attr-defined]
        name=name, namespace=NAMESPACE, get_if_exists=True
    ).remote(uri, tuple(classes), tuple(parts))


def load_snapshot(uri: str, classes: Sequence[str], version: int | None = None) -> Snapshot:
    """The factors of one version, read from storage without an actor.

    Args:
        uri: folder of the versions; an empty or absent one is the neutral version 0.
        classes: names in the order that the factors shall have.
        version: None is the newest.

    Raises:
        UserError: when the state is of other classes or damaged, or has no such version.
    """
    uri = storage.normalise(uri)
    return _snapshot(_find(uri, tuple(classes), read_history(uri, classes), version))


def _find(uri: str, classes: tuple[str, ...], documents: list[Document], version: int | None) -> Document:
    newest = documents[-1]["version"] if documents else 0
    if version is None:
        version = newest
    if version == 0:
        return {"state": initial_state(len(classes)).to_json()}
    for document in documents:
        if document["version"] == version:
            return document
    raise UserError(f"feedback={uri}: no version {version} there (newest: {newest})")


def _snapshot(document: Document) -> Snapshot:
    return snapshot(FeedbackState.from_json(document["state"]))


def _run_of(source: str) -> str:
    return source.partition("/")[0]
