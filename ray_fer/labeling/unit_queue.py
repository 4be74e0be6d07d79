"""The way of units to Ray's workers: a queue beside the driver, and the read task that empties it.

A unit travels as a block of one row, the grain at which Ray Data moves and retries.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class UnitQueue:
    """The queue between the driver and the read task; it also counts how often each unit was begun."""

    def __init__(self) -> None:
        self._units: asyncio.Queue[pa.Table | None] = asyncio.Queue()
        self._begun: Counter[Any] = Counter()
        self._opened = False

    async def open(self) -> None:
        """To be called by the reader. There is never a second one: the queue does not give again what a first one lost.

        Raises:
            RuntimeError: when Ray restarts a reader that died.
        """
        if self._opened:
            raise RuntimeError("the process that hands units to the workers died; run again to label what is left")
        self._opened = True

    async def put(self, unit: pa.Table | None) -> None:
        """Appends a packed unit; None ends the stream."""
        await self._units.put(unit)

    async def get(self) -> pa.Table | None:
        """The next packed unit, as soon as there is one."""
        return await self._units.get()

    async def begin(self, work: Any) -> int:
        """Notes that a worker begins ``work``; 1 for the first time, more when earlier workers did not survive it."""
        self._begun[work] += 1
        return self._begun[work]


def make_queue() -> Any:
    """A `UnitQueue` actor on the driver's node, where it lives and dies with the job."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(UnitQueue).options(num_cpus=0, scheduling_strategy=here).remote()


def read_units(unit_queue: Any) -> Any:
    """A Ray Data dataset of the packed units that come through ``unit_queue``, one block each."""
    dataset = ray.data.read_datasource(_Units(unit_queue), override_num_blocks=1, num_cpus=0)
    # Ray Data joins what a read task yields up to this size; a block of one row cannot be split.
    dataset.context.target_max_block_size = 1
    return dataset


class _Units(Datasource):
    def __init__(self, unit_queue: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._queue = unit_queue

    @property
    def supports_distributed_reads(self) -> bool:
        return False

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        unit_queue = self._queue

        def units() -> Iterator[pa.Table]:
            ray.get(unit_queue.open.remote())
            while (unit := ray.get(unit_queue.get.remote())) is not None:
                yield unit

        return [ReadTask(units, BlockMetadata(None, None, None, None))]
