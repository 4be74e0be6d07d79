"""The main job: the teacher's predictions for every image of the sources, each exactly once per content and model.

List → diff against the ledger → units → Ray Data graph → commit, as a stream: the driver holds 16 bytes per labelled
image, one wave of keys, and the descriptions of files that are not committed yet. The next wave is listed while this
one runs.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import botocore.exceptions
import pyarrow as pa

from ray_fer import storage
from ray_fer.config import PseudoLabelConfig, SelectPseudoLabelsConfig
from ray_fer.data.sources import check_sources, list_sources
from ray_fer.errors import UserError, one_line
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.table import OK, WrittenFile, create_table, read_keys
from ray_fer.models.artifact import resolve_precision
from ray_fer.models.teacher import OnnxTeacher, Teacher, check_teacher, open_teacher

log = logging.getLogger(__name__)

# A wave starts the actors, so waves grow; the first is small because it is what a user waits for.
FIRST_WAVE_UNITS = 8
LAST_WAVE_UNITS = 256
WAVE_PATIENCE_SECONDS = 5.0
SMALLEST_UNIT_ROWS = 64
UNITS_PER_ACTOR = 4
FEWEST_FOR_FAILURE_SHARE = 1000
PROGRESS_SECONDS = 5.0


def pseudo_label(config: PseudoLabelConfig) -> dict[str, Any]:
    """Labels what the table does not hold yet, commits as it goes, and selects pseudo-labels at the end when told to.

    Args:
        config: see ``conf/pseudo_label.yaml``.

    Returns:
        The summary: counts of listed, skipped, already labelled and newly labelled images by status, the model id, the
        table and its version.

    Raises:
        UserError: for bad input, before any cluster work; and when so many images fail that something else is wrong.
    """
    teacher = _checked(config)
    config = config.model_copy(update={"teacher": teacher.uri, "table": storage.normalise(config.table)})
    if isinstance(teacher, OnnxTeacher):
        config = config.model_copy(update={"device": "cpu"})

    from ray_fer import cluster

    cluster.connect()
    run = _Run(config, teacher)
    run.go()
    summary = run.summary()
    storage.write_json(storage.join(config.table, "_runs", run.plan.run, "summary.json"), summary)
    if config.select:
        from ray_fer.labeling.select import select_pseudo_labels

        selection = SelectPseudoLabelsConfig(
            table=config.table,
            teacher=config.teacher,
            out=config.select,
            feedback=config.feedback,
            precision=config.precision,
            flip=config.flip,
            selection=config.selection,
        )
        summary["selection"] = select_pseudo_labels(selection)
    return summary


def _checked(config: PseudoLabelConfig) -> Teacher:
    """The teacher, once everything that can be known to be wrong before the cluster is there has been looked at."""
    places = [("table", config.table), ("select", config.select or "."), *(("source", uri) for uri in config.source)]
    for key, uri in places:
        storage.normalise_argument(key, uri)
    try:
        teacher = open_teacher(config.teacher)
    except UserError as error:
        raise UserError(f"teacher={error}") from None
    check_teacher(teacher, config.engine, config.device, config.precision)
    check_sources(config.source)
    for manifest in config.selection.exclude:
        _check_exists("selection.exclude", manifest)
    if config.feedback:
        _check_exists("feedback", config.feedback)
    create_table(config.table, teacher.classes)
    return teacher


def _check_exists(key: str, uri: str) -> None:
    try:
        found = storage.exists(uri)
    except (OSError, botocore.exceptions.BotoCoreError) as error:
        raise UserError(f"{key}={uri}: cannot be read ({one_line(error)})") from None
    if not found:
        raise UserError(f"{key}={uri}: no such file or folder")


class _Run:
    """One run of the job: its counts, its table, and what is written but not committed."""

    def __init__(self, config: PseudoLabelConfig, teacher: Teacher) -> None:
        from ray_fer import cluster
        from ray_fer.labeling.graph import Plan

        device = config.device
        if device == "auto":
            device = "cuda" if cluster.accelerators() else "cpu"
        elif device == "cuda" and not cluster.accelerators():
            if cluster.is_local():
                raise UserError("device=cuda: Ray finds no GPU on this machine")
            log.warning("device=cuda: the cluster has no GPU yet; waiting until its autoscaler adds one")
        precision = resolve_precision(config.precision, device == "cuda")
        slots = cluster.accelerators() if device == "cuda" else cluster.cpus()
        self.config = config
        self.plan = Plan(
            config,
            run=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
            model=teacher.model_id(precision, config.flip),
            device=device,
            precision=precision,
            actors=config.actors or max(1, slots),
            image_size=teacher.image_size,
        )
        self.table = create_table(config.table, teacher.classes)
        self.committer = Committer(self.table, self.plan.model, self.plan.run)
        self.ledger = Ledger(read_keys(self.table, self.plan.model), config.max_attempts)
        self.listing: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.already = 0
        self.by_others = 0
        self.pending: list[WrittenFile] = []
        self.committed_at = self.reported_at = self.started_at = time.monotonic()
        storage.write_json(storage.join(config.table, "_runs", self.plan.run, "config.json"), config.model_dump())
        log.info(
            "run %s: model %s on %s, table holds %d of its rows",
            self.plan.run,
            self.plan.model,
            device,
            self.ledger.rows,
        )

    def go(self) -> None:
        """Labels wave after wave; what is finished is committed even when a wave fails."""
        from ray_fer.labeling.graph import label_units

        try:
            for wave in _waves(self._new_pages(), self.plan.unit_rows, self.plan.actors):
                for written in label_units(wave, self.plan):
                    self.statuses.update({status: count or 0 for status, count in written.pop("counts").items()})
                    self.pending.append(WrittenFile(**written))
                    self._commit(self.config.commit_seconds)
                    self._report(PROGRESS_SECONDS)
                    self._check_failures()
        finally:
            self._commit(0)
        self._report(0)

    def _new_pages(self) -> Iterator[pa.Table]:
        for page in list_sources(self.config.source, self.listing):
            new = self.ledger.claim(page)
            self.already += page.num_rows - new.num_rows
            if new.num_rows:
                yield new

    def _commit(self, patience: float) -> None:
        if self.pending and time.monotonic() - self.committed_at >= patience:
            self.by_others += self.committer.commit(self.pending)
            self.pending = []
            self.committed_at = time.monotonic()

    def _report(self, patience: float) -> None:
        now = time.monotonic()
        if now - self.reported_at >= patience:
            self.reported_at = now
            done = sum(self.statuses.values())
            failed = ", ".join(f"{count} {status}" for status, count in self.statuses.items() if status != OK and count)
            log.info(
                "%d labelled%s, %d listed, %d already there, %.0f images/s, table version %d",
                done,
                f" ({failed})" if failed else "",
                self.listing["listed"],
                self.already,
                done / max(now - self.started_at, 1e-9),
                self.table.version(),
            )

    def _check_failures(self) -> None:
        done = sum(self.statuses.values())
        failed = done - self.statuses[OK]
        if done >= FEWEST_FOR_FAILURE_SHARE and failed > self.config.max_failure_share * done:
            worst, count = max(((s, c) for s, c in self.statuses.items() if s != OK), key=lambda pair: pair[1])
            raise UserError(
                f"max_failure_share={self.config.max_failure_share}: {failed} of {done} images failed ({count} {worst})"
            )

    def summary(self) -> dict[str, Any]:
        """What the run did, for machines."""
        return {
            "run": self.plan.run,
            "model": self.plan.model,
            "table": self.config.table,
            "version": self.table.version(),
            "listed": self.listing["listed"],
            "skipped": self.listing["skipped"],
            "already_labelled": self.already,
            "labelled": sum(self.statuses.values()) - self.by_others,
            "labelled_by_others": self.by_others,
            "statuses": {status: count for status, count in sorted(self.statuses.items()) if count},
        }


def _waves(pages: Iterator[pa.Table], unit_rows: int, actors: int) -> Iterator[list[pa.Table]]:
    """Cuts a stream of pages into waves of units, listing ahead in a thread.

    A wave ends when it is full, when the listing ends, or when some work is there and the listing keeps it waiting.
    """
    ahead: queue.Queue[pa.Table | Exception | None] = queue.Queue(maxsize=64)
    threading.Thread(target=_fill, args=(ahead, pages), daemon=True).start()
    size = FIRST_WAVE_UNITS * unit_rows
    ended = False
    while not ended:
        wave: list[pa.Table] = []
        rows = 0
        deadline = time.monotonic() + WAVE_PATIENCE_SECONDS
        while rows < size:
            try:
                page = ahead.get(timeout=max(0.0, deadline - time.monotonic()) if wave else None)
            except queue.Empty:
                break
            if isinstance(page, Exception):
                raise page
            if page is None:
                ended = True
                break
            wave.append(page)
            rows += page.num_rows
        if wave:
            yield _units(pa.concat_tables(wave), unit_rows, actors)
        size = min(size * 4, LAST_WAVE_UNITS * unit_rows * max(1, actors // 4))


def _fill(ahead: queue.Queue[pa.Table | Exception | None], pages: Iterator[pa.Table]) -> None:
    try:
        for page in pages:
            ahead.put(page)
        ahead.put(None)
    except Exception as error:
        ahead.put(error)


def _units(keys: pa.Table, unit_rows: int, actors: int) -> list[pa.Table]:
    """Cuts keys into units of like size, small enough that every actor gets several."""
    wanted = math.ceil(keys.num_rows / (actors * UNITS_PER_ACTOR))
    rows = min(unit_rows, max(SMALLEST_UNIT_ROWS, wanted))
    return [keys.slice(start, rows).combine_chunks() for start in range(0, keys.num_rows, rows)]
