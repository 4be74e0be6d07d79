"""The part of one teacher in a labelling run: its ledger, its counts and its files that are not committed yet."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import botocore.exceptions
import numpy as np
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from ray_fer.errors import one_line
from ray_fer.labeling import tombstones
from ray_fer.labeling.commit import Committer, Listed
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.maintenance import compact
from ray_fer.labeling.progress import Progress
from ray_fer.labeling.table import WrittenFile, scan_keys
from ray_fer.labeling.work import UnitStats

log = logging.getLogger(__name__)


class TeacherRun:
    """The part of one teacher in a run.

    Args:
        table: Predictions table, which the teachers of a run share.
        teacher: URI of the teacher.
        model: Id of the teacher's model.
        run: Name of the run.
        max_attempts: Number of transient failures after which an image is given up.
        progress: Counts of this teacher.
        embed: Whether a picture that is labelled without an embedding is to be labelled again.

    Attributes:
        ledger: Keys that the teacher has labelled.
        lacking: Number of listed images that the teacher had not labelled.
        by_others: Number of images that another run has committed first.
        pending: Files that are written but not committed.
        read_otherwise: Number of images that were read under another identity than the listed one.
        known: Number of images whose content was labelled already under the identity that was read.
        markers: Number of markers that this run has written, by status.
    """

    def __init__(
        self,
        table: DeltaTable,
        teacher: str,
        model: str,
        run: str,
        max_attempts: int,
        progress: Progress,
        embed: bool = False,
    ) -> None:
        self.teacher, self.model, self.progress = teacher, model, progress
        self.committer = Committer(table, model, run, embed)
        self.ledger = Ledger(scan_keys(table, model, embed), max_attempts)
        self.lacking = 0
        self.by_others = 0
        self.pending: list[WrittenFile] = []
        self.read_otherwise = self.known = 0
        self._known_in: dict[str, set[Listed]] = {}
        self.markers: Counter[str] = Counter()

    def add(self, file: WrittenFile, stats: UnitStats, watch: bool) -> None:
        """Records a file that a worker has written.

        Args:
            file: Written file.
            stats: Description of its rows.
            watch: Whether the run lists the sources again.
        """
        self.progress.add(stats)
        if stats.read_otherwise:
            self._claim_read(file, stats.read_otherwise, watch)
        # This comes last, because an interruption commits the pending files with all that is known about them.
        self.pending.append(file)

    def _claim_read(self, file: WrittenFile, read: Sequence[tuple[str, str, str]], watch: bool) -> None:
        uris, listed_identities, identities = map(pa.array, zip(*read, strict=True))
        keys = pa.table({"uri": uris, "identity": listed_identities})
        new = self.ledger.claim_read(keys, identities, watch)
        self.read_otherwise += sum(listed != "" for _, listed, _ in read)
        self.known += int(np.count_nonzero(~new))
        known = {(uri, listed or None) for (uri, listed, _), fresh in zip(read, new, strict=True) if not fresh}
        if known:
            self._known_in[file.path] = known

    def may_lack_markers(self) -> bool:
        """Returns whether the listing that has ended may have shown objects to be gone, or to have returned."""
        return not self.ledger.all_seen() or bool(self.ledger.markers or self.markers.total())

    def write_markers(self, sources: Sequence[str], started: datetime) -> None:
        """Writes the markers that follow from a complete listing of ``sources`` that began at ``started``.

        A failure is only a warning, because the next run writes the markers.
        """
        try:
            self.markers += tombstones.write_markers(self.committer, sources, self.ledger.look_up, started)
        except (OSError, DeltaError, botocore.exceptions.BotoCoreError, pl.exceptions.PolarsError) as error:
            log.warning("nothing is marked as gone, the next run tries again: %s", one_line(error))

    def marked(self) -> dict[str, int]:
        """Returns the number of markers that this run has written, by status."""
        return {name: self.markers[name] for name in tombstones.WRITTEN}

    def commit(self) -> None:
        """Commits the pending files."""
        if self.pending:
            self.by_others += self.committer.commit(self.pending, self._known_in)
            self.pending, self._known_in = [], {}

    def compact(self) -> None:
        """Joins the model's small files. A failure is only a warning, because all rows are committed."""
        try:
            compact(self.committer.table, self.model)
        except (OSError, DeltaError, botocore.exceptions.BotoCoreError) as error:
            log.warning("small files were not joined: %s", one_line(error))

    def summary(self, listed: int) -> dict[str, Any]:
        """Returns the teacher's part of the summary of a run that has listed ``listed`` images."""
        return {
            "teacher": self.teacher,
            "already_labelled": listed - self.lacking + self.known,
            "labelled": self.progress.done - self.by_others - self.known,
            "labelled_by_others": self.by_others,
            **self.marked(),
            **self.progress.predictions(),
        }
