"""The driver's threads: one lists, one hands units of work to the workers, and one commits while the driver waits.

Units go the following way: listing thread → bounded backlog → feeding thread → `graph.UnitQueue` → Ray Data's read task
→ labelling actors. The dispatcher lets out just so many units that no worker waits. The driver's memory therefore does
not grow with the bucket. A unit is cut to last `UNIT_SECONDS` at the speed measured so far, which bounds what a kill
can cost.

A little work is done in the driver's own process, because Ray alone takes several times as long to start.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pyarrow as pa

from ray_fer import cluster
from ray_fer.errors import UserError
from ray_fer.labeling.work import UnitResult, WorkUnit
from ray_fer.labeling.worker import Labeller, Plan

UNIT_SECONDS = 5.0
SMALLEST_UNIT_ROWS = 64
PAGES_AHEAD = 64
UNITS_PER_WORKER = 3
FEW_IMAGES = 512
# A listing that goes on for longer is that of a large bucket, for which Ray's start does not matter.
PATIENCE_SECONDS = 10.0
_COUNT_SECONDS = 5.0


class ListingError(UserError):
    """The listing has ended early; what it had yielded is labelled."""


class Dispatcher:
    """The driver's side: cuts units from the pages and keeps count of those that are out.

    Args:
        pages: tables of new keys, drawn in a thread of their own.
        count_workers: how many take units at the same time, as the cluster stands.
        unit_rows: the largest number of images in a unit.
    """

    def __init__(self, pages: Iterator[pa.Table], count_workers: Callable[[], int], unit_rows: int) -> None:
        self.unit_rows = unit_rows
        self.error: BaseException | None = None
        self._count_workers = count_workers
        self._workers = count_workers()
        self._backlog: deque[pa.Table] = deque()
        self._listed = False
        self._stopped = False
        self._feeder: threading.Thread | None = None
        self._rate = 0.0
        self._out: set[int] = set()
        self._changed = threading.Condition()
        threading.Thread(target=self._list, args=(pages,), daemon=True).start()

    def wait_for_work(self) -> int:
        """Waits for the first page of new keys; the rows that are there then, 0 where the listing ended without any."""
        with self._changed:
            self._changed.wait_for(lambda: self._backlog or self._listed)
            if self.error and not self._backlog:
                raise self.error
            return self._backlog_rows()

    def take_few(self, most: int, patience: float) -> pa.Table | None:
        """Everything there is as unit 0; None where it is nothing, or more than ``most``, or still unknown.

        Args:
            most: rows.
            patience: seconds to wait for the end of the listing.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._listed or self._backlog_rows() > most, timeout=patience)
            if not self._listed or not self._backlog or self._backlog_rows() > most:
                return None
            self._out.add(0)
            keys = pa.concat_tables(self._backlog).combine_chunks()
            self._backlog.clear()
            return keys

    def feed(self, put: Callable[[WorkUnit | None], None]) -> None:
        """Starts the thread that hands every unit to ``put``, and None after the last."""
        self._feeder = threading.Thread(target=self._feed, args=(put,), daemon=True)
        self._feeder.start()

    def stop(self) -> None:
        """Lets no more units out, and waits for the feeding thread: it must not be left with a Ray that is gone."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._feeder:
            self._feeder.join()

    def next_unit(self, number: int) -> pa.Table | None:
        """Waits until another unit may go out, and cuts it; None after the last."""
        with self._changed:
            while not self._changed.wait_for(self._can_cut, timeout=_COUNT_SECONDS):
                self._workers = self._count_workers()
            rows = self._wanted()
            if self._stopped or not self._backlog:
                return None
            taken: list[pa.Table] = []
            while rows and self._backlog:
                page = self._backlog.popleft()
                if page.num_rows > rows:
                    self._backlog.appendleft(page.slice(rows))
                    page = page.slice(0, rows)
                rows -= page.num_rows
                taken.append(page)
            self._out.add(number)
            self._changed.notify_all()
            return pa.concat_tables(taken).combine_chunks()

    def finished(self, number: int, rows: int, seconds: float) -> bool:
        """Takes note of a finished unit; False when it was finished before, as Ray may run a unit twice."""
        with self._changed:
            if number not in self._out:
                return False
            self._out.remove(number)
            self._rate = rows / max(seconds, 1e-3)
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """To be called when Ray Data's stream has ended.

        Raises:
            ListingError: if that is what ended it.
            RuntimeError: when units were lost.
        """
        if self.error:
            raise self.error
        if self._out:
            raise RuntimeError(f"{len(self._out)} units were lost on the cluster; run again to label what they held")

    def _list(self, pages: Iterator[pa.Table]) -> None:
        try:
            for page in pages:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or len(self._backlog) < PAGES_AHEAD)
                    if self._stopped:
                        return
                    self._backlog.append(page)
                    self._changed.notify_all()
        except UserError as error:
            self.error = ListingError(*error.args)
        except BaseException as error:  # whatever it is, nobody may wait for this thread for ever
            self.error = error
        with self._changed:
            self._listed = True
            self._changed.notify_all()

    def _feed(self, put: Callable[[WorkUnit | None], None]) -> None:
        number = 0
        try:
            while (keys := self.next_unit(number)) is not None:
                put(WorkUnit(number, keys))
                number += 1
        except BaseException as error:
            self.error = error
        finally:
            put(None)

    def _can_cut(self) -> bool:
        if self._stopped:
            return True
        if len(self._out) >= self._workers * UNITS_PER_WORKER:
            return False
        if self._listed:
            return True
        # A listing slower than the workers: a small unit now is better than an idle worker.
        idle = len(self._out) < self._workers and bool(self._backlog)
        return idle or self._backlog_rows() >= self._wanted()

    def _wanted(self) -> int:
        return unit_size(self._rate, self._backlog_rows() if self._listed else None, self._workers, self.unit_rows)

    def _backlog_rows(self) -> int:
        return sum(page.num_rows for page in self._backlog)


def unit_size(rate: float, left: int | None, workers: int, most: int) -> int:
    """Rows of the next unit.

    Args:
        rate: images per second of one worker; 0 while unknown.
        left: images that are not in any unit yet; None while the listing goes on.
        workers: that share them.
        most: never more than this.

    Returns:
        What lasts `UNIT_SECONDS`; near the end less, so that all workers finish together; at least
        `SMALLEST_UNIT_ROWS`, as far as ``most`` allows.
    """
    rows = rate * UNIT_SECONDS
    if left is not None:
        rows = min(rows, math.ceil(left / (2 * workers)))
    return min(most, max(SMALLEST_UNIT_ROWS, int(rows)))


def may_label_here(plan: Plan) -> bool:
    """Returns whether this process may do what Ray's workers do.

    That is so if Ray would be started for this job and find no GPU, and the config does not ask for workers.
    """
    return plan.device == "cpu" and plan.config.workers is None and cluster.is_local()


def label_few(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
    """Labels everything that ``dispatcher`` has as one unit, if it is little; else yields nothing.

    Raises:
        UserError: when a teacher cannot be loaded, or the table cannot be written.
    """
    keys = dispatcher.take_few(min(FEW_IMAGES, plan.unit_rows), PATIENCE_SECONDS)
    if keys is not None:
        # Isolated, for nobody would be left to tell which object has killed this process.
        result = Labeller(plan).label(WorkUnit(0, keys), isolated=True)
        dispatcher.finished(0, result.images, result.seconds)
        yield result


@contextlib.contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Calls ``act`` every so many seconds in a thread of its own while the block runs; it must not raise.

    The block ends when a call that is going on has ended.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=work, name="every", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
