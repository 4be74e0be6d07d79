"""The history of the feedback on storage, and the snapshots made from it.

Every version is a JSON file that is written before the update is answered. So the state outlives the process, the
cluster and the loop, and any tool can read its history.

Guarantees: an update with a `source` seen before changes nothing and returns the snapshot that it made the first time,
so a retried or resumed epoch neither counts twice nor sees another state. An update names the version that its model
was trained under; if a newer one was made since, the update changes nothing. So a late matrix delays the feedback and
never doubles it. A version is created only where there is none, so that of two clusters that write to the same folder
one is refused with a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.evaluation.metrics import macro_f1
from ray_fer.feedback.config import PARTS, FeedbackPart
from ray_fer.feedback.controller import next_state
from ray_fer.feedback.history import Document, file_name, read_history
from ray_fer.feedback.state import FeedbackState, Snapshot, initial_state, snapshot


class FeedbackStore:
    """The versions under one folder; they are read once, when the store is made.

    Args:
        uri: folder of the versions, local or ``s3://``.
        classes: names in the order of the confusion matrices.
        parts: which factors the updates move; the others stay neutral.

    Raises:
        UserError: ``uri`` holds the state of other classes or parts, or a damaged one.
    """

    def __init__(self, uri: str, classes: Sequence[str], parts: Sequence[FeedbackPart] = PARTS) -> None:
        self.uri = storage.normalise(uri)
        self.classes = tuple(classes)
        self.parts = [part for part in PARTS if part in parts]
        self._documents = read_history(self.uri, self.classes)
        for document in self._documents:
            if problem := self._other_parts(document.get("parts", list(PARTS)), self.parts):
                raise UserError(problem)

    def mismatch(self, classes: Sequence[str], parts: Sequence[FeedbackPart]) -> str | None:
        """Returns the message for a user whose classes or parts are not this store's, None where they are the same."""
        if tuple(classes) != self.classes:
            return f"feedback={self.uri}: it is about the classes {', '.join(self.classes)}, not {', '.join(classes)}"
        return self._other_parts(self.parts, [part for part in PARTS if part in parts])

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
            source: the run and the part of it that was validated, for example ``student-12ab/epoch-3``; applied once.
            trained_under: version under which the validated model was trained, None for whichever is the newest. If it
                is no longer the newest, nothing changes and the newest snapshot is returned.
            q_hat: class shares of the predictions on unlabelled images, (K,).
            accepted_share: share of the unlabelled images that became pseudo-labels.
            prior_helps: see `next_state`.

        Raises:
            UserError: there is no version ``trained_under``, or another process has written the next version.
        """
        for document in self._documents:
            if document["source"] == source:
                return _snapshot(document)
        state = self._state(source)
        if trained_under is not None and trained_under != state.version:
            _find(self.uri, self.classes, self._documents, trained_under)
            return self.snapshot()
        following = next_state(
            confusion, q_hat, state, self.parts, accepted_share=accepted_share, prior_helps=prior_helps
        )
        if following is state:  # the matrix cannot be trusted
            return self.snapshot()
        counts = np.asarray(confusion, dtype=np.float64)
        document = {
            "version": following.version,
            "source": source,
            "classes": list(self.classes),
            "parts": self.parts,
            "macro_f1": macro_f1(counts) if counts.any() else None,
            "confusion_matrix": counts.tolist(),
            "q_hat": None if q_hat is None else np.asarray(q_hat, dtype=np.float64).tolist(),
            "accepted_share": accepted_share,
            "prior_helps": prior_helps,
            "state": following.to_json(),
        }
        self._write(document)
        self._documents.append(document)
        return _snapshot(document)

    def snapshot(self, version: int | None = None) -> Snapshot:
        """Returns the factors of one version; None is the newest, which is the neutral 0 before the first update.

        Raises:
            UserError: there is no such version.
        """
        return _snapshot(_find(self.uri, self.classes, self._documents, version))

    def history(self) -> list[Document]:
        """Returns every version as it is stored, oldest first."""
        return list(self._documents)

    def _other_parts(self, made_with: Sequence[str], parts: Sequence[str]) -> str | None:
        if made_with == parts:
            return None
        theirs, ours = ", ".join(made_with), ", ".join(parts)
        return f"feedback={self.uri}: it was made with feedback_parts=[{theirs}], not [{ours}]"

    def _write(self, document: Document) -> None:
        name = file_name(document["version"])
        place, data = storage.join(self.uri, name), (storage.to_json(document, indent=2) + "\n").encode()
        # A request to S3 may be repeated after its answer was lost; then the file that is there is this one.
        if not storage.create(place, data) and storage.read_bytes(place) != data:
            what = f"another cluster has written {name} since; give each cluster a folder of its own"
            raise UserError(f"feedback={self.uri}: {what}")

    def _state(self, source: str) -> FeedbackState:
        if not self._documents:
            return initial_state(len(self.classes), self.parts)
        last = self._documents[-1]
        state = FeedbackState.from_json(last["state"])
        if _run_of(source) == _run_of(last["source"]):
            return state
        # Only epochs of one run are compared: a student's first is no loss against its teacher's best.
        return replace(state, best_macro_f1=None, worse_rounds=0)


def load_snapshot(uri: str, classes: Sequence[str], version: int | None = None) -> Snapshot:
    """Reads the factors of one version from storage, without an actor.

    Args:
        uri: folder of the versions; an empty or absent one is the neutral version 0.
        classes: names in the order that the factors shall have.
        version: None is the newest.

    Raises:
        UserError: the state is of other classes or damaged, or has no such version.
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
