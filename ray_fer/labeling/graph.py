"""The Ray Data graph of labelling; its shape follows from the device and is decided here alone.

- CPU: one actor per core reads, decodes, infers and writes, single-threaded; measured, threads inside cost half.
- CUDA: CPU tasks read and decode to uint8; GPU actors infer and write.

The blocks of the dataset are units of keys, not of images. Weights travel by URI. What comes back to the driver is one
row per written file. Ray may run a unit twice (a lost node); only the file that comes back first is committed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from ray_fer import cluster
from ray_fer.config import PseudoLabelConfig
from ray_fer.errors import UserError, one_line
from ray_fer.labeling.table import OK, write_file
from ray_fer.labeling.unit import Decoded, decode_items, infer, pixels_from_arrow, pixels_to_arrow, to_table
from ray_fer.models.teacher import open_teacher

if TYPE_CHECKING:
    from ray_fer.models.engines import Engine

log = logging.getLogger(__name__)

GPU_BATCH_FACTOR = 16
# Larger blocks are split by Ray Data on their way to the GPU.
GPU_BLOCK_BYTES = 64 << 20


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

    def decode(self, keys: pa.Table) -> Iterator[Decoded]:
        """The read and decoded batches of a unit."""
        return decode_items(
            keys,
            image_size=self.image_size,
            batch_size=self.batch_size,
            max_pixels=self.config.max_pixels,
            max_bytes=self.config.max_bytes,
        )


def label_units(units: Sequence[pa.Table], plan: Plan) -> Iterator[dict[str, Any]]:
    """Labels ``units`` (tables of uri, identity, size, source) over a pool of actors.

    Yields:
        For every written file, as it is done: path, bytes, rows, and the number of rows per status as ``counts``.

    Raises:
        UserError: when the teacher cannot be loaded on a worker.
    """
    cluster.prepare_data()
    tagged = [unit.append_column("unit", pa.array([number] * unit.num_rows)) for number, unit in enumerate(units)]
    dataset: Any = ray.data.from_arrow(tagged)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=plan.actors, initial_size=min(plan.actors, len(units)))
    arguments: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    constructor: dict[str, Any] = {"fn_constructor_args": (plan,), "compute": pool}
    if plan.device == "cuda":
        dataset = dataset.map_batches(_DecodeTask(plan), num_cpus=1, **arguments)
        # Ray Data wants a number here; blocks are joined up to it.
        arguments["batch_size"] = plan.unit_rows
        dataset = dataset.map_batches(InferActor, num_gpus=1, **arguments, **constructor)
    else:
        dataset = dataset.map_batches(LabelActor, num_cpus=1, **arguments, **constructor)
    seen: set[int] = set()
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in block.to_pylist():
            if reason := row.pop("reason", None):
                raise UserError(reason)
            counts = {key.removeprefix("n_"): row.pop(key) for key in list(row) if key.startswith("n_")}
            first = row.pop("first")
            if first not in seen:
                seen.add(first)
                yield row | {"counts": counts}


class LabelActor:
    """Reads, decodes, infers and writes a unit in one process."""

    def __init__(self, plan: Plan) -> None:
        _single_threaded()
        self.plan = plan
        self.classes, self.engine, self.reason = _load(plan)

    def __call__(self, keys: pa.Table) -> pa.Table:
        """Labels the unit ``keys``; returns the description of the written file."""
        if self.engine is None:
            return _no_engine(self.reason)
        rows: list[dict[str, Any]] = []
        for batch in self.plan.decode(keys):
            infer(batch, self.engine, self.classes, self.plan.batch_size)
            rows += batch.rows
        return _write(self.plan, rows, int(keys["unit"][0].as_py()) << 32)


class _DecodeTask:
    """Reads and decodes a unit in a CPU task; the block that leaves it holds uint8 crops."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, keys: pa.Table) -> Iterator[pa.Table]:
        first = int(keys["unit"][0].as_py()) << 32
        for batch in self.plan.decode(keys):
            columns = {name: [row.get(name) for row in batch.rows] for name in _DECODED.names if name != "first"}
            columns["first"] = list(range(first, first + len(batch.rows)))
            pixels = batch.pixels
            if len(pixels) < len(batch.rows):
                pixels = np.zeros((len(batch.rows), *pixels.shape[1:]), np.uint8)
                pixels[[row["status"] == OK for row in batch.rows]] = batch.pixels
            yield pa.table(columns, schema=_DECODED).append_column("pixels", pixels_to_arrow(pixels))
            first += len(batch.rows)


_DECODED = pa.schema(
    [
        ("uri", pa.string()),
        ("identity", pa.string()),
        ("digest", pa.binary()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("first", pa.int64()),
    ]
)


class InferActor:
    """Infers and writes blocks of decoded crops on one GPU."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.classes, self.engine, self.reason = _load(plan)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Labels a decoded block; returns the description of the written file."""
        if self.engine is None:
            return _no_engine(self.reason)
        rows = block.drop_columns(["first", "pixels"]).to_pylist()
        good = pa.array([row["status"] == OK for row in rows])
        pixels = pixels_from_arrow(block["pixels"].filter(good), self.plan.image_size)
        infer(Decoded(rows, pixels), self.engine, self.classes, self.plan.batch_size)
        return _write(self.plan, rows, int(block["first"][0].as_py()))


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


def _no_engine(reason: str) -> pa.Table:
    return pa.Table.from_pylist([{"reason": reason}])


def _open(plan: Plan) -> tuple[tuple[str, ...], Engine]:
    import torch

    from ray_fer.models.engines import make_engine

    teacher = open_teacher(plan.config.teacher)
    if teacher.model_id(plan.precision, plan.config.flip) != plan.model:
        # The weights were replaced since the run began: their predictions must not carry the old model's id.
        raise UserError(f"teacher={plan.config.teacher}: changed while the run was going on")
    device = plan.device
    if device == "cuda" and not torch.cuda.is_available():
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


def _single_threaded() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch looks
    import torch

    torch.set_num_threads(1)


def _write(plan: Plan, rows: list[dict[str, Any]], first: int) -> pa.Table:
    file = write_file(plan.config.table, plan.model, to_table(rows, plan.run), f"{plan.run}-{first >> 32:06d}")
    counts: dict[str, int] = {}
    for row in rows:
        key = f"n_{row['status']}"
        counts[key] = counts.get(key, 0) + 1
    return pa.Table.from_pylist([{"path": file.path, "bytes": file.bytes, "rows": file.rows, "first": first} | counts])
