"""Tombstones of objects that have vanished from the sources; the objects' rows stay.

A marker is a row about an object, not about a content. A complete listing that did not see an object leaves the
tombstone `GONE`; one that saw it again, with an identity that needs no inference, leaves `RETURNED`. An object is gone
when its newest row says so. So markers that several runs write at once do no harm, and what is labelled later overrules
them. An object about which anything was written since the listing began gets its marker from the next run.

Nothing is looked at while a listing sees every key of the table and the table holds no marker. Otherwise the table's
keys are scanned twice or more: once for the candidates, which have a key that was not seen or a tombstone and take 8
bytes of memory each, and once for all rows of every `OBJECTS_AT_ONCE` of these, about 600 bytes a row.
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
"""Which of (2, N) hashed keys are known, and which of these the listing has seen, as `ledger.Ledger.look_up`."""


def complete_sources(sources: Sequence[str | SourceConfig]) -> list[str]:
    """Returns the URIs of the sources whose listing names all that is there: no pattern, filter or feed."""
    return [source.uri for source in map(resolve, sources) if source.plain]


def write_markers(committer: Committer, sources: Sequence[str], look_up: LookUp, started: datetime) -> Counter[str]:
    """Writes and commits the markers that follow from a complete listing.

    Args:
        committer: of the run that has listed.
        sources: as `complete_sources` gives them.
        look_up: what the listing has seen.
        started: when the listing began.

    Returns:
        How many of each of `WRITTEN`.
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
            files.append(write_file(place_of(table), model, marker_rows(rows, run), f"{run}-marks"))
    if files:
        committer.commit(files)
    for name, shown in examples.items():
        if shown:
            log.info("%d objects marked as %s, like %s", counts[name], name, ", ".join(shown))
    return counts


def find_objects(labelled: pl.LazyFrame, sources: Sequence[str], look_up: LookUp) -> Iterator[pl.DataFrame]:
    """The objects of a table that may be gone, or have been.

    Args:
        labelled: as `table.scan_keys` gives it.
        sources: as `complete_sources` gives them.
        look_up: what a listing has seen.

    Yields:
        A row for each object with a key that was not seen or a tombstone: ``uri``; ``source`` and ``identity`` of its
        newest row that is no marker; ``seen``, the newest identity that was seen, null for none; ``newest``, the status
        of its newest row, which was written at ``labelled_at``; ``gone``, whether it lies in ``sources`` and all its
        keys are known and were not seen.
    """
    candidates = _candidates(labelled, sources, look_up)
    for start in range(0, len(candidates), OBJECTS_AT_ONCE):
        chosen = pl.LazyFrame({"hash": candidates[start : start + OBJECTS_AT_ONCE]})
        rows = labelled.with_columns(URI_HASH).join(chosen, on="hash", how="semi").collect(engine="streaming")
        known, seen = look_up(key_hashes(rows.select(KEY_HASHES)))
        judged = rows.with_columns(_inside(sources).alias("inside"), pl.Series("known", known), pl.Series("seen", seen))
        yield _by_object(judged)


def _candidates(labelled: pl.LazyFrame, sources: Sequence[str], look_up: LookUp) -> npt.NDArray[np.uint64]:
    """Hashes of the URIs of the objects in question, each once."""
    marked = pl.col("status") == GONE
    rows = labelled.filter(marked | _inside(sources)).select(URI_HASH, marked.alias("marked"), *KEY_HASHES)
    found = [np.empty(0, np.uint64)]
    for batch in batches(rows):
        known, seen = look_up(key_hashes(batch))
        found.append(batch.filter(batch["marked"] | pl.Series(known & ~seen))["hash"].to_numpy())
    return np.unique(np.concatenate(found))


def _inside(sources: Sequence[str]) -> pl.Expr:
    # An end at the end: what lies in another folder whose name begins alike was not listed. Nor was what only a list or
    # a table of images names.
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
        found: as `find_objects` yields it.
        started: when the listing began.

    Returns:
        (uri, source, identity, status), a row for each marker.
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
