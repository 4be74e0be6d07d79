"""One teacher's part of a labelling run: what it lacks, its counts, and its files that are not committed yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from ray_fer.labeling import tombstones
from ray_fer.labeling.commit import Committer, Listed
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.progress import Progress, UnitStats
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
        embed: whether what is labelled without an embedding is to be labelled again.

    Attributes:
        ledger: what it has labelled.
        lacking: listed images that it had not labelled.
        by_others: rows that another run committed first.
        pending: files that are written but not committed.
        read_otherwise: images that were read under another identity than the one they were listed with.
        known: images that were labelled already under the identity that they were read with.
        markers: how many markers this run has written, by kind.
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
        """Takes note of a file that a worker has written; ``watch`` tells whether there will be another listing."""
        self.progress.add(stats)
        if stats.read_otherwise:
            self._claim_read(file, stats.read_otherwise, watch)
        # Last: what an interruption finds pending is committed, and needs to be known by then.
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

    def start_listing(self) -> None:
        """To be called before a listing."""
        self.ledger.start_listing()

    def may_lack_markers(self) -> bool:
        """Whether the listing that has ended may have shown objects to be gone, or to be there again."""
        return not self.ledger.all_seen() or bool(self.ledger.markers or self.markers.total())

    def write_markers(self, sources: Sequence[str], started: datetime) -> None:
        """Writes the markers that follow from a complete listing of ``sources``, begun at ``started``."""
        self.markers += tombstones.write_markers(self.committer, sources, self.ledger.look_up, started)

    def marked(self) -> dict[str, int]:
        """Returns how many markers this run has written, by kind."""
        return {name: self.markers[name] for name in tombstones.WRITTEN}

    def commit(self) -> None:
        """Commits what is pending."""
        if self.pending:
            self.by_others += self.committer.commit(self.pending, self._known_in)
            self.pending, self._known_in = [], {}

    def summary(self, listed: int) -> dict[str, Any]:
        """What the teacher did, for machines; ``listed`` images were there."""
        return {
            "teacher": self.teacher,
            "already_labelled": listed - self.lacking + self.known,
            "labelled": self.progress.done - self.by_others - self.known,
            "labelled_by_others": self.by_others,
            **self.marked(),
            **self.progress.predictions(),
        }
