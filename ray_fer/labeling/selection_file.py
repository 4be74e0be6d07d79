"""The files of a selection: what selecting writes and training reads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.errors import UserError

INFO = "selection.json"
ROWS = "selection.parquet"
SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("label", pa.string()),
        ("target", pa.list_(pa.float32())),
        ("weight", pa.float32()),
        ("confidence", pa.float32()),
    ]
)


@dataclass(frozen=True, eq=False)
class Selection:
    """Pseudo-labels as `select_pseudo_labels` wrote them.

    Attributes:
        uris: M pictures.
        targets: float32 (M, K), rows sum to 1.
        weights: float32 (M,), how often each is drawn, relative to the others.
        info: ``selection.json``.
    """

    uris: Sequence[str]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    info: dict[str, Any]

    @property
    def plain_weights(self) -> NDArray[np.float32]:
        """The weights without the feedback's sampling weights under which the selection was made."""
        earlier = self.info.get("sampling_weights", {})
        per_class = np.array([earlier.get(name, 1.0) for name in self.info["classes"]], np.float32)
        plain: NDArray[np.float32] = self.weights / per_class[self.targets.argmax(axis=1)]
        return plain


def read_selection(uri: str, classes: tuple[str, ...]) -> Selection:
    """Reads the folder ``uri``.

    Raises:
        UserError: when there is no selection, it has other classes, or nothing in it can be drawn.
    """
    try:
        info = storage.read_json(storage.join(uri, INFO))
        data = storage.read_bytes(storage.join(uri, ROWS))
    except FileNotFoundError as error:
        raise UserError(f"pseudo={uri}: no selection there ({error.filename or error} is missing)") from None
    if tuple(info["classes"]) != classes:
        theirs, ours = ", ".join(info["classes"]), ", ".join(classes)
        raise UserError(f"pseudo={uri}: its classes {theirs} are not those of labeled, {ours}")
    table = pq.read_table(io.BytesIO(data), columns=["uri", "target", "weight"])
    weights = table["weight"].to_numpy().astype(np.float32)
    if not weights.any():
        raise UserError(f"pseudo={uri}: the selection is empty")
    matrix = pc.list_flatten(table["target"]).to_numpy().astype(np.float32).reshape(len(weights), len(classes))
    return Selection(table["uri"].to_pylist(), matrix, weights, info)
