"""The Ray Data graph of labelling; its shape follows from the device and is decided here alone.

- CPU: one actor per core reads, decodes, infers and writes, single-threaded; measured, threads inside cost half.
- CUDA: CPU tasks read and decode to uint8; GPU actors infer and write.

A block of the dataset is one row, a unit of keys (see `dispatch`). Weights travel by URI. What comes back to the driver
is one row per written file. Ray may run a unit twice (a lost node); only the file that comes back first is committed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import pyarrow as pa
import ray
import ray.data

from ray_fer import cluster
from ray_fer.config import PseudoLabelConfig
from ray_fer.errors import UserError, one_line
from ray_fer.labeling.dispatch import SMALLEST_UNIT_ROWS, Dispatcher, make_queue, read_units, unpack_unit
from ray_fer.labeling.isolation import decode_isolated
from ray_fer.labeling.progress import Stats, unit_stats
from ray_fer.labeling.table import WrittenFile, write_file
from ray_fer.labeling.unit import Decoded, decode_items, infer, joined, pack_decoded, to_table, unpack_decoded
from ray_fer.models.teacher import open_teacher

if TYPE_CHECKING:
    from ray_fer.models.engines import Engine

log = logging.getLogger(__name__)

GPU_BATCH_FACTOR = 16
# What a decoding task hands to a GPU at a time.
GPU_BLOCK_BYTES = 64 << 20
UNITS_PER_ACTOR = 2
# A unit that has killed so many processes, also when it was decoded in isolation, cannot be labelled by this engine.
MOST_BEGINNINGS = 5


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to know; small, and the same for all units of a run."""

    config: PseudoLabelConfig
    run: str
    model: str
    device: str
    precision: str
    actors: int
    image_size: int

    @property
    def batch_size(self) -> int:
        """Images per forward pass on this device."""
        return self.config.batch_size * (GPU_BATCH_FACTOR if self.device == "cuda" else 1)

    @property
    def unit_rows(self) -> int:
        """Largest number of images in a unit."""
        if self.device == "cuda":
            return min(self.config.unit_rows, GPU_BLOCK_BYTES // (self.image_size**2 * 3))
        return self.config.unit_rows

    def count_workers(self) -> int:
        """Processes that take units at the same time, as the cluster stands."""
        return self.actors + (cluster.cpus() if self.device == "cuda" else 0)


def label(pages: Iterator[pa.Table], plan: Plan) -> Generator[tuple[WrittenFile, Stats], None, None]:
    """Labels the objects of ``pages`` (uri, identity, size, source) over a pool of actors.

    Yields:
        For every unit, as it is done, its written file and what `progress.unit_stats` says of it.

    Raises:
        UserError: when the teacher cannot be loaded on a worker, or the listing fails.
    """
    dispatcher = Dispatcher(pages, plan.count_workers, plan.unit_rows)
    waiting = dispatcher.wait_for_work()
    if not waiting:
        return
    cluster.prepare_data()
    unit_queue = make_queue()
    dataset = _graph(plan, unit_queue, waiting)
    dispatcher.feed(unit_queue)
    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in block.to_pylist():
                if reason := row.get("reason"):
                    raise UserError(reason)
                if dispatcher.finished(row["unit"], row["rows"], row["seconds"]):
                    yield WrittenFile(row["path"], row["bytes"], row["rows"]), json.loads(row["stats"])
    finally:
        dispatcher.stop()
    dispatcher.close()


def _graph(plan: Plan, unit_queue: Any, waiting: int) -> Any:
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=plan.actors,
        initial_size=min(plan.actors, max(1, waiting // SMALLEST_UNIT_ROWS)),
        max_tasks_in_flight_per_actor=UNITS_PER_ACTOR,
    )
    dataset = read_units(unit_queue)
    arguments: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    constructor: dict[str, Any] = {"fn_constructor_args": (plan, unit_queue), "compute": pool}
    if plan.device == "cuda":
        dataset = dataset.map_batches(_DecodeTask(plan, unit_queue), num_cpus=1, **arguments)
        # Ray Data wants a number here; a block is one row.
        # No CPU, which Ray Data would otherwise take: there may be none left for decoding.
        return dataset.map_batches(InferActor, num_gpus=1, num_cpus=0, **arguments | {"batch_size": 1}, **constructor)
    return dataset.map_batches(LabelActor, num_cpus=1, **arguments, **constructor)


class LabelActor:
    """Reads, decodes, infers and writes a unit in one process."""

    def __init__(self, plan: Plan, unit_queue: Any) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # before torch looks, should the engine need it
        self.plan, self.unit_queue = plan, unit_queue
        self.classes, self.engine, self.reason = _load(plan)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Labels a packed unit; returns the description of the written file."""
        if self.engine is None:
            return _stopped(self.reason)
        started = time.monotonic()
        number, keys = unpack_unit(block)
        beginnings = ray.get(self.unit_queue.begin.remote(number))
        if beginnings > MOST_BEGINNINGS:
            return _stopped(_hopeless(self.plan, keys["uri"][0].as_py(), keys.num_rows))
        rows: list[dict[str, Any]] = []
        for batch in _decode(self.plan, keys, self.plan.batch_size, beginnings):
            infer(batch, self.engine, self.classes, self.plan.batch_size)
            rows += batch.rows
        return _write(self.plan, number, rows, self.classes, started)


class _DecodeTask:
    """Reads and decodes a unit in a CPU task; the block that leaves it holds uint8 crops."""

    def __init__(self, plan: Plan, unit_queue: Any) -> None:
        self.plan, self.unit_queue = plan, unit_queue

    def __call__(self, block: pa.Table) -> pa.Table:
        started = time.monotonic()
        number, keys = unpack_unit(block)
        beginnings = ray.get(self.unit_queue.begin.remote(number))
        if beginnings > MOST_BEGINNINGS:
            return _stopped(_hopeless(self.plan, keys["uri"][0].as_py(), keys.num_rows))
        batches = list(_decode(self.plan, keys, keys.num_rows, beginnings))
        decoded = joined(batches, self.plan.image_size)
        return pack_decoded(number, decoded).append_column("seconds", pa.array([time.monotonic() - started]))


class InferActor:
    """Infers and writes decoded units on one GPU."""

    def __init__(self, plan: Plan, unit_queue: Any) -> None:
        self.plan, self.unit_queue = plan, unit_queue
        self.classes, self.engine, self.reason = _load(plan)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Labels a decoded unit; returns the description of the written file."""
        if "reason" in block.column_names:
            return block
        if self.engine is None:
            return _stopped(self.reason)
        started = time.monotonic() - block["seconds"][0].as_py()
        number, batch = unpack_decoded(block, self.plan.image_size)
        if ray.get(self.unit_queue.begin.remote(("infer", number))) > MOST_BEGINNINGS:
            return _stopped(_hopeless(self.plan, batch.rows[0]["uri"], len(batch.rows)))
        infer(batch, self.engine, self.classes, self.plan.batch_size)
        return _write(self.plan, number, batch.rows, self.classes, started)


def _decode(plan: Plan, keys: pa.Table, batch_size: int, beginnings: int) -> Iterator[Decoded]:
    limits = {"image_size": plan.image_size, "max_pixels": plan.config.max_pixels, "max_bytes": plan.config.max_bytes}
    if beginnings > 1:  # whoever had this unit before did not survive it
        return iter([decode_isolated(keys, **limits)])
    return decode_items(keys, batch_size=batch_size, **limits)


def _hopeless(plan: Plan, first: str, images: int) -> str:
    what = f"the {images} images from {first} on"
    return f"teacher={plan.config.teacher}: {MOST_BEGINNINGS} workers died one after the other of {what}"


def _load(plan: Plan) -> tuple[tuple[str, ...], Engine | None, str]:
    # Ray Data replaces an actor whose constructor raises: what no replacement can mend is answered instead.
    try:
        return *_open(plan), ""
    except UserError as error:
        return (), None, str(error)
    except OSError:
        raise
    except Exception as error:
        return (), None, f"teacher={plan.config.teacher}: cannot be loaded ({type(error).__name__}: {one_line(error)})"


def _stopped(reason: str) -> pa.Table:
    return pa.Table.from_pylist([{"reason": reason}])


def _open(plan: Plan) -> tuple[tuple[str, ...], Engine]:
    from ray_fer.models.engines import make_engine

    teacher = open_teacher(plan.config.teacher)
    if teacher.model_id(plan.precision, plan.config.flip) != plan.model:
        # The weights were replaced since the run began: their predictions must not carry the old model's id.
        raise UserError(f"teacher={plan.config.teacher}: changed while the run was going on")
    device = plan.device
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            log.warning("Ray gave this actor a GPU that torch cannot use: it runs on the CPU")
            device = "cpu"
    engine = make_engine(
        teacher,
        plan.config.engine,
        batch_size=plan.batch_size,
        device=device,
        precision=plan.precision,
        flip=plan.config.flip,
    )
    return teacher.classes, engine


def _write(plan: Plan, number: int, rows: list[dict[str, Any]], classes: tuple[str, ...], started: float) -> pa.Table:
    try:
        file = write_file(plan.config.table, plan.model, to_table(rows, plan.run), f"{plan.run}-{number:06d}")
    except (OSError, botocore.exceptions.BotoCoreError) as error:  # no other worker would fare better
        return _stopped(f"table={plan.config.table}: cannot be written ({one_line(error)})")
    return pa.Table.from_pylist(
        [
            {
                "unit": number,
                "seconds": time.monotonic() - started,
                "path": file.path,
                "bytes": file.bytes,
                "rows": file.rows,
                "stats": json.dumps(unit_stats(rows, classes)),
            }
        ]
    )
