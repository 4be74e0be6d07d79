"""The embeddings of a table: the features that teachers kept beside their predictions (``embed=true``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
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
    """The pictures whose newest usable rows, as `newest_predictions` finds them, have an embedding of every model.

    Of one model, to iterate gives `Block` after `Block`, in the order of the table's files, and may be done several
    times. Of several, whose rows lie in different orders, `write` puts them side by side. Both hold one block at a time
    and what reads ahead of it.

    Args:
        table: the predictions.
        models: one id or several.
        excluded: pictures to leave out.
        also: ids of further models that must have predicted the pictures; they need no embeddings.
        copies: as `newest_predictions` takes it.

    Attributes:
        dimensions: D of each of ``models``.
        dimension: their sum.
        left_out: as `newest_predictions` tells, and how many are ``without_embedding``.

    Raises:
        UserError: the table has no embedding of one of the models, or some of several dimensions.
    """

    def __init__(
        self,
        table: DeltaTable,
        models: str | Sequence[str],
        excluded: Exclusions = NOTHING,
        also: Sequence[str] = (),
        copies: bool = False,
    ) -> None:
        names = [models] if isinstance(models, str) else list(models)
        self.dimensions = [_dimension(table, model) for model in names]
        self.dimension = sum(self.dimensions)
        predictions, self.left_out = newest_predictions(table, [*names, *also], excluded, copies)
        usable = np.ones(len(predictions), bool)
        for number, (model, dimension) in enumerate(zip(names, self.dimensions, strict=True)):
            sizes = np.zeros(len(predictions), np.int32)
            for places, rows in predictions.batches(number, "embedding_size"):
                sizes[places] = rows["embedding_size"].fill_null(0).to_numpy()
            if others := set(sizes[sizes > 0].tolist()) - {dimension}:
                what = f"embeddings of {others.pop()} and of {dimension} numbers of model {model}"
                raise UserError(f"table={place_of(table)}: {what}")
            usable &= sizes > 0
        self._classes = len(table_classes(table))
        self._predictions = predictions.take(np.flatnonzero(usable))
        self.left_out["without_embedding"] = len(predictions) - len(self)

    def __len__(self) -> int:
        return len(self._predictions)

    def __iter__(self) -> Iterator[Block]:
        if len(self.dimensions) > 1:
            raise ValueError("blocks are of one model")
        for _, rows in self._predictions.columns("uri", "probs", "embedding", at_once=BLOCK_ROWS):
            vectors = _vectors(rows["embedding"], self.dimension)
            yield Block(rows["uri"].to_list(), rows["probs"].list.to_array(self._classes).to_numpy(), vectors)

    def uris(self) -> pl.Series:
        """URIs of the N pictures, in the order of `write` and `probs`."""
        return pl.concat([part for _, part in self._predictions.column("uri")] or [pl.Series(dtype=pl.String)])

    def probs(self, number: int) -> npt.NDArray[np.float32]:
        """Probabilities float32 (N, K) of the model with the given number among ``models`` and then ``also``."""
        return self._predictions.probs(number, self._classes)

    def write(self, file: Path) -> npt.NDArray[np.float16]:
        """Writes the embeddings of all models side by side to a file, 2 bytes a number, and maps it.

        Returns:
            float16 (N, D), memory-mapped, read-only.

        Raises:
            UserError: if there is no picture, or a number is not finite.
        """
        table = place_of(self._predictions.table)
        if not len(self):
            raise UserError(f"table={table}: no picture has an embedding of every model; left out: {self.left_out}")
        shape, first = (len(self), self.dimension), 0
        kept = np.memmap(file, np.float16, mode="w+", shape=shape)
        for number, dimension in enumerate(self.dimensions):
            for places, rows in self._predictions.batches(number, "uri", "embedding", at_once=BLOCK_ROWS):
                vectors = _vectors(rows["embedding"], dimension)
                if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
                    raise UserError(f"table={table}: the embedding of {rows['uri'][int(bad[0])]} is not finite")
                kept[places, first : first + dimension] = vectors
            first += dimension
        kept.flush()
        return np.memmap(file, np.float16, mode="r", shape=shape)


def _dimension(table: DeltaTable, model: str) -> int:
    facts = table_embedding(table, model)
    if facts is None:
        raise UserError(f"table={place_of(table)}: no embeddings of model {model}; pseudo_label embed=true makes them")
    return int(facts["dimension"])


def _vectors(values: pl.Series, dimension: int) -> npt.NDArray[np.float16]:
    return np.frombuffer(b"".join(values.to_list()), "<f2").reshape(len(values), dimension)
