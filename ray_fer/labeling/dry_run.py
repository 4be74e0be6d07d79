"""The dry run, which reports why each object of a listing would be labelled or not, and how long a run would take.

It writes nothing and does not start Ray. For each teacher, memory holds the ledger's hashes, 12 bytes more per row of
the table, and 8 bytes per changed object.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import botocore.exceptions
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from ray_fer import storage
from ray_fer.data.sources import list_sources
from ray_fer.labeling import tombstones
from ray_fer.labeling.config import PseudoLabelConfig
from ray_fer.labeling.key_sets import URI_HASH, Bools, KeyHashes, SortedHashes, hash_keys, hash_uris, look_up
from ray_fer.labeling.ledger import OUTCOMES, SETTLED, TO_RETRY, batches, sort_out
from ray_fer.labeling.table import GONE, files_of, no_keys, open_table, scan_keys
from ray_fer.labeling.tombstones import EXAMPLES
from ray_fer.models.model_id import resolve_precision
from ray_fer.models.teacher import Teacher

log = logging.getLogger(__name__)

NEW, CHANGED, TO_EMBED = "new", "changed", "without_embedding"
KINDS = (NEW, CHANGED, TO_EMBED, *OUTCOMES)
TO_LABEL = (NEW, CHANGED, TO_EMBED, TO_RETRY)
_RATE_RUNS = 5


class TableKeys:
    """The keys and URIs of a table.

    Args:
        labelled: Rows (uri, identity, listed_identity, status) from `table.scan_keys`.
        max_attempts: Number of transient failures after which a key is given up.
    """

    def __init__(self, labelled: pl.LazyFrame, max_attempts: int) -> None:
        self._outcomes = sort_out(labelled, max_attempts)
        hashed = labelled.select(URI_HASH)
        self._uris = SortedHashes([batch["hash"].to_numpy() for batch in batches(hashed)])

    def classify(self, page: pa.Table) -> npt.NDArray[np.uint8]:
        """Returns the index in `KINDS` of the kind of each row of ``page``, uint8 (N,), and marks the rows as seen."""
        hashes = hash_keys(page["uri"], page["identity"])
        changed = self._uris.contains(hash_uris(page["uri"]))
        kinds = np.where(changed, KINDS.index(CHANGED), KINDS.index(NEW)).astype(np.uint8)
        for tries, keys in self._outcomes.to_retry.items():
            kinds[keys.mark_seen(hashes)] = KINDS.index(TO_RETRY if tries else TO_EMBED)
        rows, held = self._outcomes.aliases.find(hashes)
        for name in reversed(SETTLED):  # the strongest last
            keys = self._outcomes.settled[name]
            kinds[rows[keys.mark_seen(held)]] = KINDS.index(name)
            kinds[keys.mark_seen(hashes)] = KINDS.index(name)
        return kinds

    def look_up(self, hashes: KeyHashes) -> tuple[Bools, Bools]:
        """Looks up hashed keys, uint64 (2, N).

        Returns:
            Whether each key is known, and whether a classified page had it, bool (N,) each.
        """
        return look_up(self._outcomes.sets(), hashes)


@dataclass
class Tally:
    """The number of objects of each kind, and the first few URIs of each."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KINDS, GONE), 0))
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, uris: pa.Array | pa.ChunkedArray) -> None:
        """Adds objects to a kind."""
        self.counts[kind] += len(uris)
        shown = self.examples.setdefault(kind, [])
        shown += uris.slice(0, EXAMPLES - len(shown)).to_pylist()
        if not shown:
            del self.examples[kind]


def compare_listing(
    pages: Iterable[pa.Table], labelled: Sequence[pl.LazyFrame], max_attempts: int, sources: Sequence[str]
) -> tuple[list[Tally], int]:
    """Compares a complete listing with the rows of several models in a table.

    Args:
        pages: Tables with the columns (uri, identity), which have every object of ``sources`` once.
        labelled: For each model its rows from `table.scan_keys`.
        max_attempts: Number of transient failures after which a key is given up.
        sources: URIs from `tombstones.complete_sources`. An object of the table that is in one of them and not in the
            listing is gone, with or without a tombstone.

    Returns:
        The tally of each model, and the number of objects that at least one of the models has to label.
    """
    known = [TableKeys(each, max_attempts) for each in labelled]
    tallies = [Tally() for _ in known]
    changed: list[list[npt.NDArray[np.uint64]]] = [[] for _ in known]
    to_label = 0
    for page in pages:
        wanted = np.zeros(page.num_rows, bool)
        for tally, model, overwritten in zip(tallies, known, changed, strict=True):
            kinds = model.classify(page)
            for number in np.unique(kinds):
                uris = page["uri"].filter(pa.array(kinds == number))
                tally.add(KINDS[number], uris)
                if KINDS[number] == CHANGED:
                    overwritten.append(hash_uris(uris))
            wanted |= np.isin(kinds, [KINDS.index(kind) for kind in TO_LABEL])
        to_label += int(wanted.sum())
    if not sources:
        return tallies, to_label
    for tally, each, model, overwritten in zip(tallies, labelled, known, changed, strict=True):
        # The table does not have their new content yet, so their keys were not seen.
        there = SortedHashes(overwritten)
        for found in tombstones.find_objects(each, sources, model.look_up):
            uris = found.filter("gone")["uri"].to_arrow()
            tally.add(GONE, uris.filter(pa.array(~there.contains(hash_uris(uris)))))
    return tallies, to_label


def dry_run(config: PseudoLabelConfig, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """Reports what a run with this config would do.

    Args:
        config: Config of the job (see ``conf/pseudo_label.yaml``).
        teachers: Teachers that would label.

    Returns:
        The summary. It has counts and examples of objects that are new, changed, done, failed (permanently, to be
        retried, given up) or gone. It also has the number of images to label, and the seconds that this takes at the
        speed of the last runs of this model on this table, or null if there are none. With several teachers, the counts
        and examples of each are under ``models``, and the images to label are those that any of them lacks.

    Raises:
        UserError: If labelling itself would raise it.
    """
    uri = storage.normalise(config.table)
    table = open_table(uri, teachers[0].classes)
    models = [_model(config, teacher, table) for teacher in teachers]
    listing: Counter[str] = Counter()
    tallies, images = compare_listing(
        list_sources(config.source, listing),
        [no_keys() if table is None else scan_keys(table, model, config.embed) for model in models],
        config.max_attempts,
        tombstones.complete_sources(config.source),
    )
    if listing["unlisted"]:
        log.warning("%d places could not be listed to their end: what counts as gone may be there", listing["unlisted"])
    rate = images_per_second(uri, models)
    for tally in tallies:
        if not config.embed:
            del tally.counts[TO_EMBED]
        counts = ", ".join(f"{count} {kind}" for kind, count in tally.counts.items())
        log.info("%d listed: %s", listing["listed"], counts)
    found = [{"counts": tally.counts, "examples": tally.examples} for tally in tallies]
    mine: dict[str, Any] = {"model": models[0]} | found[0]
    if len(models) > 1:
        mine = {"models": {}}
        for teacher, model, tally, each in zip(teachers, models, tallies, found, strict=True):
            to_label = sum(tally.counts.get(kind, 0) for kind in TO_LABEL)
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
    # The number format depends on the cluster's GPUs, which are unknown here, so the table's own one is preferred.
    usual = resolve_precision(config.precision, config.device == "cuda")
    undecided = config.precision == "auto" and config.device == "auto"
    names = (usual, "bfloat16") if undecided else (usual,)
    models = [teacher.model_id(name, config.flip, config.detects_faces) for name in names]
    return next((model for model in models if table and files_of(table, model)), models[0])


def images_per_second(table_uri: str, models: Sequence[str]) -> float | None:
    """Returns the speed of the last runs of exactly ``models`` by the summaries in the table's folder, None without."""
    runs = storage.join(table_uri, "_runs")
    images, seconds, found = 0, 0.0, 0
    for name in reversed(storage.list_dir(runs)):  # names begin with the time
        try:
            summary = storage.read_json(storage.join(runs, name, "summary.json"))
        except (OSError, ValueError, botocore.exceptions.BotoCoreError):  # the run was killed or still continues
            continue
        ran = summary.get("models") or [summary.get("model")]
        if set(ran) == set(models) and (rate := summary.get("images_per_second")):
            images, seconds, found = images + summary["labelled"], seconds + summary["labelled"] / rate, found + 1
        if found == _RATE_RUNS:
            break
    return images / seconds if seconds else None
