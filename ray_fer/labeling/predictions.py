"""The predictions of a table that may become pseudo-labels, found by hashes of the rows' keys.

- Of each object, only the newest content counts, with all faces that were found in it. The newest content is the one
  that was labelled last. An object that is overwritten and then restored is not labelled again, so the content in
  between remains its newest one.
- Of several objects with the same content (by digest), only one counts.
- A picture that an excluded manifest names (validation, test, the labelled set) never counts, nor does a copy of it.
- Of several models, only the contents that all of them have predicted count. A model that has not yet predicted an
  overwritten object has nothing to combine with the predictions of the others.

The search takes about 100 bytes of memory per row, and its result takes 8. Two different URIs, identities or digests
are confused with a probability of 2⁻⁶⁴.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from deltalake import DeltaTable

from ray_fer.data.uris import RANGE_PATTERN
from ray_fer.labeling.exclusions import Exclusions
from ray_fer.labeling.table import GONE, MARKERS, NO_FACE, OK, picture_uri, scan_rows
from ray_fer.models.model_id import sees_faces

BATCH_ROWS = 1 << 17
_SEED = 5


@dataclass(frozen=True, eq=False)
class Predictions:
    """M predictions of one or several models, in the order of the first model's rows in the table.

    Attributes:
        table: Predictions table.
        models: Ids of the models.
        rows: For each model the row numbers of the predictions, int64 (M,), counted over all of its rows in the table.
            Those of the first model ascend.
    """

    table: DeltaTable
    models: Sequence[str]
    rows: Sequence[npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.rows[0])

    def take(self, kept: npt.NDArray[np.int64]) -> Predictions:
        """Returns the predictions with the given numbers, int64 (N,) in ascending order."""
        return Predictions(self.table, self.models, [rows[kept] for rows in self.rows])

    def probs(self, number: int, n_classes: int) -> npt.NDArray[np.float32]:
        """Returns the probabilities of the model with the given number for K = ``n_classes``, float32 (M, K)."""
        probs = np.empty((len(self), n_classes), np.float32)
        for places, rows in self.batches(number, "probs"):
            probs[places] = rows["probs"].list.to_array(n_classes).to_numpy()
        return probs

    def column(self, name: str) -> Iterator[tuple[slice, pl.Series]]:
        """Reads a column of the first model's rows in parts.

        Yields:
            A range of prediction numbers, and the values of these predictions.
        """
        for places, rows in self.columns(name):
            yield places, rows[name]

    def columns(self, *names: str, at_once: int = BATCH_ROWS) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Several columns of the first model's rows, as `column`; of at most ``at_once`` of the table's rows."""
        for places, rows in self.batches(0, *names, at_once=at_once):
            if len(places):
                yield slice(int(places[0]), int(places[-1]) + 1), rows

    def batches(
        self, number: int, *columns: str, at_once: int = BATCH_ROWS
    ) -> Iterator[tuple[npt.NDArray[np.int64], pl.DataFrame]]:
        """Reads columns of the rows of one of the models in parts, in the order of the table.

        Yields:
            The numbers of some predictions, int64 (B,), and the model's rows of these.
        """
        order = np.argsort(self.rows[number], kind="stable")
        ascending = self.rows[number][order]
        start = 0
        values = scan_rows(self.table, self.models[number]).select(columns)
        for batch in values.collect_batches(chunk_size=at_once, maintain_order=True):
            first, end = np.searchsorted(ascending, [start, start + len(batch)])
            yield order[first:end], batch[ascending[first:end] - start]
            start += len(batch)


def newest_predictions(
    table: DeltaTable, models: Sequence[str], excluded: Exclusions, copies: bool = False
) -> tuple[Predictions, dict[str, int]]:
    """Finds the predictions of ``models`` that may become pseudo-labels.

    Of the rows about one content of an object, a success takes precedence over a failure, even over a later one. Two
    runs may read the same object at the same time, and only one of them may fail. An object is left out if its newest
    row is a tombstone, that is a marker with the status `table.GONE`. A marker with the status `table.RETURNED` makes
    the content that it names the newest.

    Args:
        table: Predictions table.
        models: Ids of the models.
        excluded: Pictures to leave out.
        copies: Whether every object with the same content counts, as where the pictures of a manifest are looked up.

    Returns:
        The predictions, and the number of rows or objects that were left out for each reason. Rows are
        ``superseded``, ``gone`` and ``failed``, and also ``no_face`` with models that detect faces. Objects are
        ``duplicate``, ``excluded``, and with several models ``incomplete`` if not all of them have predicted the
        newest content.
    """
    left_out = {"superseded": 0, "gone": 0, "failed": 0}
    newest = [_newest(table, model, left_out) for model in models]
    good = newest[0]
    for number, other in enumerate(newest[1:], 1):
        # The digest is part of the key, because a model may not have predicted the newest content of an object yet.
        theirs = other.select("uri", "digest", pl.col("row").alias(f"row_{number}"))
        good = good.join(theirs, on=["uri", "digest"], how="inner")
    if len(models) > 1:
        left_out["incomplete"] = pl.concat([each["uri"] for each in newest]).n_unique() - len(good)
    unique = good if copies else _unique(good, table, models[0])
    digests = pl.Series(list(excluded.digests), dtype=pl.Binary).hash(_SEED)
    # A picture that has changed since it was labelled has another digest, so its name counts too.
    pictures = pl.Series(list(excluded.uris), dtype=pl.String).hash(_SEED)
    held_out = pl.col("digest").is_in(digests.implode()) | pl.col("picture").is_in(pictures.implode())
    kept = unique.filter(~held_out).sort("row")
    left_out |= {"duplicate": len(good) - len(unique), "excluded": len(unique) - len(kept)}
    names = ["row", *(f"row_{number}" for number in range(1, len(models)))]
    return Predictions(table, models, [kept[name].to_numpy().astype(np.int64) for name in names]), left_out


def _newest(table: DeltaTable, model: str, left_out: dict[str, int]) -> pl.DataFrame:
    """Finds the newest content of every picture that ``model`` has labelled, and adds to the counts in ``left_out``.

    Returns:
        The columns (row, uri, picture, digest), all but ``row`` as hashes. ``uri`` is that of a face if the model
        detects faces, and ``picture`` is that of the picture that holds it.
    """
    faces, status = sees_faces(model), pl.col("status")
    frame = (
        scan_rows(table, model)
        .with_row_index("row")
        .select(
            "row",
            "labelled_at",
            picture_uri(model).hash(_SEED).alias("picture"),
            pl.col("uri", "identity", "digest").hash(_SEED),
            ok=status == OK,
            marker=status.is_in(MARKERS),
            gone=status == GONE,
            no_face=status == NO_FACE,
            embedding_size="embedding_size",
        )
        .collect(engine="streaming")
    )
    # Most pictures have a single row, which needs no comparison.
    several = frame["picture"].is_duplicated()
    alone = frame.filter(~several & ~frame["marker"])
    contested = frame.filter(several)
    predicted = len(frame) - int(frame["marker"].sum())
    del frame
    seen = pl.col("labelled_at").max().over("picture", "identity")
    ordered = contested.with_columns(seen=seen).filter(~pl.col("marker"))
    ordered = ordered.join(_replaced(ordered, table, model), on="row", how="anti")
    # A unit may read an object twice; a content with a prediction takes precedence over one without.
    succeeded = pl.col("ok").any().over("picture", "identity")
    ordered = ordered.sort("picture", "seen", succeeded, "identity", "ok", "embedding_size", "labelled_at")
    if faces:
        # The last row of a picture decides which content and outcome count, for all of its faces.
        ordered = ordered.filter([pl.col(each) == pl.col(each).last().over("picture") for each in ("identity", "ok")])
    settled = ordered.unique("uri", keep="last", maintain_order=True)
    newest = len(alone) + len(settled)
    settled = settled.join(_gone(contested), on="picture", how="anti")
    present = pl.concat([alone, settled.select(alone.columns)])
    good = present.filter("ok")
    without = int(present["no_face"].sum())
    left_out["superseded"] += predicted - newest
    left_out["gone"] += newest - len(present)
    left_out["failed"] += len(present) - len(good) - without
    if faces:
        left_out["no_face"] = left_out.get("no_face", 0) + without
    return good.select("row", "uri", "picture", "digest")


def _replaced(rows: pl.DataFrame, table: DeltaTable, model: str) -> pl.DataFrame:
    """Returns the ``row`` of every shard member that a later member of the same name in the same shard replaces."""
    several = rows.filter(pl.col("identity").n_unique().over("picture") > 1).sort("row")
    if several.is_empty():
        return several.select("row")
    numbers = several["row"].to_numpy().astype(np.int64)
    identities = pl.concat([part for _, part in Predictions(table, [model], [numbers]).column("identity")])
    parts = identities.str.extract_groups(RANGE_PATTERN).struct.rename_fields(["shard", "offset", "size"])
    members = several.select("row", "picture").with_columns(parts.struct.unnest()).drop_nulls("shard")
    last = pl.col("offset").cast(pl.Int64).max().over("picture", "shard")
    return members.filter(pl.col("offset").cast(pl.Int64) < last).select("row")


def _gone(rows: pl.DataFrame) -> pl.DataFrame:
    """Returns the ``picture`` of the objects whose newest row is a tombstone."""
    gone = rows.filter("gone").group_by("picture").agg(pl.col("labelled_at").max().alias("gone_at"))
    later = rows.filter(~pl.col("gone")).join(gone, on="picture").filter(pl.col("labelled_at") > pl.col("gone_at"))
    return gone.join(later, on="picture", how="anti").select("picture")


def _unique(good: pl.DataFrame, table: DeltaTable, model: str) -> pl.DataFrame:
    """Keeps of several pictures with the same digest the one whose URI is first in alphabetical order."""
    same = good["digest"].is_duplicated()
    shared = good.filter(same).select("row", "picture", "digest")
    if shared.is_empty():
        return good
    uris = Predictions(table, [model], [np.sort(shared["row"].to_numpy().astype(np.int64))])
    named = pl.concat([part for _, part in uris.column("uri")]).alias("uri")
    shared = shared.sort("row").with_columns(named).sort("uri")
    others = shared.filter(pl.col("picture") != pl.col("picture").first().over("digest"))
    return good.join(others.select("row"), on="row", how="anti")
