"""The dry run: for every object of a listing why it would be labelled or not, and what it would cost.

Nothing is written and no Ray is started. Memory holds the ledger's hashes, 12 bytes more per row of the table, and 8
per changed object; all of it for each teacher.
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
from ray_fer.labeling.key_sets import Bools, KeyHashes, SortedHashes, look_up
from ray_fer.labeling.ledger import OUTCOMES, SETTLED, TO_RETRY, URI_HASH, batches, hash_keys, hash_uris, sort_out
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
    """What a table says of keys and of URIs.

    Args:
        labelled: (uri, identity, listed_identity, status), as `table.scan_keys` gives it.
        max_attempts: rows with a transient failure after which a key is given up.
    """

    def __init__(self, labelled: pl.LazyFrame, max_attempts: int) -> None:
        self._outcomes = sort_out(labelled, max_attempts)
        hashed = labelled.select(URI_HASH)
        self._uris = SortedHashes([batch["hash"].to_numpy() for batch in batches(hashed)])

    def classify(self, page: pa.Table) -> npt.NDArray[np.uint8]:
        """For every row of ``page`` the index of what it is in `KINDS`, uint8 (N,); they count as seen."""
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
        """Which of (2, N) hashes are of known keys, and which of these were in a page that was classified."""
        return look_up(self._outcomes.sets(), hashes)


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


def compare_listing(
    pages: Iterable[pa.Table], labelled: Sequence[pl.LazyFrame], max_attempts: int, sources: Sequence[str]
) -> tuple[list[Tally], int]:
    """Compares a complete listing with what each of several models has in a table.

    Args:
        pages: tables with (uri, identity), every object of ``sources`` once.
        labelled: for each model its keys, as `table.scan_keys` gives them.
        max_attempts: rows with a transient failure after which a key is given up.
        sources: the folders, prefixes and images that were listed to their end, as `tombstones.complete_sources` gives
            them; an object of the table that lies there and is not in the listing is gone, marked or not.

    Returns:
        For each model what its rows say, and how many objects are to be labelled by at least one of them.
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
        # Their new content is not in the table.
        there = SortedHashes(overwritten)
        for found in tombstones.find_objects(each, sources, model.look_up):
            uris = found.filter("gone")["uri"].to_arrow()
            tally.add(GONE, uris.filter(pa.array(~there.contains(hash_uris(uris)))))
    return tallies, to_label


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
