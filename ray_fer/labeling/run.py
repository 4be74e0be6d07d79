"""A labelling run, which is one stream: list → compare with the ledger → label → commit.

The driver's memory holds 24 bytes per labelled image and model, a few pages of keys, and the descriptions of files that
are not committed yet. Several teachers share the listing, the units and the decoded images. Each has its own ledger and
its own commits.
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
import pyarrow as pa
import pyarrow.compute as pc

from ray_fer import cluster, interruption, storage
from ray_fer.data.sources import list_sources
from ray_fer.data.uris import FACE_FRAGMENT
from ray_fer.errors import UserError, one_line
from ray_fer.labeling.config import PseudoLabelConfig
from ray_fer.labeling.dispatch import Dispatcher, ListingError, every, label_few
from ray_fer.labeling.ledger import claim_missing
from ray_fer.labeling.progress import Progress, check_failures, check_outcome
from ray_fer.labeling.table import TRANSIENT, create_table, table_embedding
from ray_fer.labeling.teacher_run import TeacherRun
from ray_fer.labeling.tombstones import complete_sources
from ray_fer.labeling.work import UnitResult, joint_stats
from ray_fer.labeling.worker import Plan
from ray_fer.models.model_id import resolve_precision
from ray_fer.models.teacher import Teacher
from ray_fer.resources import find_device

if TYPE_CHECKING:  # importing Ray's metrics takes longer than labelling a few images
    from ray_fer.labeling.metrics import Metrics

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
TICK_SECONDS = 1.0
# That many images, if they are also the majority, are not read under another identity than the listed one by chance.
FEWEST_READ_OTHERWISE = 5
READ_OTHERWISE = (
    "images were read under another identity than the listed one: a gateway or proxy before the store seems to rewrite "
    "ETags; rows keep both, so that each image is labelled once"
)
WATCH_BACK_OFF = 16


class LabelingRun:
    """A run of labelling.

    Args:
        config: Config of the job (see ``conf/pseudo_label.yaml``), with normalised URIs.
        teachers: Teachers that label, opened from ``config.teacher``.

    Attributes:
        plan: What the workers need to know.
        table: Predictions table.
        progress: Counts of images that all teachers have labelled.
        teachers: The part of each teacher in the run.
        listing: Counts of `list_sources`.
        listed_all: Whether the current listing has ended.
        already: Number of listed images that no teacher lacks.
        metrics: Metrics for Prometheus, or None as long as the run does not need Ray.
        warning: Warning about identities, for the summary.

    Raises:
        UserError: If the table cannot be created or written.
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
        self.teachers = [
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
        self.metrics: Metrics | None = None
        self.warning: str | None = None
        self._lock = threading.Lock()
        self.write("config.json", config.model_dump())
        for teacher in self.teachers:
            held = teacher.ledger.rows
            log.info("run %s: model %s on %s, table holds %d of its rows", self.plan.run, teacher.model, device, held)
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
        """Joins the small files that the run has written."""
        if self.progress.done or any(teacher.markers.total() for teacher in self.teachers):
            for teacher in self.teachers:
                teacher.compact()

    def write(self, name: str, document: Any) -> str:
        """Writes a document about the run into the table's folder and returns its URI.

        Args:
            name: Name of the file.
            document: Text, or an object to write as JSON.

        Raises:
            UserError: If it cannot be written.
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
        """Labels all new images, and with ``config.watch`` all images that arrive until the job is stopped."""
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
        """Lists the sources once and labels all new images. Finished units are committed even after a failure."""
        self.listed_all = False
        for teacher in self.teachers:
            teacher.ledger.start_listing()
        before, unlisted, started = self.progress.done, self.listing["unlisted"], datetime.now(UTC)
        try:
            # A run that fails closes the stream at once, because the stream's threads must not outlive Ray.
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
        """Returns how many processes can take units at the same time in the cluster as it is now."""
        return self.plan.actors + (cluster.cpus() if self.plan.device == "cuda" else 0)

    def _add(self, result: UnitResult) -> None:
        self.progress.add(joint_stats(result.statuses, list(result.stats.values())))
        if self.metrics:
            self.metrics.add(result.statuses, result.stats, self.progress, self._left())
        for teacher in self.teachers:
            if teacher.model in result.files:
                teacher.add(result.files[teacher.model], result.stats[teacher.model], self.config.watch is not None)
        self._commit(self.config.commit_seconds)
        self._report(PROGRESS_SECONDS)
        check_failures(self.progress, self.config.max_failure_share, self.config.max_failures)

    def _commit_meanwhile(self) -> None:
        """Commits finished units in time even if no further unit arrives."""
        with self._lock:
            try:
                self._commit(self.config.commit_seconds)
            except Exception as error:  # the main thread tries again, and stops if that fails too
                log.warning("not committed yet: %s", one_line(error))

    def _results(self) -> Generator[UnitResult, None, None]:
        """Labels all new images in this process or on a cluster.

        Yields:
            The result of each unit.

        Raises:
            UserError: If a teacher cannot be loaded, or the listing fails.
        """
        dispatcher = Dispatcher(self._new_pages(), self._count_workers, self.plan.unit_rows)
        try:
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
        """Writes markers of objects that the listing begun at ``started`` has shown to be gone, or to have returned.

        Args:
            started: Time at which the listing began.
            unlisted: Number of places that could not be listed completely.
        """
        marked = [teacher for teacher in self.teachers if teacher.may_lack_markers()]
        if marked and unlisted:
            log.warning("nothing is marked as gone: %d places could not be listed to their end", unlisted)
            return
        for teacher in marked:
            teacher.write_markers(complete_sources(self.config.source), started)

    def _new_pages(self) -> Iterator[pa.Table]:
        for page in list_sources(self.config.source, self.listing):
            if self.config.detects_faces:
                check_no_faces(page)
            new, lacking = claim_missing([teacher.ledger for teacher in self.teachers], page)
            self.already += page.num_rows - new.num_rows
            for teacher, count in zip(self.teachers, lacking, strict=True):
                teacher.lacking += count
            if new.num_rows:
                yield new
        self.listed_all = True

    def _left(self) -> int | None:
        if not self.listed_all:
            return None
        return self.listing["listed"] - self.already - self.progress.done

    def _commit(self, patience: float) -> None:
        pending = any(teacher.pending for teacher in self.teachers)
        if pending and time.monotonic() - self.committed_at >= patience:
            for teacher in self.teachers:
                teacher.commit()
            self.committed_at = time.monotonic()

    def _report(self, patience: float) -> None:
        now = time.monotonic()
        if now - self.reported_at >= patience:
            self.reported_at = now
            table = f"table version {self.table.version()}"
            log.info("%s, %d already there, %s", self.progress.line(self._left()), self.already, table)

    def check_outcome(self) -> None:
        """Raises `UserError` if too many images have failed (see `progress.check_outcome`)."""
        labelled = sum(teacher.ledger.successes for teacher in self.teachers)
        failed = 0 if labelled else self.already
        check_outcome(self.progress, self.config.max_failure_share, labelled, failed)

    def _look_at_identities(self) -> None:
        """Warns once if the store systematically lists other identities than those that are read."""
        read = self.progress.done - sum(self.progress.statuses[status] for status in TRANSIENT)
        others = self._read_otherwise()
        if not self.warning and others >= FEWEST_READ_OTHERWISE and others > read / 2:
            self.warning = f"{others} of {read} {READ_OTHERWISE}"
            log.warning(self.warning)

    def _read_otherwise(self) -> int:
        return max(teacher.read_otherwise for teacher in self.teachers)

    def summary(self) -> dict[str, Any]:
        """Returns the summary of the run."""
        teacher, *others = self.teachers
        listed = self.listing["listed"]
        mine: dict[str, Any] = {"model": teacher.model}
        counts = {
            "labelled": self.progress.done - teacher.by_others - teacher.known,
            "labelled_by_others": teacher.by_others,
            **teacher.marked(),
        }
        if others:
            # Another run may commit one teacher's row of an image first, so these counts are per teacher.
            mine = {"models": {each.model: each.summary(listed) for each in self.teachers}}
            counts = {"labelled": self.progress.done}
        return {
            "run": self.plan.run,
            **mine,
            "table": self.config.table,
            "version": self.table.version(),
            "listed": listed,
            "skipped": self.listing["skipped"],
            "already_labelled": self.already + (0 if others else teacher.known),
            **counts,
            "read_otherwise": self._read_otherwise(),
            **({"warning": self.warning} if self.warning else {}),
            **({"embeddings": self.embeddings()} if self.config.embed else {}),
            "seconds": round(self.progress.seconds, 1),
            **self.progress.to_json(),
        }


def check_no_faces(page: pa.Table) -> None:
    """Raises `UserError` if ``page`` lists a face, which the ledger could not distinguish from its picture."""
    faces = page["uri"].filter(pc.match_substring_regex(page["uri"], FACE_FRAGMENT))
    if len(faces):
        raise UserError(f"faces=detect: {faces[0].as_py()} is a face already; faces=none labels it")
