import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from ray_fer.data.sources import PAGE_SCHEMA
from ray_fer.errors import UserError
from ray_fer.labeling.dispatch import (
    SMALLEST_UNIT_ROWS,
    UNIT_SECONDS,
    UNITS_PER_WORKER,
    Dispatcher,
    every,
    unit_size,
)
from ray_fer.labeling.work import WorkUnit


def page(first: int, rows: int) -> pa.Table:
    numbers = range(first, first + rows)
    columns = [[f"/in/{n}.jpg" for n in numbers], ["1-1"] * rows, [1] * rows, ["/in"] * rows]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=PAGE_SCHEMA)


def drain(dispatcher: Dispatcher, seconds_per_row: float = 0.001) -> list[pa.Table]:
    units: list[pa.Table] = []
    while (keys := dispatcher.next_unit(len(units))) is not None:
        assert dispatcher.finished(len(units), keys.num_rows, keys.num_rows * seconds_per_row)
        units.append(keys)
    return units


def test_every_key_is_in_one_unit_in_the_listed_order() -> None:
    pages = [page(0, 700), page(700, 1), page(701, 4300)]
    units = drain(Dispatcher(iter(pages), count_workers=lambda: 2, unit_rows=1000))
    assert pa.concat_tables(units).equals(pa.concat_tables(pages).combine_chunks())
    assert units[0].num_rows == SMALLEST_UNIT_ROWS
    assert max(unit.num_rows for unit in units) == 1000
    assert units[-2].num_rows < 1000  # the workers finish together


def test_so_many_units_are_out_and_no_more() -> None:
    dispatcher = Dispatcher(iter([page(0, 2000)]), count_workers=lambda: 2, unit_rows=100)
    for number in range(2 * UNITS_PER_WORKER):
        assert dispatcher.next_unit(number) is not None
    cut: list[pa.Table | None] = []
    thread = threading.Thread(target=lambda: cut.append(dispatcher.next_unit(99)))
    thread.start()
    thread.join(timeout=0.2)
    assert thread.is_alive()
    assert dispatcher.finished(3, 64, 1.0)
    thread.join(timeout=10)
    assert len(cut) == 1
    with pytest.raises(RuntimeError, match="6 units were lost on the cluster; run again"):
        dispatcher.close()


def test_a_unit_counts_once() -> None:
    dispatcher = Dispatcher(iter([page(0, 10)]), count_workers=lambda: 1, unit_rows=100)
    assert dispatcher.next_unit(0) is not None
    assert dispatcher.finished(0, 10, 1.0)
    assert not dispatcher.finished(0, 10, 1.0)
    assert dispatcher.next_unit(1) is None
    dispatcher.close()


def test_a_slow_listing_leaves_no_worker_idle() -> None:
    more = threading.Event()

    def pages() -> Iterator[pa.Table]:
        yield page(0, 3)
        more.wait()
        yield page(3, 2)

    dispatcher = Dispatcher(pages(), count_workers=lambda: 2, unit_rows=100)
    assert dispatcher.wait_for_work() == 3
    first = dispatcher.next_unit(0)
    assert first is not None
    assert first.num_rows == 3
    more.set()
    second = dispatcher.next_unit(1)
    assert second is not None
    assert second.num_rows == 2


def test_what_was_listed_before_an_error_is_labelled_first() -> None:
    def pages() -> Iterator[pa.Table]:
        yield page(0, 5)
        raise UserError("source=s3://x: cannot be listed")

    dispatcher = Dispatcher(pages(), count_workers=lambda: 1, unit_rows=100)
    assert dispatcher.wait_for_work() == 5
    assert [unit.num_rows for unit in drain(dispatcher)] == [5]
    with pytest.raises(UserError, match="cannot be listed"):
        dispatcher.close()


def test_nothing_new_and_nothing_there() -> None:
    assert Dispatcher(iter([]), count_workers=lambda: 1, unit_rows=1).wait_for_work() == 0

    def missing() -> Iterator[pa.Table]:
        raise UserError("source=/x: no image there")
        yield

    with pytest.raises(UserError, match="no image there"):
        Dispatcher(missing(), count_workers=lambda: 1, unit_rows=1).wait_for_work()


def test_the_listing_waits_for_the_workers() -> None:
    drawn = 0

    def pages() -> Iterator[pa.Table]:
        nonlocal drawn
        for number in range(1000):
            drawn += 1
            yield page(number, 1)

    dispatcher = Dispatcher(pages(), count_workers=lambda: 1, unit_rows=1)
    dispatcher.wait_for_work()
    before = -1
    while before != drawn:
        before = drawn
        time.sleep(0.1)
    assert drawn < 100
    assert len(drain(dispatcher)) == 1000


def test_unit_size() -> None:
    assert unit_size(0, None, 4, 2048) == SMALLEST_UNIT_ROWS
    assert unit_size(100, None, 4, 2048) == 100 * UNIT_SECONDS
    assert unit_size(10_000, None, 4, 2048) == 2048
    assert unit_size(10_000, 1600, 4, 2048) == 200
    assert unit_size(10_000, 16, 4, 2048) == SMALLEST_UNIT_ROWS
    assert unit_size(10_000, 16, 4, 8) == 8


def test_a_unit_survives_its_block() -> None:
    keys = page(5, 7)
    block = WorkUnit(3, keys).to_block()
    assert block.num_rows == 1
    assert WorkUnit.from_block(block) == WorkUnit(3, keys)


def test_a_stopped_stream_lets_nothing_out() -> None:
    dispatcher = Dispatcher(iter([page(0, 2000)]), count_workers=lambda: 1, unit_rows=10)
    assert dispatcher.next_unit(0) is not None
    dispatcher.stop()
    assert dispatcher.next_unit(1) is None


def test_a_listing_that_breaks_is_not_waited_for() -> None:
    def pages() -> Iterator[pa.Table]:
        yield page(0, 5)
        raise BaseException("not even an Exception")

    dispatcher = Dispatcher(pages(), count_workers=lambda: 1, unit_rows=100)
    assert dispatcher.wait_for_work() == 5
    assert [unit.num_rows for unit in drain(dispatcher)] == [5]
    with pytest.raises(BaseException, match="not even an Exception"):
        dispatcher.close()


def test_what_is_little_is_taken_at_once() -> None:
    dispatcher = Dispatcher(iter([page(0, 30), page(30, 20)]), count_workers=lambda: 2, unit_rows=100)
    keys = dispatcher.take_few(50, patience=10)
    assert keys is not None
    assert keys["uri"].to_pylist() == page(0, 50)["uri"].to_pylist()
    assert dispatcher.finished(0, 50, 1.0)
    assert dispatcher.wait_for_work() == 0
    dispatcher.close()


def test_what_is_much_or_unknown_is_left() -> None:
    assert Dispatcher(iter([page(0, 51)]), count_workers=lambda: 2, unit_rows=100).take_few(50, patience=10) is None
    assert Dispatcher(iter([]), count_workers=lambda: 2, unit_rows=100).take_few(50, patience=10) is None
    more = threading.Event()

    def pages() -> Iterator[pa.Table]:
        yield page(0, 3)
        more.wait()

    dispatcher = Dispatcher(pages(), count_workers=lambda: 2, unit_rows=100)
    assert dispatcher.take_few(50, patience=0.01) is None
    more.set()
    assert drain(dispatcher)[0].num_rows == 3


def test_what_is_due_is_done_again_and_again_and_not_afterwards() -> None:
    calls = 0
    enough = threading.Event()

    def act() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            enough.set()

    with every(0.001, act):
        assert enough.wait(30)
    ended = calls
    assert not [thread for thread in threading.enumerate() if thread.name == "every"]
    assert calls == ended
