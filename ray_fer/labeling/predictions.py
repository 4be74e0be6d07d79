"""Which predictions of a table count, found in the hashes of its keys rather than in the rows themselves.

Of each object only the newest content counts, with all the faces that were found in it, of each picture (by digest)
only one object, and pictures that are also in an excluded manifest (validation, test, the labelled set), by name or by
digest, never become pseudo-labels. The newest content is the one labelled last: an object that was overwritten and then
restored is not labelled again, so it is not told from its content in between.

Of several models only what all of them have predicted counts, by the content of the object: where one of them is
behind with an overwritten object, there is nothing to combine.

About 100 bytes a row are held while this is found out, and 8 afterwards; two different URIs, identities or digests are
taken for one with a chance of 2⁻⁶⁴.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from deltalake import DeltaTable

from ray_fer.data.sources.uris import RANGE_PATTERN
from ray_fer.labeling.exclusions import Exclusions
from ray_fer.labeling.table import GONE, MARKERS, NO_FACE, OK, picture_uri, scan_rows
from ray_fer.models.model_id import sees_faces

BATCH_ROWS = 1 << 17
_SEED = 5


@dataclass(frozen=True, eq=False)
class Predictions:
    """M predictions of one or several models, in the order in which the files of the first hold them.

    Attributes:
        table: that holds them.
        models: ids.
        rows: of each model int64 (M,), among all of its rows in the table; those of the first ascend.
    """

    table: DeltaTable
    models: Sequence[str]
    rows: Sequence[npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.rows[0])

    def take(self, kept: npt.NDArray[np.int64]) -> Predictions:
        """Those with the given numbers, ascending."""
        return Predictions(self.table, self.models, [rows[kept] for rows in self.rows])

    def probs(self, number: int, n_classes: int) -> npt.NDArray[np.float32]:
        """What the model with that number says, (M, K)."""
        probs = np.empty((len(self), n_classes), np.float32)
        for places, rows in self._batches(number, "probs"):
            probs[places] = rows["probs"].list.to_array(n_classes).to_numpy()
        return probs

    def column(self, name: str) -> Iterator[tuple[slice, pl.Series]]:
        """A column of the first model's rows, part by part: their numbers and what it holds."""
        for places, rows in self.columns(name):
            yield places, rows[name]

    def columns(self, *names: str, at_once: int = BATCH_ROWS) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Several columns of the first model's rows, as `column`; of at most ``at_once`` of the table's rows."""
        for places, rows in self._batches(0, *names, at_once=at_once):
            if len(places):
                yield slice(int(places[0]), int(places[-1]) + 1), rows

    def _batches(
        self, number: int, *columns: str, at_once: int = BATCH_ROWS
    ) -> Iterator[tuple[npt.NDArray[np.int64], pl.DataFrame]]:
        order = np.argsort(self.rows[number], kind="stable")
        ascending = self.rows[number][order]
        start = 0
        values = scan_rows(self.table, self.models[number]).select(columns)
        for batch in values.collect_batches(chunk_size=at_once, maintain_order=True):
            first, end = np.searchsorted(ascending, [start, start + len(batch)])
            yield order[first:end], batch[ascending[first:end] - start]
            start += len(batch)


def newest_predictions(
    table: DeltaTable, models: Sequence[str], excluded: Exclusions
) -> tuple[Predictions, dict[str, int]]:
    """The usable predictions of ``models``.

    Of the rows about one content of an object a success counts before a failure, however late that failure came: two
    runs at once may read the same object, and only one of them in vain. Objects whose newest row is a mark that they
    are gone are left out; a mark that one has returned makes the content that it names the newest.

    Args:
        table: the predictions.
        models: ids.
        excluded: pictures to leave out.

    Returns:
        The predictions, and how many were left out: rows as ``superseded``, ``gone`` and ``failed``; objects as
        ``incomplete`` (with several models: not all of them have predicted this content), ``duplicate`` and
        ``excluded``.
    """
    left_out = {"superseded": 0, "gone": 0, "failed": 0}
    newest = [_newest(table, model, left_out) for model in models]
    good = newest[0]
    for number, other in enumerate(newest[1:], 1):
        # Of one content, not merely of one object: a model may be behind with what was overwritten.
        theirs = other.select("uri", "digest", pl.col("row").alias(f"row_{number}"))
        good = good.join(theirs, on=["uri", "digest"], how="inner")
    if len(models) > 1:
        left_out["incomplete"] = pl.concat([each["uri"] for each in newest]).n_unique() - len(good)
    unique = _unique(good, table, models[0])
    digests = pl.Series(list(excluded.digests), dtype=pl.Binary).hash(_SEED)
    # What has changed since it was labelled has another digest, and is the same picture to who validates on it.
    pictures = pl.Series(list(excluded.uris), dtype=pl.String).hash(_SEED)
    held_out = pl.col("digest").is_in(digests.implode()) | pl.col("picture").is_in(pictures.implode())
    kept = unique.filter(~held_out).sort("row")
    left_out |= {"duplicate": len(good) - len(unique), "excluded": len(unique) - len(kept)}
    names = ["row", *(f"row_{number}" for number in range(1, len(models)))]
    return Predictions(table, models, [kept[name].to_numpy().astype(np.int64) for name in names]), left_out


def _newest(table: DeltaTable, model: str, left_out: dict[str, int]) -> pl.DataFrame:
    """(row, uri, picture, digest) of the newest content of every picture that ``model`` knows; all but row as hashes.

    The picture's URI is another than the row's where that is of a face in it.
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
            mark=status.is_in(MARKERS),
            gone=status == GONE,
            no_face=status == NO_FACE,
            embedding_size="embedding_size",
        )
        .collect(engine="streaming")
    )
    # Most pictures have one row, about which there is nothing to find out.
    several = frame["picture"].is_duplicated()
    alone = frame.filter(~several & ~frame["mark"])
    contested = frame.filter(several)
    predicted = len(frame) - int(frame["mark"].sum())
    del frame
    seen = pl.col("labelled_at").max().over("picture", "identity")
    ordered = contested.with_columns(seen=seen).filter(~pl.col("mark"))
    ordered = ordered.join(_replaced(ordered, table, model), on="row", how="anti")
    # Of what a unit has read of one object, what could be had tells more than what could not.
    had = pl.col("ok").any().over("picture", "identity")
    ordered = ordered.sort("picture", "seen", had, "identity", "ok", "embedding_size", "labelled_at")
    if faces:
        # The last row of a picture tells which content and outcome count; all of its faces go with it.
        ordered = ordered.filter([pl.col(each) == pl.col(each).last().over("picture") for each in ("identity", "ok")])
    settled = ordered.unique("uri", keep="last", maintain_order=True)
    newest = len(alone) + len(settled)
    settled = settled.join(_gone(contested), on="picture", how="anti")
    there = pl.concat([alone, settled.select(alone.columns)])
    good = there.filter("ok")
    without = int(there["no_face"].sum())
    left_out["superseded"] += predicted - newest
    left_out["gone"] += newest - len(there)
    left_out["failed"] += len(there) - len(good) - without
    if faces:
        left_out["no_face"] = left_out.get("no_face", 0) + without
    return good.select("row", "uri", "picture", "digest")


def _replaced(rows: pl.DataFrame, table: DeltaTable, model: str) -> pl.DataFrame:
    """The ``row`` of those about members of a shard that a later member of the same name and content replaces."""
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
    """The ``picture`` of the objects whose newest row says that they are gone."""
    gone = rows.filter("gone").group_by("picture").agg(pl.col("labelled_at").max().alias("gone_at"))
    later = rows.filter(~pl.col("gone")).join(gone, on="picture").filter(pl.col("labelled_at") > pl.col("gone_at"))
    return gone.join(later, on="picture", how="anti").select("picture")


def _unique(good: pl.DataFrame, table: DeltaTable, model: str) -> pl.DataFrame:
    """Of pictures with the same digest the one with the first URI."""
    same = good["digest"].is_duplicated()
    shared = good.filter(same).select("row", "picture", "digest")
    if shared.is_empty():
        return good
    uris = Predictions(table, [model], [np.sort(shared["row"].to_numpy().astype(np.int64))])
    named = pl.concat([part for _, part in uris.column("uri")]).alias("uri")
    shared = shared.sort("row").with_columns(named).sort("uri")
    others = shared.filter(pl.col("picture") != pl.col("picture").first().over("digest"))
    return good.join(others.select("row"), on="row", how="anti")
