"""The Ray Data graph of labelling, whose shape follows from the device.

- CPU: one single-threaded actor per core reads, decodes, infers and writes. Measured, several threads inside an actor
  cost half of the speed.
- CUDA: CPU tasks read and decode to uint8, and GPU actors infer and write.

Units reach the graph through a `UnitQueue` beside the driver. A block of the dataset has one row, which is a unit of
keys. Weights travel by URI, and an actor holds the engines of all teachers. The driver receives one row per unit, with
the file of each model that had rows in it. Ray may run a unit twice, for example after it has lost a node; only the
files that come back first are committed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_fer import cluster
from ray_fer.compat.ray import join_data_threads
from ray_fer.config import as_argument
from ray_fer.errors import UserError
from ray_fer.labeling.dispatch import SMALLEST_UNIT_ROWS, Dispatcher
from ray_fer.labeling.unit import joined
from ray_fer.labeling.work import DecodedUnit, UnitResult, WorkUnit, is_refusal, refusal
from ray_fer.labeling.worker import Labeller, Plan, decode
from ray_fer.room import Demand

UNITS_PER_ACTOR = 2
# No engine can label a unit that has killed that many processes, although all but the first decoded in isolation.
MOST_BEGINNINGS = 5


def label_on_cluster(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
    """Labels the units of ``dispatcher`` on a pool of Ray actors.

    Yields:
        The result of each unit once, in the order in which they are done.

    Raises:
        UserError: If a teacher cannot be loaded on a worker, the table cannot be written, or a unit kills its workers.
    """
    cluster.prepare_data()
    share = {"GPU": 1.0} if plan.device == "cuda" else {"CPU": 1.0}
    cluster.wait_for_room(Demand("workers", 1, share), plan.config.wait_minutes)
    # The queue is on the driver's node, because it is of no use without the driver.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    unit_queue: Any = ray.remote(UnitQueue).options(num_cpus=0, scheduling_strategy=here).remote()
    dataset = _graph(plan, unit_queue, dispatcher.wait_for_work())

    def put(unit: WorkUnit | None) -> None:
        ray.get(unit_queue.put.remote(unit and unit.to_block()))

    dispatcher.feed(put)
    blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    try:
        for block in blocks:
            for row in range(block.num_rows):
                result = UnitResult.from_block(block.slice(row, 1))
                if dispatcher.finished(result.number, result.images, result.seconds):
                    yield result
    finally:
        dispatcher.stop()
        blocks.close()
        join_data_threads()


def _graph(plan: Plan, unit_queue: Any, waiting: int) -> Any:
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=plan.actors,
        initial_size=min(plan.actors, max(1, waiting // SMALLEST_UNIT_ROWS)),
        max_tasks_in_flight_per_actor=UNITS_PER_ACTOR,
    )
    dataset = ray.data.read_datasource(_Units(unit_queue), override_num_blocks=1, num_cpus=0)
    # Ray Data joins what a read task yields up to this size; a block of one row cannot be split.
    dataset.context.target_max_block_size = 1
    arguments: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    constructor: dict[str, Any] = {"fn_constructor_args": (plan, unit_queue), "compute": pool}
    if plan.device == "cuda":
        dataset = dataset.map_batches(_DecodeTask(plan, unit_queue), num_cpus=1, **arguments)
        # Ray Data needs a batch size with GPUs, and a block has one row.
        # Without num_cpus=0, each actor would take a CPU from the decoding tasks.
        return dataset.map_batches(InferActor, num_gpus=1, num_cpus=0, **arguments | {"batch_size": 1}, **constructor)
    return dataset.map_batches(LabelActor, num_cpus=1, **arguments, **constructor)


class UnitQueue:
    """The queue between the driver and the read task, which also counts how often workers have begun each unit."""

    def __init__(self) -> None:
        self._units: asyncio.Queue[pa.Table | None] = asyncio.Queue()
        self._begun: Counter[Any] = Counter()
        self._opened = False

    async def open(self) -> None:
        """Admits the only reader of the queue. A second reader would miss the units that the first one has lost.

        Raises:
            RuntimeError: If Ray restarts a reader that has died.
        """
        if self._opened:
            raise RuntimeError("the process that hands units to the workers died; run again to label what is left")
        self._opened = True

    async def put(self, unit: pa.Table | None) -> None:
        """Appends a packed unit, or None as the end of the stream."""
        await self._units.put(unit)

    async def get(self) -> pa.Table | None:
        """Waits for the next packed unit and removes it."""
        return await self._units.get()

    async def begin(self, work: Any) -> int:
        """Counts a worker that begins ``work``, and returns the count, which exceeds 1 if earlier workers have died."""
        self._begun[work] += 1
        return self._begun[work]


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


class LabelActor:
    """Reads, decodes, infers and writes a unit in one process."""

    def __init__(self, plan: Plan, unit_queue: Any) -> None:
        self.plan, self.unit_queue = plan, unit_queue
        self.labeller = _load(plan)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Labels a packed unit, and returns the packed result or a refusal."""
        if isinstance(self.labeller, UserError):
            return refusal(self.labeller)
        unit = WorkUnit.from_block(block)
        try:
            return self.labeller.label(unit, _begin_unit(self.plan, self.unit_queue, unit) > 1).to_block()
        except UserError as error:
            return refusal(error)


class _DecodeTask:
    """Reads and decodes a unit in a CPU task; the block that leaves it holds uint8 crops."""

    def __init__(self, plan: Plan, unit_queue: Any) -> None:
        self.plan, self.unit_queue = plan, unit_queue

    def __call__(self, block: pa.Table) -> pa.Table:
        started = time.monotonic()
        unit = WorkUnit.from_block(block)
        try:
            isolated = _begin_unit(self.plan, self.unit_queue, unit) > 1
            batches = list(decode(self.plan, unit.keys, unit.keys.num_rows, isolated))
        except UserError as error:
            return refusal(error)
        batch = joined(batches, self.plan.image_sizes)
        return DecodedUnit(unit.number, batch, time.monotonic() - started).to_block()


class InferActor:
    """Infers and writes decoded units on one GPU."""

    def __init__(self, plan: Plan, unit_queue: Any) -> None:
        self.plan, self.unit_queue = plan, unit_queue
        self.labeller = _load(plan)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Infers and writes a packed, decoded unit, and returns the packed result or a refusal."""
        if is_refusal(block):
            return block
        if isinstance(self.labeller, UserError):
            return refusal(self.labeller)
        unit = DecodedUnit.from_block(block, self.plan.image_sizes)
        started, rows = time.monotonic() - unit.seconds, unit.batch.rows
        try:
            _begin(self.plan, self.unit_queue, ("infer", unit.number), rows[0].uri, len(rows))
            return self.labeller.finish(unit.number, iter([unit.batch]), started).to_block()
        except UserError as error:
            return refusal(error)


def _load(plan: Plan) -> Labeller | UserError:
    # Ray Data would replace an actor whose constructor raises, again and again. Its units are refused instead.
    try:
        return Labeller(plan)
    except UserError as error:
        return error


def _begin_unit(plan: Plan, unit_queue: Any, unit: WorkUnit) -> int:
    return _begin(plan, unit_queue, unit.number, unit.keys["uri"][0].as_py(), unit.keys.num_rows)


def _begin(plan: Plan, unit_queue: Any, work: Any, first: str, images: int) -> int:
    """Returns how often workers have begun ``work``, which exceeds 1 if earlier ones have died."""
    beginnings: int = ray.get(unit_queue.begin.remote(work))
    if beginnings > MOST_BEGINNINGS:
        teacher, what = as_argument("teacher", plan.config.teacher), f"the {images} images from {first} on"
        raise UserError(f"{teacher}: {MOST_BEGINNINGS} workers died one after the other of {what}")
    return beginnings
