"""One teacher's part of a labelling run: what it lacks, its counts, and its files that are not committed yet."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.progress import Progress, Stats
from ray_fer.labeling.table import WrittenFile, scan_keys


class TeacherRun:
    """The part of one teacher.

    Args:
        table: of the run; its teachers share it.
        teacher: where the model is.
        model: its id.
        run: of which this is a part.
        max_attempts: rows with a transient failure after which an image is left alone.
        progress: of this teacher alone.

    Attributes:
        ledger: what it has labelled.
        lacking: listed images that it had not labelled.
        by_others: rows that another run committed first.
        pending: files that are written but not committed.
        overwritten: (uri, identity) of what was read under another identity than it was listed with.
    """

    def __init__(
        self, table: DeltaTable, teacher: str, model: str, run: str, max_attempts: int, progress: Progress
    ) -> None:
        self.teacher, self.model, self.progress = teacher, model, progress
        self.committer = Committer(table, model, run)
        self.ledger = Ledger(scan_keys(table, model), max_attempts)
        self.lacking = 0
        self.by_others = 0
        self.pending: list[WrittenFile] = []
        self.overwritten: list[tuple[str, str]] = []

    def add(self, file: WrittenFile, stats: Stats, watch: bool) -> None:
        """Takes note of a file that a worker has written."""
        self.progress.add(stats)
        self.pending.append(file)
        if watch:
            self.overwritten += stats["overwritten"]

    def claim_overwritten(self) -> None:
        """Lets the next listing find what was read under another identity than it was listed with."""
        if self.overwritten:
            uri, identity = zip(*self.overwritten, strict=True)
            self.ledger.claim(pa.table({"uri": pa.array(uri), "identity": pa.array(identity)}))
            self.overwritten = []

    def commit(self) -> None:
        """Commits what is pending."""
        if self.pending:
            self.by_others += self.committer.commit(self.pending)
            self.pending = []

    def summary(self, listed: int) -> dict[str, Any]:
        """What the teacher did, for machines; ``listed`` images were there."""
        return {
            "teacher": self.teacher,
            "already_labelled": listed - self.lacking,
            "labelled": self.progress.done - self.by_others,
            "labelled_by_others": self.by_others,
            **self.progress.predictions(),
        }
