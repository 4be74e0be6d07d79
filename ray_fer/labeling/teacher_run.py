"""One teacher's part of a labelling run: what it lacks, its counts, and its files that are not committed yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from ray_fer.labeling import gone
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.progress import Progress, Stats
from ray_fer.labeling.table import MARKS, WrittenFile, scan_keys


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
        marks: how many objects this run has marked, by kind.
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
        self.marks: Counter[str] = Counter()

    def add(self, file: WrittenFile, stats: Stats, watch: bool) -> None:
        """Takes note of a file that a worker has written."""
        self.progress.add(stats)
        self.pending.append(file)
        if watch:
            self.overwritten += stats["overwritten"]

    def start_listing(self) -> None:
        """To be called before a listing, which shall find what was read under another identity than listed."""
        if self.overwritten:
            uri, identity = zip(*self.overwritten, strict=True)
            self.ledger.claim(pa.table({"uri": pa.array(uri), "identity": pa.array(identity)}))
            self.overwritten = []
        self.ledger.start_listing()

    def may_lack_marks(self) -> bool:
        """Whether the listing that has ended may have shown objects to be gone, or to be there again."""
        return not self.ledger.all_met() or bool(self.ledger.marks or self.marks.total())

    def mark_gone(self, sources: Sequence[str], started: datetime) -> None:
        """Writes the marks that follow from a complete listing of ``sources`` that began at ``started``; see `gone`."""
        self.marks += gone.mark(self.committer, sources, self.ledger.look_up, started)

    def marked(self) -> dict[str, int]:
        """The marks that this run has written, by kind."""
        return {name: self.marks[name] for name in MARKS}

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
            **self.marked(),
            **self.progress.predictions(),
        }
