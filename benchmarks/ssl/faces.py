"""FER+ crops as arrays, cut into the sets of the benchmark.

Everything is cut by near-duplicate group, so that no face and its double are on two sides:

* ``labeled``: the labelled role, or a class-wise share of it for smaller budgets;
* ``val``, in two halves: one drives feedback and calibration, the other (``choice``) is what settings were chosen on;
* ``heldout``: a sixth of the unlabeled role whose label is known, which no method trains on in any way: the larger and
  untouched set that results are reported on;
* ``unlabeled``: the rest of that role. Its labels only ever measure the pseudo-labels.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from ray_fer.expressions import SEVEN
from ray_fer.methods.batch import Faces, Indices

HELDOUT_SHARE = 1 / 6
_BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True, eq=False)
class Table:
    """The whole file: uint8 (N, S, S), int64 (N,) with -1 for none of the seven, and two columns of names."""

    images: NDArray[np.uint8]
    labels: Indices
    roles: NDArray[np.str_]
    groups: Sequence[str]


@dataclass(frozen=True, eq=False)
class Sets:
    """See the module. All have labels; those of ``unlabeled`` are for measuring."""

    labeled: Faces
    unlabeled: Faces
    val: Faces
    feedback_rows: NDArray[np.bool_]
    choice: Faces
    heldout: Faces


class TensorImages:
    """Grey pictures (N, S, S) on a device, by index."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def taken(self, rows: Indices) -> TensorImages:
        """Some of them."""
        return TensorImages(self.images[torch.from_numpy(rows).to(self.images.device)])

    @staticmethod
    def joined(*parts: Any) -> TensorImages:
        """One after the other."""
        return TensorImages(torch.cat([part.images for part in parts]))

    def batch(self, indices: Indices) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """uint8 (B, S, S, 3) and that all are readable."""
        pixels = self.images[torch.from_numpy(indices).to(self.images.device)]
        return pixels.unsqueeze(-1).expand(-1, -1, -1, 3), np.ones(len(indices), bool)


def read_table(path: Path, side: int | None = None) -> Table:
    """Reads ``ferplus.parquet``; pictures are enlarged to ``side`` pixels where it is given."""
    table = pq.read_table(path)
    pictures = (Image.open(io.BytesIO(data)) for data in table["image"].to_pylist())
    images = np.stack([np.asarray(each.resize((side, side), _BILINEAR) if side else each) for each in pictures])
    labels = [SEVEN.index(name) if name in SEVEN else -1 for name in table["label"].to_pylist()]
    return Table(images, np.array(labels), np.array(table["role"].to_pylist()), table["group"].to_pylist())


def read_unlabeled(path: Path, size: int) -> NDArray[np.uint8]:
    """The pictures of ``lfw_unlabeled.parquet``, uint8 (N, size, size)."""
    pictures = (Image.open(io.BytesIO(data)) for data in pq.read_table(path)["image"].to_pylist())
    return np.stack([np.asarray(each.convert("L").resize((size, size), Image.Resampling.BOX)) for each in pictures])


@dataclass(frozen=True, eq=False)
class Rows:
    """The sets of one run as rows of the table, int64; ``feedback_rows`` as in `Sets`, bool over ``val``."""

    labeled: Indices
    unlabeled: Indices
    val: Indices
    feedback_rows: NDArray[np.bool_]
    choice: Indices
    heldout: Indices


def cut_rows(labels: Indices, roles: NDArray[np.str_], groups: Sequence[str], budget: float, seed: int) -> Rows:
    """Which rows are in which set.

    Args:
        labels: int64 (N,), -1 for none of the seven.
        roles: (N,), see the data's README.
        groups: N names; no group is on two sides.
        budget: share of the labelled role.
        seed: of that share.
    """
    # crc32 rather than hash(): the same in every process.
    place = np.array([zlib.crc32(group.encode()) / 2**32 for group in groups])
    labelled = np.flatnonzero((roles == "labeled") & (labels >= 0))
    val = (roles == "val") & (labels >= 0)
    pool = roles == "unlabeled"
    return Rows(
        labeled=_share(labels, labelled, budget, seed),
        # No face of a held-out group is trained on, whether it has a label or not.
        unlabeled=np.flatnonzero(pool & (place >= HELDOUT_SHARE)),
        val=np.flatnonzero(val),
        feedback_rows=place[val] < 0.5,
        choice=np.flatnonzero(val & (place >= 0.5)),
        heldout=np.flatnonzero(pool & (labels >= 0) & (place < HELDOUT_SHARE)),
    )


def cut(table: Table, budget: float, seed: int, device: torch.device, more: NDArray[np.uint8] | None = None) -> Sets:
    """The sets of one run.

    Args:
        table: the whole file.
        budget: share of the labelled role.
        seed: of that share.
        device: where the pictures go.
        more: pictures (N, 48, 48) that join the unlabeled ones, of another domain.
    """
    rows = cut_rows(table.labels, table.roles, table.groups, budget, seed)

    def faces(rows: Indices, extra: NDArray[np.uint8] | None = None) -> Faces:
        images, labels = table.images[rows], table.labels[rows]
        if extra is not None:
            images, labels = np.concatenate([images, extra]), np.concatenate([labels, np.full(len(extra), -1)])
        return Faces(
            TensorImages(torch.from_numpy(images).to(device)), [str(row) for row in range(len(images))], labels
        )

    return Sets(
        labeled=faces(rows.labeled),
        unlabeled=faces(rows.unlabeled, more),
        val=faces(rows.val),
        feedback_rows=rows.feedback_rows,
        choice=faces(rows.choice),
        heldout=faces(rows.heldout),
    )


def _share(labels: Indices, rows: Indices, budget: float, seed: int) -> Indices:
    if budget >= 1:
        return rows
    generator = np.random.default_rng(seed)
    kept = []
    for label in np.unique(labels[rows]):
        mine = rows[labels[rows] == label]
        kept.append(generator.permutation(mine)[: max(2, round(budget * len(mine)))])
    return np.sort(np.concatenate(kept))
