"""The embeddings of a table, in blocks: the features that a teacher kept beside its predictions (``embed=true``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from deltalake import DeltaTable

from ray_fer.errors import UserError
from ray_fer.labeling.exclusions import Exclusions
from ray_fer.labeling.predictions import newest_predictions
from ray_fer.labeling.table import place_of, table_classes, table_embedding

BLOCK_ROWS = 1 << 13
NOTHING = Exclusions()


@dataclass(frozen=True, eq=False)
class Block:
    """B pictures.

    Attributes:
        uris: of each.
        probs: float32 (B, K), in the order of the table's classes.
        embeddings: float16 (B, D).
    """

    uris: list[str]
    probs: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float16]


class Embeddings:
    """The pictures whose newest usable row, as `newest_predictions` finds it, has an embedding of ``model``.

    To iterate gives `Block` after `Block`, in the order of the table's files, and may be done several times; it holds
    one block at a time and what reads ahead of it.

    Args:
        table: the predictions.
        model: an id.
        excluded: pictures to leave out.

    Attributes:
        dimension: D.
        left_out: as `newest_predictions` tells, and how many are ``without_embedding``.

    Raises:
        UserError: the table has no embedding of the model, or some of several dimensions.
    """

    def __init__(self, table: DeltaTable, model: str, excluded: Exclusions = NOTHING) -> None:
        facts = table_embedding(table, model)
        if facts is None:
            raise UserError(
                f"table={place_of(table)}: no embeddings of model {model}; pseudo_label embed=true makes them"
            )
        self.dimension = int(facts["dimension"])
        predictions, self.left_out = newest_predictions(table, [model], excluded)
        sizes = np.zeros(len(predictions), np.int32)
        for places, held in predictions.column("embedding_size"):
            sizes[places] = held.fill_null(0).to_numpy()
        if others := set(sizes[sizes > 0].tolist()) - {self.dimension}:
            what = f"embeddings of {others.pop()} and of {self.dimension} numbers of model {model}"
            raise UserError(f"table={place_of(table)}: {what}")
        self._classes = len(table_classes(table))
        self._predictions = predictions.take(np.flatnonzero(sizes))
        self.left_out["without_embedding"] = len(predictions) - len(self)

    def __len__(self) -> int:
        return len(self._predictions)

    def __iter__(self) -> Iterator[Block]:
        for _, rows in self._predictions.columns("uri", "probs", "embedding", at_once=BLOCK_ROWS):
            vectors = np.frombuffer(b"".join(rows["embedding"].to_list()), "<f2").reshape(len(rows), self.dimension)
            yield Block(rows["uri"].to_list(), rows["probs"].list.to_array(self._classes).to_numpy(), vectors)
