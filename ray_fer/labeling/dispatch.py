"""The driver's threads: one lists, one hands units of work to the workers, and one commits while the driver waits.

Units go the following way: listing thread → bounded backlog → feeding thread → `graph.UnitQueue` → Ray Data's read task
→ labelling actors. The dispatcher lets out a few units per worker, so that no worker waits. The driver's memory
therefore does not grow with the bucket. A unit is cut to last `UNIT_SECONDS` at the speed measured so far, which bounds
what a kill can cost.

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
# A listing that takes longer is that of a large bucket, for which the start of Ray does not matter.
PATIENCE_SECONDS = 10.0
_COUNT_SECONDS = 5.0


class ListingError(UserError):
    """Reports that the listing has ended early; the images that it had yielded are labelled."""


class Dispatcher:
    """Cuts units of work from the listed pages, and keeps track of those that are not finished.

    Args:
        pages: Tables of new keys, which a thread of the dispatcher iterates over.
        count_workers: Returns how many processes can take units at the same time in the cluster as it is now.
        unit_rows: Largest number of images in a unit.

    Attributes:
        error: What has ended the listing or the feeding thread, or None.
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
        """Waits for the first page of new keys, or for the end of the listing.

        Returns:
            Number of rows that wait, which is 0 if the listing has ended without a new key.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._backlog or self._listed)
            if self.error and not self._backlog:
                raise self.error
            return self._backlog_rows()

    def take_few(self, most: int, patience: float) -> pa.Table | None:
        """Takes all keys of a short listing as unit 0.

        Args:
            most: Largest number of rows to take.
            patience: Seconds to wait for the end of the listing.

        Returns:
            The keys, or None if the listing has no new key, has more than ``most``, or has not ended in time.
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
        """Starts the thread that calls ``put`` with every unit, and with None after the last one."""
        self._feeder = threading.Thread(target=self._feed, args=(put,), daemon=True)
        self._feeder.start()

    def stop(self) -> None:
        """Lets no more units out, and waits for the feeding thread, which must not call Ray after its shutdown."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._feeder:
            self._feeder.join()

    def next_unit(self, number: int) -> pa.Table | None:
        """Waits until another unit may go out, and returns its keys, or None after the last unit."""
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
        """Records a finished unit.

        Args:
            number: Number of the unit.
            rows: Images in it.
            seconds: Time from reading to writing, for the size of the next units.

        Returns:
            Whether this is the first result of the unit; Ray may run a unit twice.
        """
        with self._changed:
            if number not in self._out:
                return False
            self._out.remove(number)
            self._rate = rows / max(seconds, 1e-3)
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Checks that all units are finished, after the stream of results has ended.

        Raises:
            ListingError: If the listing has failed.
            RuntimeError: If the cluster has lost units.
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
        except BaseException as error:  # whatever has failed, no other thread may wait for this one for ever
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
        # If the listing is slower than the workers, a small unit now is better than an idle worker.
        idle = len(self._out) < self._workers and bool(self._backlog)
        return idle or self._backlog_rows() >= self._wanted()

    def _wanted(self) -> int:
        return unit_size(self._rate, self._backlog_rows() if self._listed else None, self._workers, self.unit_rows)

    def _backlog_rows(self) -> int:
        return sum(page.num_rows for page in self._backlog)


def unit_size(rate: float, left: int | None, workers: int, most: int) -> int:
    """Returns the number of rows of the next unit.

    A unit lasts `UNIT_SECONDS`. Near the end of the work units are smaller, so that all workers finish together. A unit
    has at least `SMALLEST_UNIT_ROWS` rows, unless ``most`` is smaller.

    Args:
        rate: Images per second of one worker, 0 if unknown.
        left: Images that are not in any unit yet, or None while the listing continues.
        workers: Number of workers that share these images.
        most: Largest number of rows in a unit.
    """
    rows = rate * UNIT_SECONDS
    if left is not None:
        rows = min(rows, math.ceil(left / (2 * workers)))
    return min(most, max(SMALLEST_UNIT_ROWS, int(rows)))


def label_few(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
    """Labels a short listing as one unit in this process, if Ray would be started for it alone and find no GPU.

    Args:
        dispatcher: Dispatcher of the run.
        plan: Plan of the run.

    Yields:
        The result. There is none if the config asks for workers, or if the listing has no new key or too many.

    Raises:
        UserError: If a teacher cannot be loaded, or the table cannot be written.
    """
    if plan.device != "cpu" or plan.config.workers is not None or not cluster.is_local():
        return
    keys = dispatcher.take_few(min(FEW_IMAGES, plan.unit_rows), PATIENCE_SECONDS)
    if keys is not None:
        # The decoding is isolated, because nobody could tell which object had killed this process.
        result = Labeller(plan).label(WorkUnit(0, keys), isolated=True)
        dispatcher.finished(0, result.images, result.seconds)
        yield result


@contextlib.contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Calls ``act`` every ``seconds`` in another thread while the block runs.

    The context manager waits for a call that has begun before it exits.

    Args:
        seconds: Pause between two calls.
        act: Function without arguments, which must not raise.
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
