"""What a worker needs to know, and how it labels a unit from its keys to its files. Importing it loads no Ray."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
import pyarrow as pa

from ray_fer.errors import UserError, one_line
from ray_fer.labeling.config import PseudoLabelConfig
from ray_fer.labeling.isolation import decode_isolated
from ray_fer.labeling.progress import unit_stats
from ray_fer.labeling.table import NOT_FINITE, OK, WrittenFile, write_file
from ray_fer.labeling.unit import Decoded, Forward, Row, decode_items, infer, share, to_table
from ray_fer.labeling.work import UnitResult, WorkUnit
from ray_fer.models.face_detector import weights
from ray_fer.models.teacher import open_teacher

log = logging.getLogger(__name__)

GPU_BATCH_FACTOR = 16
# What a decoding task hands to a GPU at a time.
GPU_BLOCK_BYTES = 64 << 20


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


class Labeller:
    """The engines of all teachers in this process.

    Raises:
        UserError: when a teacher cannot be loaded, or a face detector is needed and not installed.
        OSError: when a teacher cannot be read now.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.device == "cpu":
            os.environ["OMP_NUM_THREADS"] = "1"  # before torch looks, should an engine need it
        self.plan = plan
        self.classes: tuple[str, ...] = ()
        self.engines: list[Forward] = []
        for uri, model in zip(plan.config.teacher, plan.models, strict=True):
            try:
                self.classes, engine = _open(plan, uri, model)
            except (UserError, OSError):
                raise
            except Exception as error:
                what = f"cannot be loaded ({type(error).__name__}: {one_line(error)})"
                raise UserError(f"teacher={uri}: {what}") from error
            self.engines.append(engine)
        if plan.config.detects_faces and plan.device == "cpu":
            weights()
        if plan.device == "cpu" and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    def label(self, unit: WorkUnit, isolated: bool) -> UnitResult:
        """Reads, decodes, infers and writes a unit.

        Args:
            unit: the keys of its images, and its number for the names of its files.
            isolated: whether to decode in a process of its own, for an object may kill it.

        Raises:
            UserError: the table cannot be written.
        """
        started = time.monotonic()
        return self.finish(unit.number, decode(self.plan, unit.keys, self.plan.batch_size, isolated), started)

    def finish(self, number: int, batches: Iterator[Decoded], started: float) -> UnitResult:
        """Infers and writes a unit that is decoded or being decoded.

        Args:
            number: of the unit.
            batches: its parts.
            started: when its work began, on the monotonic clock.

        Raises:
            UserError: the table cannot be written.
        """
        statuses: Counter[str] = Counter()
        rows: list[list[Row]] = [[] for _ in self.engines]
        for batch in batches:
            broken: set[str] = set()
            for teacher, engine in enumerate(self.engines):
                mine, pixels = share(batch, teacher, self.plan.image_sizes)
                rows[teacher] += infer(mine, pixels, engine, self.classes, self.plan.batch_size)
                broken.update(row.uri for row in mine if row.status == NOT_FINITE)
            # An image for which one of several teachers fails counts as failed.
            statuses.update(
                NOT_FINITE if row.status == OK and row.uri in broken else row.status
                for row in batch.rows
                if not row.further_face
            )
        files, stats = {}, {}
        for model, mine in zip(self.plan.models, rows, strict=True):
            if mine:
                files[model] = self._write(model, mine, number)
                stats[model] = unit_stats(mine, self.classes)
        return UnitResult(number, dict(statuses), files, stats, time.monotonic() - started)

    def _write(self, model: str, rows: list[Row], number: int) -> WrittenFile:
        table, run = self.plan.config.table, self.plan.run
        try:
            return write_file(table, model, to_table(rows, run), f"{run}-{number:06d}")
        except (OSError, botocore.exceptions.BotoCoreError) as error:  # no other worker would fare better
            raise UserError(f"table={table}: cannot be written ({one_line(error)})") from None


def decode(plan: Plan, keys: pa.Table, batch_size: int, isolated: bool) -> Iterator[Decoded]:
    """Reads and decodes the objects of ``keys``; isolated ones as one batch, others ``batch_size`` at a time.

    Raises:
        UserError: when faces are to be found and no detector is installed.
    """
    limits: dict[str, Any] = {
        "max_pixels": plan.config.max_pixels,
        "max_bytes": plan.config.max_bytes,
        "faces": plan.config.detects_faces,
    }
    if isolated:
        return iter([decode_isolated(keys, image_sizes=plan.image_sizes, **limits)])
    return decode_items(keys, image_sizes=plan.image_sizes, batch_size=batch_size, **limits)


def _open(plan: Plan, uri: str, model: str) -> tuple[tuple[str, ...], Forward]:
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
        embed=plan.config.embed,
    )
    return teacher.classes, engine.embed if plan.config.embed else engine
