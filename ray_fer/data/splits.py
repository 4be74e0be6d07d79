"""A validation set in two halves, so that no model is chosen on the rows that it was fitted to.

Feedback and temperature are fitted to the rows that they see, epoch after epoch. So they see the *feedback* half alone,
and the choice of epoch and teacher sees the *choice* half alone.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from ray_fer.data.manifests import Manifest
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError


def feedback_half(manifest: Manifest) -> NDArray[np.bool_]:
    """Which rows are the feedback half, bool (N,); the others are the choice half. The algorithm is ray-fer's own.

    Rows that share a picture, subject, group or video are a cluster, and a cluster is in one half. From the weightiest
    cluster to the lightest, each goes where its classes are rarer so far, a class of n examples counting 1/n²; the hash
    of its name breaks ties. So the halves of a class differ by no more than its clusters force, and by one where rows
    stand alone. The result depends neither on the order of the rows nor on the folder they lie in.

    Args:
        manifest: every row labelled.

    Raises:
        UserError: when all rows are of one cluster.
    """
    clusters = clusters_of(manifest)
    if len(clusters) < 2:
        raise UserError(
            "val: all pictures are of one subject, group or video, so they cannot be cut into a half for feedback and "
            "temperature and one that chooses the model; give feedback_val"
        )
    weights = 1.0 / np.maximum(manifest.counts(), 1) ** 2.0
    names = _relative(manifest.uris)
    queue = []
    for rows in clusters:
        counts = np.bincount(manifest.labels[rows], minlength=len(weights))
        key = xxhash.xxh3_64_intdigest(min(names[row] for row in rows).encode())
        queue.append((-float(counts**2 @ weights), key, rows, counts))
    queue.sort(key=lambda cluster: cluster[:2])
    surplus = np.zeros(len(weights))  # of the feedback half, per class
    chosen = np.zeros(len(manifest), bool)
    for _, key, rows, counts in queue:
        lean = float((surplus * counts) @ weights)
        feedback = lean < 0 or (lean == 0 and key % 2 == 0)
        surplus += counts if feedback else -counts
        chosen[rows] = feedback
    return chosen


def join_validation(choice: Manifest, feedback: Manifest) -> tuple[Manifest, NDArray[np.bool_]]:
    """Two sets as one, without subjects, groups and videos; and which rows are of the feedback set, bool (N,)."""
    labels = np.concatenate([choice.labels, feedback.labels])
    both = Manifest([*choice.uris, *feedback.uris], labels, choice.classes)
    return both, np.arange(len(both)) >= len(choice)


def missing_in_a_half(manifest: Manifest, feedback_rows: NDArray[np.bool_]) -> list[str]:
    """The classes that have examples in one half only.

    Args:
        manifest: every row labelled.
        feedback_rows: bool (N,), of the feedback half.
    """
    halves = [manifest.take(feedback_rows).counts() > 0, manifest.take(~feedback_rows).counts() > 0]
    return [name for name, one, other in zip(manifest.classes, *halves, strict=True) if one != other]


def clusters_of(manifest: Manifest) -> list[list[int]]:
    """The rows of each cluster, which a shared picture, subject, group or video connects."""
    parent = list(range(len(manifest)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    pictures = [split_face(uri)[0] for uri in manifest.uris]
    for column in (pictures, manifest.subjects, manifest.groups, manifest.videos):
        first: dict[str, int] = {}
        for row, name in enumerate(column or ()):
            if name:
                parent[root(row)] = root(first.setdefault(name, row))
    clusters: dict[int, list[int]] = {}
    for row in range(len(manifest)):
        clusters.setdefault(root(row), []).append(row)
    return list(clusters.values())


def _relative(uris: list[str]) -> list[str]:
    """The URIs without what all of them begin with, so that a set keeps its halves when its folder moves."""
    first, last = min(uris), max(uris)
    differ = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    common = len(first[:differ].rpartition("/")[0])
    return [uri[common:] for uri in uris]
