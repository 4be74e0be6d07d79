"""The dry run: for every object of a listing why it would be labelled or not, and what it would cost.

Nothing is written and no Ray is started. Memory holds the ledger's hashes and 24 bytes more per object and teacher.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import botocore.exceptions
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from ray_fer import storage
from ray_fer.config import PseudoLabelConfig
from ray_fer.data.sources import list_sources
from ray_fer.data.sources.spec import resolve
from ray_fer.labeling.ledger import OUTCOMES, TO_RETRY, KeySet, SortedHashes, batches, hash_keys, hash_uris, sort_out
from ray_fer.labeling.table import files_of, open_table, scan_keys
from ray_fer.models.artifact import resolve_precision
from ray_fer.models.teacher import Teacher

log = logging.getLogger(__name__)

NEW, CHANGED, GONE = "new", "changed", "gone"
KINDS = (NEW, CHANGED, *OUTCOMES)
TO_LABEL = (NEW, CHANGED, TO_RETRY)
EXAMPLES = 3
_RATE_RUNS = 5


class Known:
    """What a table says of keys and of URIs.

    Args:
        labelled: (uri, identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is given up.
    """

    def __init__(self, labelled: pl.LazyFrame, max_attempts: int) -> None:
        self._outcomes: dict[str, KeySet] = sort_out(labelled, max_attempts)
        self._uris = SortedHashes(_hashes(hash_uris(labelled.select("uri"))))

    def classify(self, page: pa.Table) -> npt.NDArray[np.uint8]:
        """For every row of ``page`` the index of what it is in `KINDS`, uint8 (N,)."""
        hashes = hash_keys(page["uri"], page["identity"])
        changed = self._uris.contains(_uri_hashes(page))
        kinds = np.where(changed, KINDS.index(CHANGED), KINDS.index(NEW)).astype(np.uint8)
        for name in reversed(OUTCOMES):  # the strongest last
            kinds[self._outcomes[name].contains(hashes)] = KINDS.index(name)
        return kinds


@dataclass
class Tally:
    """How many objects are of each kind, with the first few URIs of each."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KINDS, GONE), 0))
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, uris: pa.Array | pa.ChunkedArray) -> None:
        """Counts ``uris`` as of ``kind``."""
        self.counts[kind] += len(uris)
        shown = self.examples.setdefault(kind, [])
        shown += uris.slice(0, EXAMPLES - len(shown)).to_pylist()
        if not shown:
            del self.examples[kind]


def explain(
    pages: Iterable[pa.Table], labelled: Sequence[pl.LazyFrame], max_attempts: int, sources: Sequence[str]
) -> tuple[list[Tally], int]:
    """Compares a complete listing with what each of several models has in a table.

    Args:
        pages: tables with (uri, identity), every object of ``sources`` once.
        labelled: for each model (uri, identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is given up.
        sources: the folders, prefixes and images that were listed whole, as `storage.normalise` spells them; an object
            of the table that lies there and is not in the listing is gone.

    Returns:
        For each model what its rows say, and how many objects are to be labelled by at least one of them.
    """
    known = [Known(each, max_attempts) for each in labelled]
    tallies = [Tally() for _ in known]
    listed: list[npt.NDArray[np.uint64]] = []
    to_label = 0
    for page in pages:
        wanted = np.zeros(page.num_rows, bool)
        for tally, model in zip(tallies, known, strict=True):
            kinds = model.classify(page)
            for number in np.unique(kinds):
                tally.add(KINDS[number], page["uri"].filter(pa.array(kinds == number)))
            wanted |= np.isin(kinds, [KINDS.index(kind) for kind in TO_LABEL])
        to_label += int(wanted.sum())
        listed.append(_uri_hashes(page))
    del known
    if sources:
        there = SortedHashes(listed)
        for tally, each in zip(tallies, labelled, strict=True):
            for uris in _gone(there, each, sources):
                tally.add(GONE, uris)
    return tallies, to_label


def _gone(listed: SortedHashes, labelled: pl.LazyFrame, sources: Sequence[str]) -> Iterator[pa.Array]:
    # A slash at the end: what lies in another folder whose name begins alike was not listed.
    inside = [pl.col("uri").str.starts_with(source.rstrip("/") + "/") | (pl.col("uri") == source) for source in sources]
    there = labelled.select("uri").filter(pl.any_horizontal(inside))
    seen = KeySet()
    for batch in batches(hash_uris(there)):
        missing = batch.filter(~listed.contains(batch["hash"].to_numpy())).unique("hash", maintain_order=True)
        # An object has a row per content, and they may lie batches apart.
        hashes = np.stack([missing["hash"].to_numpy()] * 2)
        fresh = ~seen.contains(hashes)
        seen.add(hashes[:, fresh])
        yield missing.filter(fresh)["uri"].to_arrow()


def _hashes(uris: pl.LazyFrame) -> list[npt.NDArray[np.uint64]]:
    return [batch["hash"].to_numpy() for batch in batches(uris.select("hash"))]


def _uri_hashes(page: pa.Table) -> npt.NDArray[np.uint64]:
    frame = pl.LazyFrame({"uri": pl.from_arrow(page["uri"])})
    return hash_uris(frame).collect()["hash"].to_numpy()


def dry_run(config: PseudoLabelConfig, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """What a run with this config would do.

    Args:
        config: see ``conf/pseudo_label.yaml``.
        teachers: that would label.

    Returns:
        The summary: counts and examples of objects that are new, changed, done, failed (permanently, to be retried,
        given up) or gone; the images to label, and the seconds that takes at the rate of this model's last runs on
        this table, null where there were none. With several teachers, the counts and examples of each are under
        ``models``, and the images to label are those that any of them lacks.

    Raises:
        UserError: as labelling itself.
    """
    uri = storage.normalise(config.table)
    table = open_table(uri, teachers[0].classes)
    models = [_model(config, teacher, table) for teacher in teachers]
    nothing = pl.LazyFrame(schema=dict.fromkeys(("uri", "identity", "status"), pl.String))
    # Of a pattern, a filter or a feed, what it does not name may well be there.
    sources = [source.uri for source in map(resolve, config.source) if source.plain]
    listing: Counter[str] = Counter()
    tallies, images = explain(
        list_sources(config.source, listing),
        [nothing if table is None else scan_keys(table, model) for model in models],
        config.max_attempts,
        sources,
    )
    rate = images_per_second(uri, models)
    for tally in tallies:
        counts = ", ".join(f"{count} {kind}" for kind, count in tally.counts.items())
        log.info("%d listed: %s", listing["listed"], counts)
    found = [{"counts": tally.counts, "examples": tally.examples} for tally in tallies]
    mine: dict[str, Any] = {"model": models[0]} | found[0]
    if len(models) > 1:
        mine = {"models": {}}
        for teacher, model, tally, each in zip(teachers, models, tallies, found, strict=True):
            to_label = sum(tally.counts[kind] for kind in TO_LABEL)
            mine["models"][model] = {"teacher": teacher.uri, **each, "to_label": to_label}
    return {
        "dry_run": True,
        **mine,
        "table": uri,
        "version": table.version() if table else None,
        "listed": listing["listed"],
        "skipped": listing["skipped"],
        "to_label": images,
        "images_per_second": rate and round(rate, 1),
        "seconds_to_label": rate and round(images / rate, 1),
    }


def _model(config: PseudoLabelConfig, teacher: Teacher, table: DeltaTable | None) -> str:
    # Only a cluster knows whether it has GPUs; which number format was used so far, the table knows.
    usual = resolve_precision(config.precision, config.device == "cuda")
    undecided = config.precision == "auto" and config.device == "auto"
    names = (usual, "bfloat16") if undecided else (usual,)
    models = [teacher.model_id(name, config.flip, config.detects_faces) for name in names]
    return next((model for model in models if table and files_of(table, model)), models[0])


def images_per_second(table_uri: str, models: Sequence[str]) -> float | None:
    """The rate of the last runs of ``models`` together that labelled anything, as noted in the table's folder."""
    runs = storage.join(table_uri, "_runs")
    images, seconds, found = 0, 0.0, 0
    for name in reversed(storage.list_dir(runs)):  # names begin with the time
        try:
            summary = storage.read_json(storage.join(runs, name, "summary.json"))
        except (OSError, ValueError, botocore.exceptions.BotoCoreError):  # killed, or going on
            continue
        ran = summary.get("models") or [summary.get("model")]
        if set(ran) == set(models) and (rate := summary.get("images_per_second")):
            images, seconds, found = images + summary["labelled"], seconds + summary["labelled"] / rate, found + 1
        if found == _RATE_RUNS:
            break
    return images / seconds if seconds else None
