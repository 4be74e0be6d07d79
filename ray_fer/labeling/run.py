"""One run of labelling: list, compare with the ledger, label and commit, as one stream.

The driver holds 24 bytes per labelled image and model, a few pages of keys, and the descriptions of files that are not
committed yet. Several teachers share the listing, the units and the decoded images; each has its own ledger and its own
commits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from ray_fer import cluster, interruption, storage
from ray_fer.data.sources import list_sources
from ray_fer.data.sources.uris import FACE_FRAGMENT
from ray_fer.errors import UserError, one_line
from ray_fer.labeling import failures, tombstones
from ray_fer.labeling.clock import every
from ray_fer.labeling.config import PseudoLabelConfig
from ray_fer.labeling.dispatch import Dispatcher, ListingError
from ray_fer.labeling.in_process import label_few, may_label_here
from ray_fer.labeling.ledger import claim_missing
from ray_fer.labeling.maintenance import compact
from ray_fer.labeling.progress import Progress, joint_stats
from ray_fer.labeling.table import TRANSIENT, create_table, table_embedding
from ray_fer.labeling.teacher_run import TeacherRun
from ray_fer.labeling.work import UnitResult
from ray_fer.labeling.worker import Plan
from ray_fer.models.model_id import resolve_precision
from ray_fer.models.teacher import Teacher
from ray_fer.resources import find_device

if TYPE_CHECKING:  # Ray's metrics take longer to import than a few images to label
    from ray_fer.labeling.metrics import Metrics

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
TICK_SECONDS = 1.0
# So many images, and most of all, that are read under another identity than the listed one are no coincidence.
FEWEST_READ_OTHERWISE = 5
READ_OTHERWISE = (
    "images were read under another identity than the listed one: a gateway or proxy before the store seems to rewrite "
    "ETags; rows keep both, so that each image is labelled once"
)
WATCH_BACK_OFF = 16


class LabelingRun:
    """The counts, the table and the teachers' parts of one run.

    Args:
        config: see ``conf/pseudo_label.yaml``; its URIs are normalised.
        teachers: that label, opened from ``config.teacher``.

    Raises:
        UserError: the table cannot be made or written.
    """

    def __init__(self, config: PseudoLabelConfig, teachers: Sequence[Teacher]) -> None:
        device = find_device(config.device)
        precision = resolve_precision(config.precision, device == "cuda")
        slots = cluster.accelerators() if device == "cuda" else cluster.cpus()
        self.config = config
        self.plan = Plan(
            config,
            run=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
            models=tuple(teacher.model_id(precision, config.flip, config.detects_faces) for teacher in teachers),
            device=device,
            precision=precision,
            actors=config.workers or max(1, slots),
            image_sizes=tuple(teacher.image_size for teacher in teachers),
        )
        self.table = create_table(config.table, teachers[0].classes)
        self.progress = self._progress(teachers[0])
        self.parts = [
            TeacherRun(
                self.table,
                teacher.uri,
                model,
                self.plan.run,
                config.max_attempts,
                self._progress(teacher),
                config.embed,
            )
            for teacher, model in zip(teachers, self.plan.models, strict=True)
        ]
        self.listing: Counter[str] = Counter()
        self.listed_all = False
        self.already = 0
        self.committed_at = self.reported_at = time.monotonic()
        self.metrics: Metrics | None = None  # until Ray is needed
        self.warning: str | None = None
        self._lock = threading.Lock()
        self.write("config.json", config.model_dump())
        for part in self.parts:
            held = part.ledger.rows
            log.info("run %s: model %s on %s, table holds %d of its rows", self.plan.run, part.model, device, held)
        for model, facts in self.embeddings().items():
            log.info("embeddings of model %s: %s", model, ", ".join(f"{key} {value}" for key, value in facts.items()))

    def embeddings(self) -> dict[str, dict[str, Any]]:
        """What the embeddings are that this run keeps, by model, and how many bytes each takes before compression."""
        wanted = self.plan.models if self.config.embed else ()
        held = {model: table_embedding(self.table, model) or {} for model in wanted}
        return {model: facts | {"bytes_per_row": 2 * facts["dimension"]} for model, facts in held.items()}

    def _progress(self, teacher: Teacher) -> Progress:
        return Progress(teacher.classes, self.config.selection.threshold, self.plan.actors, self.plan.device)

    def compact(self) -> None:
        """Joins the small files that the run has left; every row is committed, so a failure is only a warning."""
        if not self.progress.done and not any(part.markers.total() for part in self.parts):
            return
        for part in self.parts:
            try:
                compact(self.table, part.model)
            except (OSError, DeltaError, botocore.exceptions.BotoCoreError) as error:
                log.warning("small files were not joined: %s", one_line(error))

    def write(self, name: str, document: Any) -> str:
        """Writes a text or JSON document about the run beside the table, and returns its URI.

        Raises:
            UserError: nothing can be written there.
        """
        uri = storage.join(self.config.table, "_runs", self.plan.run, name)
        try:
            if isinstance(document, str):
                storage.write_bytes(uri, document.encode())
            else:
                storage.write_json(uri, document)
        except (OSError, botocore.exceptions.BotoCoreError) as error:
            raise UserError(f"table={self.config.table}: cannot be written ({one_line(error)})") from None
        return uri

    def go(self) -> None:
        """Labels what is new, and with ``watch`` what arrives until the job is stopped."""
        try:
            self._label_new()
            if self.config.watch is not None:
                self._watch(self.config.watch)
        except KeyboardInterrupt:
            if self.config.watch is None:
                raise
            interruption.answer()
            log.info("stopped watching")

    def _watch(self, seconds: float) -> None:
        log.info("watching the sources, every %g seconds", seconds)
        idle = 0
        while True:
            time.sleep(seconds * min(2**idle, WATCH_BACK_OFF))
            before = self.progress.done
            try:
                self._label_new()
            except ListingError as error:
                log.warning("%s; looking again later", one_line(error))
            idle = 0 if self.progress.done > before else idle + 1

    def _label_new(self) -> None:
        """Labels what is new; what is finished is committed even when something fails."""
        self.listed_all = False
        for part in self.parts:
            part.start_listing()
        before, unlisted, started = self.progress.done, self.listing["unlisted"], datetime.now(UTC)
        try:
            # A run that fails closes the stream at once: its threads must not outlive Ray.
            with every(TICK_SECONDS, self._commit_meanwhile), contextlib.closing(self._results()) as results:
                for result in results:
                    with self._lock:
                        self._add(result)
        finally:
            with self._lock:
                self._commit(0)
        if self.progress.done > before:
            self._report(0)
        self._look_at_identities()
        self._write_markers(started, self.listing["unlisted"] - unlisted)

    def _count_workers(self) -> int:
        """Returns how many processes take units at the same time, as the cluster stands."""
        return self.plan.actors + (cluster.cpus() if self.plan.device == "cuda" else 0)

    def _add(self, result: UnitResult) -> None:
        self.progress.add(joint_stats(result.statuses, list(result.stats.values())))
        if self.metrics:
            self.metrics.add(result.statuses, result.stats, self.progress, self._left())
        for part in self.parts:
            if part.model in result.files:
                part.add(result.files[part.model], result.stats[part.model], self.config.watch is not None)
        self._commit(self.config.commit_seconds)
        self._report(PROGRESS_SECONDS)
        failures.check(self.progress, self.config.max_failure_share, self.config.max_failures)

    def _commit_meanwhile(self) -> None:
        """Commits what is due although no unit arrives."""
        with self._lock:
            try:
                self._commit(self.config.commit_seconds)
            except Exception as error:  # the run's own thread tries again, and stops if that fails too
                log.warning("not committed yet: %s", one_line(error))

    def _results(self) -> Generator[UnitResult, None, None]:
        """Labels what is new, here or over Ray.

        Raises:
            UserError: when a teacher cannot be loaded, or the listing fails.
        """
        dispatcher = Dispatcher(self._new_pages(), self._count_workers, self.plan.unit_rows)
        try:
            if may_label_here(self.plan):
                yield from label_few(dispatcher, self.plan)
            if dispatcher.wait_for_work():
                from ray_fer.labeling.graph import label_on_cluster
                from ray_fer.labeling.metrics import Metrics

                cluster.connect()
                self.metrics = self.metrics or Metrics(self.plan.run)
                yield from label_on_cluster(dispatcher, self.plan)
        finally:
            dispatcher.stop()
        dispatcher.close()

    def _write_markers(self, started: datetime, unlisted: int) -> None:
        """Marks what the listing that began at ``started`` has shown to be gone, or to be there again."""
        parts = [part for part in self.parts if part.may_lack_markers()]
        if parts and unlisted:
            log.warning("nothing is marked as gone: %d places could not be listed to their end", unlisted)
            return
        for part in parts:
            try:
                part.write_markers(tombstones.complete_sources(self.config.source), started)
            except (OSError, DeltaError, botocore.exceptions.BotoCoreError, pl.exceptions.PolarsError) as error:
                log.warning("nothing is marked as gone, the next run tries again: %s", one_line(error))

    def _new_pages(self) -> Iterator[pa.Table]:
        for page in list_sources(self.config.source, self.listing):
            if self.config.detects_faces:
                check_no_faces(page)
            new, lacking = claim_missing([part.ledger for part in self.parts], page)
            self.already += page.num_rows - new.num_rows
            for part, count in zip(self.parts, lacking, strict=True):
                part.lacking += count
            if new.num_rows:
                yield new
        self.listed_all = True

    def _left(self) -> int | None:
        if not self.listed_all:
            return None
        return self.listing["listed"] - self.already - self.progress.done

    def _commit(self, patience: float) -> None:
        pending = any(part.pending for part in self.parts)
        if pending and time.monotonic() - self.committed_at >= patience:
            for part in self.parts:
                part.commit()
            self.committed_at = time.monotonic()

    def _report(self, patience: float) -> None:
        now = time.monotonic()
        if now - self.reported_at >= patience:
            self.reported_at = now
            table = f"table version {self.table.version()}"
            log.info("%s, %d already there, %s", self.progress.line(self._left()), self.already, table)

    def check_outcome(self) -> None:
        """Raises `UserError` where too many images have failed; see `failures.check_outcome`."""
        labelled = sum(part.ledger.successes for part in self.parts)
        failed = 0 if labelled else self.already
        failures.check_outcome(self.progress, self.config.max_failure_share, labelled, failed)

    def _look_at_identities(self) -> None:
        """Warns once where listings systematically tell another identity than reads do."""
        read = self.progress.done - sum(self.progress.statuses[status] for status in TRANSIENT)
        others = self._read_otherwise()
        if not self.warning and others >= FEWEST_READ_OTHERWISE and others > read / 2:
            self.warning = f"{others} of {read} {READ_OTHERWISE}"
            log.warning(self.warning)

    def _read_otherwise(self) -> int:
        return max(part.read_otherwise for part in self.parts)

    def summary(self) -> dict[str, Any]:
        """What the run did, for machines."""
        part, *others = self.parts
        listed = self.listing["listed"]
        mine: dict[str, Any] = {"model": part.model}
        counts = {
            "labelled": self.progress.done - part.by_others - part.known,
            "labelled_by_others": part.by_others,
            **part.marked(),
        }
        if others:
            # Another run may have been faster with one teacher's row of an image alone, so it counts for each.
            mine = {"models": {each.model: each.summary(listed) for each in self.parts}}
            counts = {"labelled": self.progress.done}
        return {
            "run": self.plan.run,
            **mine,
            "table": self.config.table,
            "version": self.table.version(),
            "listed": listed,
            "skipped": self.listing["skipped"],
            "already_labelled": self.already + (0 if others else part.known),
            **counts,
            "read_otherwise": self._read_otherwise(),
            **({"warning": self.warning} if self.warning else {}),
            **({"embeddings": self.embeddings()} if self.config.embed else {}),
            "seconds": round(self.progress.seconds, 1),
            **self.progress.to_json(),
        }


def check_no_faces(page: pa.Table) -> None:
    """Raises `UserError` where ``page`` lists a face: the ledger could not distinguish it from its picture."""
    faces = page["uri"].filter(pc.match_substring_regex(page["uri"], FACE_FRAGMENT))
    if len(faces):
        raise UserError(f"faces=detect: {faces[0].as_py()} is a face already; faces=none labels it")
