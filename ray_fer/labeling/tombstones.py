"""Tombstones of objects that have vanished from the sources, whose rows stay in the table.

A marker is a row about an object, not about a content. A complete listing that has not seen an object writes the
tombstone `GONE`. A listing that has seen the object again, with an identity that needs no inference, writes `RETURNED`.
An object is gone if its newest row is a tombstone. Several runs may therefore write markers at once, and labelling the
object later overrides them. An object with a row that is newer than the listing gets its marker from the next run.

If a listing has seen every key of the table and the table holds no marker, there is nothing to do. Otherwise the
table's keys are scanned at least twice. The first scan finds the candidates, which have a key that was not seen or a
tombstone, and takes 8 bytes of memory for each. Then a scan for every `OBJECTS_AT_ONCE` candidates reads all of their
rows, with about 600 bytes per row.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from ray_fer.data.names import IMAGE_NAME
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources.spec import resolve
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.key_sets import KEY_HASHES, URI_HASH, Bools, KeyHashes, key_hashes
from ray_fer.labeling.ledger import batches
from ray_fer.labeling.table import GONE, MARKERS, RETURNED, marker_rows, place_of, scan_keys, write_file

log = logging.getLogger(__name__)

OBJECTS_AT_ONCE = 1 << 20
EXAMPLES = 3
WRITTEN = (GONE, RETURNED)
LookUp = Callable[[KeyHashes], tuple[Bools, Bools]]
"""Returns which hashed keys, uint64 (2, N), are known and which the listing has seen, like `ledger.Ledger.look_up`."""


def complete_sources(sources: Sequence[str | SourceConfig]) -> list[str]:
    """Returns the URIs of the sources that are listed completely, which have no pattern, filter or feed."""
    return [source.uri for source in map(resolve, sources) if source.plain]


def write_markers(committer: Committer, sources: Sequence[str], look_up: LookUp, started: datetime) -> Counter[str]:
    """Writes and commits the markers that follow from a complete listing.

    Args:
        committer: Committer of the run that has listed.
        sources: URIs from `complete_sources`.
        look_up: Tells which keys the listing has seen.
        started: Time at which the listing began.

    Returns:
        Number of markers of each status in `WRITTEN`.
    """
    table, model, run = committer.table, committer.model, committer.run
    table.update_incremental()
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {name: [] for name in WRITTEN}
    files = []
    for found in find_objects(scan_keys(table, model), sources, look_up):
        rows = missing_markers(found, started)
        for name, shown in examples.items():
            uris = rows.filter(pl.col("status") == name)["uri"]
            counts[name] += len(uris)
            shown += uris.head(EXAMPLES - len(shown)).to_list()
        if len(rows):
            files.append(write_file(place_of(table), model, marker_rows(rows, run), f"{run}-markers"))
    if files:
        committer.commit(files)
    for name, shown in examples.items():
        if shown:
            log.info("%d objects marked as %s, like %s", counts[name], name, ", ".join(shown))
    return counts


def find_objects(labelled: pl.LazyFrame, sources: Sequence[str], look_up: LookUp) -> Iterator[pl.DataFrame]:
    """Finds the objects of a table that have a key that was not seen, or a tombstone.

    Args:
        labelled: Rows from `table.scan_keys`.
        sources: URIs from `complete_sources`.
        look_up: Tells which keys a listing has seen.

    Yields:
        A row for each object, with the columns

        - ``uri``;
        - ``source`` and ``identity`` of its newest row that is not a marker;
        - ``seen``, the newest identity that was seen, or null;
        - ``newest`` and ``labelled_at``, the status and the time of its newest row;
        - ``gone``, whether it is in ``sources`` and all of its keys are known and were not seen.
    """
    candidates = _candidates(labelled, sources, look_up)
    for start in range(0, len(candidates), OBJECTS_AT_ONCE):
        chosen = pl.LazyFrame({"hash": candidates[start : start + OBJECTS_AT_ONCE]})
        rows = labelled.with_columns(URI_HASH).join(chosen, on="hash", how="semi").collect(engine="streaming")
        known, seen = look_up(key_hashes(rows.select(KEY_HASHES)))
        judged = rows.with_columns(_inside(sources).alias("inside"), pl.Series("known", known), pl.Series("seen", seen))
        yield _by_object(judged)


def _candidates(labelled: pl.LazyFrame, sources: Sequence[str], look_up: LookUp) -> npt.NDArray[np.uint64]:
    """Returns the distinct hashes of the candidates' URIs, uint64 (N,)."""
    marked = pl.col("status") == GONE
    rows = labelled.filter(marked | _inside(sources)).select(URI_HASH, marked.alias("marked"), *KEY_HASHES)
    found = [np.empty(0, np.uint64)]
    for batch in batches(rows):
        known, seen = look_up(key_hashes(batch))
        found.append(batch.filter(batch["marked"] | pl.Series(known & ~seen))["hash"].to_numpy())
    return np.unique(np.concatenate(found))


def _inside(sources: Sequence[str]) -> pl.Expr:
    # The "/" excludes folders whose names only begin like that of a source, which were not listed. The pattern of names
    # excludes images that only a list or a table of images can name.
    uri = pl.col("uri")
    places = [uri.str.starts_with(source.rstrip("/") + end) for source in sources for end in ("/", "!/")]
    return pl.any_horizontal(pl.lit(False), *places, uri.is_in(list(sources))) & uri.str.contains(IMAGE_NAME)


def _by_object(rows: pl.DataFrame) -> pl.DataFrame:
    content = ~pl.col("status").is_in(MARKERS)
    found = (
        rows.sort("labelled_at", maintain_order=True)
        .group_by("uri", maintain_order=True)
        .agg(
            pl.col("source", "identity").filter(content).last(),
            pl.col("identity").filter(content & pl.col("seen")).last().alias("seen"),
            pl.col("status").last().alias("newest"),
            pl.col("labelled_at").last(),
            (pl.col("inside") & pl.col("known") & ~pl.col("seen")).filter(content).all().alias("gone"),
        )
    )
    return found.filter(pl.col("identity").is_not_null())


def missing_markers(found: pl.DataFrame, started: datetime) -> pl.DataFrame:
    """Returns the markers that objects lack.

    Args:
        found: Objects from `find_objects`.
        started: Time at which the listing began.

    Returns:
        A row (uri, source, identity, status) for each marker.
    """
    early = found.filter(pl.col("labelled_at") < started)
    marked = pl.col("newest") == GONE
    gone = early.filter(pl.col("gone") & ~marked)
    returned = early.filter(pl.col("seen").is_not_null() & marked)
    return pl.concat(
        [
            gone.select("uri", "source", "identity", pl.lit(GONE).alias("status")),
            returned.select("uri", "source", pl.col("seen").alias("identity"), pl.lit(RETURNED).alias("status")),
        ]
    )
