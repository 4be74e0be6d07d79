"""The Ray Data graph of labelling; its shape follows from the device and is decided here alone.

- CPU: one actor per core reads, decodes, infers and writes, single-threaded; measured, threads inside cost half.
- CUDA: CPU tasks read and decode to uint8; GPU actors infer and write.

A block of the dataset is one row, a unit of keys (see `dispatch`). Weights travel by URI; an actor holds the engines of
all teachers. What comes back to the driver is one row per unit, with the file of each model that had rows in it. Ray
may run a unit twice (a lost node); only the files that come back first are committed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import pyarrow as pa
import ray
import ray.data

from ray_fer import cluster
from ray_fer.config import PseudoLabelConfig, as_argument
from ray_fer.errors import UserError, one_line
from ray_fer.labeling.dispatch import SMALLEST_UNIT_ROWS, Dispatcher, make_queue, read_units, unpack_unit
from ray_fer.labeling.isolation import decode_isolated
from ray_fer.labeling.progress import Stats, image_statuses, unit_stats
from ray_fer.labeling.table import WrittenFile, write_file
from ray_fer.labeling.unit import (
    Decoded,
    Row,
    decode_items,
    infer,
    joined,
    pack_decoded,
    share,
    to_table,
    unpack_decoded,
)
from ray_fer.models.face_detector import weights
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
    """Everything a worker needs to know; small, and the same for all units of a run.

    Attributes:
        models: the id of each teacher of the config.
        image_sizes: the side in pixels of each teacher's crops.
    """

    config: PseudoLabelConfig
    run: str
    models: tuple[str, ...]
    device: str
    precision: str
    actors: int
    image_sizes: tuple[int, ...]

    @property
    def batch_size(self) -> int:
        """Images per forward pass on this device."""
        return self.config.batch_size * (GPU_BATCH_FACTOR if self.device == "cuda" else 1)

    @property
    def unit_rows(self) -> int:
        """Largest number of images in a unit."""
        if self.device == "cuda":
            return min(self.config.unit_rows, GPU_BLOCK_BYTES // sum(size**2 * 3 for size in set(self.image_sizes)))
        return self.config.unit_rows

    def count_workers(self) -> int:
        """Processes that take units at the same time, as the cluster stands."""
        return self.actors + (cluster.cpus() if self.device == "cuda" else 0)


@dataclass(frozen=True)
class DoneUnit:
    """What came of a unit.

    Attributes:
        statuses: its images per status.
        files: for each model that lacked some of them the written file.
        stats: for each of these models what `progress.unit_stats` says of its rows.
    """

    statuses: dict[str, int]
    files: dict[str, WrittenFile]
    stats: dict[str, Stats]


def label(pages: Iterator[pa.Table], plan: Plan) -> Generator[DoneUnit, None, None]:
    """Labels the objects of ``pages`` (uri, identity, size, source, teachers) over a pool of actors.

    Yields:
        Every unit as it is done.

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
                    done = json.loads(row["done"])
                    files = {model: WrittenFile(*file) for model, file in done["files"].items()}
                    yield DoneUnit(done["statuses"], files, done["stats"])
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
        self.classes, self.engines, self.reason = _load(plan)
        if plan.config.detects_faces and not self.reason:
            self.reason = _lacks_detector()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Labels a packed unit; returns the description of the written files."""
        if self.reason:
            return _stopped(self.reason)
        started = time.monotonic()
        number, keys = unpack_unit(block)
        beginnings = ray.get(self.unit_queue.begin.remote(number))
        if beginnings > MOST_BEGINNINGS:
            return _stopped(_hopeless(self.plan, keys["uri"][0].as_py(), keys.num_rows))
        statuses: Counter[str] = Counter()
        rows: list[list[Row]] = [[] for _ in self.engines]
        for batch in _decode(self.plan, keys, self.plan.batch_size, beginnings):
            statuses.update(image_statuses(batch.rows))
            for mine, found in zip(rows, _infer(self.plan, batch, self.engines, self.classes), strict=True):
                mine += found
        return _write(self.plan, number, statuses, rows, self.classes, started)


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
        try:
            batches = list(_decode(self.plan, keys, keys.num_rows, beginnings))
        except UserError as error:  # this node lacks the face detector
            return _stopped(str(error))
        decoded = joined(batches, self.plan.image_sizes)
        return pack_decoded(number, decoded).append_column("seconds", pa.array([time.monotonic() - started]))


class InferActor:
    """Infers and writes decoded units on one GPU."""

    def __init__(self, plan: Plan, unit_queue: Any) -> None:
        self.plan, self.unit_queue = plan, unit_queue
        self.classes, self.engines, self.reason = _load(plan)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Labels a decoded unit; returns the description of the written files."""
        if "reason" in block.column_names:
            return block
        if self.reason:
            return _stopped(self.reason)
        started = time.monotonic() - block["seconds"][0].as_py()
        number, batch = unpack_decoded(block, self.plan.image_sizes)
        if ray.get(self.unit_queue.begin.remote(("infer", number))) > MOST_BEGINNINGS:
            return _stopped(_hopeless(self.plan, batch.rows[0]["uri"], len(batch.rows)))
        statuses = image_statuses(batch.rows)
        rows = list(_infer(self.plan, batch, self.engines, self.classes))
        return _write(self.plan, number, statuses, rows, self.classes, started)


def _decode(plan: Plan, keys: pa.Table, batch_size: int, beginnings: int) -> Iterator[Decoded]:
    limits: dict[str, Any] = {
        "max_pixels": plan.config.max_pixels,
        "max_bytes": plan.config.max_bytes,
        "faces": plan.config.detects_faces,
    }
    if beginnings > 1:  # whoever had this unit before did not survive it
        return iter([decode_isolated(keys, image_sizes=plan.image_sizes, **limits)])
    return decode_items(keys, image_sizes=plan.image_sizes, batch_size=batch_size, **limits)


def _infer(plan: Plan, batch: Decoded, engines: list[Engine], classes: tuple[str, ...]) -> Iterator[list[Row]]:
    """For each teacher its rows of the batch."""
    for teacher, engine in enumerate(engines):
        yield infer(*share(batch, teacher, plan.image_sizes), engine, classes, plan.batch_size)


def _hopeless(plan: Plan, first: str, images: int) -> str:
    teacher, what = as_argument("teacher", plan.config.teacher), f"the {images} images from {first} on"
    return f"{teacher}: {MOST_BEGINNINGS} workers died one after the other of {what}"


def _load(plan: Plan) -> tuple[tuple[str, ...], list[Engine], str]:
    # Ray Data replaces an actor whose constructor raises: what no replacement can mend is answered instead.
    classes: tuple[str, ...] = ()
    engines = []
    for uri, model in zip(plan.config.teacher, plan.models, strict=True):
        try:
            classes, engine = _open(plan, uri, model)
            engines.append(engine)
        except UserError as error:
            return (), [], str(error)
        except OSError:
            raise
        except Exception as error:
            return (), [], f"teacher={uri}: cannot be loaded ({type(error).__name__}: {one_line(error)})"
    return classes, engines, ""


def _lacks_detector() -> str:
    try:
        weights()
    except UserError as error:
        return str(error)
    return ""


def _stopped(reason: str) -> pa.Table:
    return pa.Table.from_pylist([{"reason": reason}])


def _open(plan: Plan, uri: str, model: str) -> tuple[tuple[str, ...], Engine]:
    from ray_fer.models.engines import make_engine

    teacher = open_teacher(uri)
    if teacher.model_id(plan.precision, plan.config.flip, plan.config.detects_faces) != model:
        # The weights were replaced since the run began: their predictions must not carry the old model's id.
        raise UserError(f"teacher={uri}: changed while the run was going on")
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


def _write(
    plan: Plan, number: int, statuses: Counter[str], rows: list[list[Row]], classes: tuple[str, ...], started: float
) -> pa.Table:
    """Writes a file for each model that has rows, and describes them and the unit in one row."""
    files, stats = {}, {}
    for model, mine in zip(plan.models, rows, strict=True):
        if not mine:
            continue
        try:
            file = write_file(plan.config.table, model, to_table(mine, plan.run), f"{plan.run}-{number:06d}")
        except (OSError, botocore.exceptions.BotoCoreError) as error:  # no other worker would fare better
            return _stopped(f"table={plan.config.table}: cannot be written ({one_line(error)})")
        files[model], stats[model] = astuple(file), unit_stats(mine, classes)
    done = json.dumps({"statuses": statuses, "files": files, "stats": stats})
    seconds = time.monotonic() - started
    return pa.Table.from_pylist([{"unit": number, "seconds": seconds, "rows": statuses.total(), "done": done}])
