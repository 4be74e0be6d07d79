"""How a worker labels a unit, from its keys to its files: decode → infer → rows → file. Importing it loads no Ray.

One single-threaded actor per core does all of it where there is no accelerator. Where there is one, CPU tasks call
`decode` and GPU actors call `Labeller.finish` (see `graph`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import numpy as np
import pyarrow as pa

from ray_fer.data.decode import Pixels
from ray_fer.errors import UserError, one_line
from ray_fer.labeling.config import PseudoLabelConfig
from ray_fer.labeling.isolation import decode_isolated
from ray_fer.labeling.table import FILE_SCHEMA, NOT_FINITE, OK, WrittenFile, write_file
from ray_fer.labeling.unit import Decoded, Row, decode_items, wanted_sizes
from ray_fer.labeling.work import UnitResult, WorkUnit, unit_stats
from ray_fer.models.face_detector import weights
from ray_fer.models.softmax import softmax, why_not_finite
from ray_fer.models.teacher import open_teacher

if TYPE_CHECKING:
    from ray_fer.models.engines import Features, Logits

Forward = Callable[[Pixels], "Logits | tuple[Logits, Features]"]
"""`Engine.__call__`, or `Embedder.embed` where embeddings are kept."""

log = logging.getLogger(__name__)

GPU_BATCH_FACTOR = 16
# Largest size of the crops that a decoding task sends to a GPU at a time.
GPU_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Plan:
    """Everything that a worker needs to know. It is small and the same for all units of a run.

    Attributes:
        config: Config of the job, with normalised URIs.
        run: Name of the run.
        models: Id of each teacher's model.
        device: ``cpu`` or ``cuda``.
        precision: ``float32`` or ``bfloat16``.
        actors: Number of actors that label at the same time.
        image_sizes: Side in pixels of each teacher's crops.
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
        """Number of images in a forward pass on this device."""
        return self.config.batch_size * (GPU_BATCH_FACTOR if self.device == "cuda" else 1)

    @property
    def unit_rows(self) -> int:
        """Largest number of images in a unit."""
        if self.device == "cuda":
            return min(self.config.unit_rows, GPU_BLOCK_BYTES // sum(size**2 * 3 for size in set(self.image_sizes)))
        return self.config.unit_rows


class Labeller:
    """Labels units with the engines of all teachers in this process.

    Raises:
        UserError: If a teacher cannot be loaded, or a face detector is needed and not installed.
        OSError: If a teacher cannot be read at the moment.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.device == "cpu":
            os.environ["OMP_NUM_THREADS"] = "1"  # before an engine imports torch
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
            unit: Keys of the images, and the number that the names of the files contain.
            isolated: Whether to decode in a child process, because an object may kill the process.

        Raises:
            UserError: If the table cannot be written.
        """
        started = time.monotonic()
        return self.finish(unit.number, decode(self.plan, unit.keys, self.plan.batch_size, isolated), started)

    def finish(self, number: int, batches: Iterator[Decoded], started: float) -> UnitResult:
        """Infers and writes a unit that is decoded or being decoded.

        Args:
            number: Number of the unit.
            batches: Decoded images of the unit.
            started: Time at which the work on the unit began, in seconds of `time.monotonic`.

        Raises:
            UserError: If the table cannot be written.
        """
        statuses: Counter[str] = Counter()
        rows: list[list[Row]] = [[] for _ in self.engines]
        for batch in batches:
            broken: set[str] = set()
            for teacher, engine in enumerate(self.engines):
                mine, pixels = for_teacher(batch, teacher, self.plan.image_sizes)
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
        except (OSError, botocore.exceptions.BotoCoreError) as error:  # other workers would fail too
            raise UserError(f"table={table}: cannot be written ({one_line(error)})") from None


def decode(plan: Plan, keys: pa.Table, batch_size: int, isolated: bool) -> Iterator[Decoded]:
    """Reads and decodes the objects of ``keys``.

    Args:
        plan: Plan of the run.
        keys: Keys of a unit.
        batch_size: Number of objects in a batch, unless decoding is isolated.
        isolated: Whether to decode in a child process, which yields a single batch.

    Raises:
        UserError: If faces are to be found and no detector is installed.
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
        # The weights were replaced since the run began. Predictions of the new ones must not have the old model's id.
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


def for_teacher(batch: Decoded, teacher: int, image_sizes: Sequence[int]) -> tuple[list[Row], Pixels]:
    """Returns the part of a batch that one teacher lacks.

    Args:
        batch: What all teachers share.
        teacher: Number of the teacher in the config.
        image_sizes: Side in pixels of each teacher's crops.

    Returns:
        The rows, for `infer` to fill, and the crops uint8 (B, S, S, 3) of those that are ``ok``.
    """
    size = image_sizes[teacher]
    pixels = batch.pixels[size]
    if len(image_sizes) == 1:
        for row in batch.rows:
            (row.attempt,) = row.attempts
        return batch.rows, pixels
    who = wanted_sizes(image_sizes)[size]
    rows, cropped = [], []
    for row, bits in zip(batch.rows, batch.teachers, strict=True):
        lacks = bool(bits >> teacher & 1)
        if lacks:
            rows.append(replace(row, attempt=row.attempts[teacher]))
        if row.status == OK and bits & who:
            cropped.append(lacks)
    return rows, pixels if all(cropped) else pixels[cropped]


def infer(rows: list[Row], pixels: Pixels, forward: Forward, classes: tuple[str, ...], batch_size: int) -> list[Row]:
    """Sets probs, label and confidence of those rows that are ``ok``.

    Args:
        rows: N rows, B of which are ``ok``.
        pixels: Crops of the rows that are ``ok``, uint8 (B, S, S, 3).
        forward: Engine of the teacher, or `Embedder.embed` where embeddings are kept.
        classes: Names of the K classes.
        batch_size: Number of crops in a forward pass.

    Returns:
        All N rows. A row with NaN or infinity among its logits has the status ``not_finite`` and an error that tells
        the reason. A row whose features alone are not finite, or too large for float16, stays ``ok`` without an
        embedding, and its error says so.
    """
    good = [row for row in rows if row.status == OK]
    for start in range(0, len(good), batch_size):
        batch = good[start : start + batch_size]
        out = forward(pixels[start : start + batch_size])
        logits, features = out if isinstance(out, tuple) else (out, None)
        probs = softmax(logits)
        best = probs.argmax(axis=1)
        for row, p, k in zip(batch, probs, best, strict=True):
            row.probs, row.label, row.confidence = p, classes[k], p[k]
        if features is not None:
            _embed(batch, features)
        for number in np.flatnonzero(np.isnan(probs[:, 0])).tolist():
            row = batch[number]
            row.status, row.error = NOT_FINITE, why_not_finite(logits[number], classes)
            row.probs = row.label = row.confidence = row.embedding = None
            row.embedding_size = row.embedding_size and 0
    return rows


def _embed(rows: Sequence[Row], features: Features) -> None:
    with np.errstate(over="ignore"):
        half = features.astype("<f2")
    for row, values, finite in zip(rows, half, np.isfinite(half).all(axis=1), strict=True):
        row.embedding, row.embedding_size = (values.tobytes(), len(values)) if finite else (None, 0)
        if not finite:
            row.error = "no embedding: the model's features are not finite in float16"


def to_table(rows: list[Row], run: str) -> pa.Table:
    """Returns rows as a table of `FILE_SCHEMA` with the name of the run and the current time."""
    columns: dict[str, Any] = {"run": pa.repeat(run, len(rows)), "labelled_at": [datetime.now(UTC)] * len(rows)}
    for name in FILE_SCHEMA.names:
        if name not in columns:
            columns[name] = list(map(attrgetter(name), rows))
    return pa.table({name: columns[name] for name in FILE_SCHEMA.names}, schema=FILE_SCHEMA)
