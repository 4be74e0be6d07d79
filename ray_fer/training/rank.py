"""One rank of a training: the engine, the method, the epochs, and what is saved after each.

What a rank knows is saved at the end of every epoch, so a lost worker, a lost driver, or the same command run again
costs at most one epoch. A checkpoint has the full weights and moments by name, however ZeRO partitions them among the
ranks: a run goes on with any number of workers and at any stage. DeepSpeed's own checkpoints have one part per rank,
which only as many ranks read.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from safetensors.torch import load_file, save_file

from ray_fer import storage
from ray_fer.config import Device
from ray_fer.errors import UserError
from ray_fer.models.model_id import resolve_precision
from ray_fer.training.engine import DeepSpeedEngine
from ray_fer.training.failures import lasting
from ray_fer.training.finite import FiniteGuard, OnBadLoss
from ray_fer.training.lease import Lease
from ray_fer.training.loop import Method, train_epoch
from ray_fer.training.world import World

log = logging.getLogger(__name__)

STATE = "state.json"
_EMA, BEST, _LIVE, _METHOD = "ema.safetensors", "best.safetensors", "live.safetensors", "method.safetensors"
_MOMENTS = "moments.safetensors"


@dataclass(frozen=True)
class TrainSpec:
    """What to run and where.

    Attributes:
        folder: holds the checkpoints while the run lasts, local or ``s3://``.
        make: makes the method on one rank; pickled by reference, so a module-level function or a partial of one.
        device: ``auto``, ``cpu`` or ``cuda``, see `ray_fer.resources`.
        workers: ranks; None is one per GPU of the cluster, or one where there is none.
        zero_stage: DeepSpeed's ZeRO stage.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        max_failures: losses of workers to survive.
        on_bad_loss: ``stop`` or ``skip``: what happens to a step whose loss is not finite, see `FiniteGuard`.
        reports: where the pictures of such steps are listed, to outlive the run; None: in ``folder``.
        wait_minutes: how long ranks may wait for room on a cluster; None: for ever.
        lease: of the folder: without it no checkpoint is written.
    """

    folder: str
    make: Callable[[World], Method]
    device: Device = "auto"
    workers: int | None = None
    zero_stage: int = 0
    precision: str = "auto"
    max_failures: int = 3
    on_bad_loss: OnBadLoss = "stop"
    reports: str | None = None
    wait_minutes: float | None = None
    lease: Lease | None = None


class _Sender(logging.Handler):
    """Sends log records to the driver."""

    def __init__(self, lines: Any) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put((record.levelno, record.getMessage()))


def train_on_rank(settings: dict[str, Any]) -> None:
    """The loop of one rank, as Ray Train calls it: with ``spec`` and the queue ``lines`` for what it logs."""
    spec: TrainSpec = settings["spec"]
    context = ray.train.get_context()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces every report
    logger = logging.getLogger("ray_fer")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.handlers = [_Sender(settings["lines"])] if context.get_world_rank() == 0 else []
    try:
        _Rank(spec).train()
    except Exception as error:
        if (found := lasting(error, context.get_world_rank())) is None:
            raise
        raise found from error


def _by_term(losses: dict[str, float]) -> str:
    terms = [f"{name} {value:.4f}" for name, value in losses.items() if name != "loss"]
    return f" ({', '.join(terms)})" if len(terms) > 1 else ""


class _Rank:
    """One rank's engine, method and progress."""

    def __init__(self, spec: TrainSpec) -> None:
        context = ray.train.get_context()
        self.spec, device = spec, ray.train.torch.get_device()
        world = World(
            rank=context.get_world_rank(),
            size=context.get_world_size(),
            device=device,
            precision=resolve_precision(spec.precision, device.type == "cuda"),
        )
        self.world = replace(world, local_size=max(world.gather(context.get_local_world_size())))
        if self.world.device.type == "cpu":
            torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        self.method = spec.make(self.world)
        self.state: dict[str, Any] = {"epoch": 0, "best": None, "history": [], "resumed": [], "skipped": 0}
        self.best: dict[str, torch.Tensor] = {}

    def train(self) -> None:
        """Every epoch that is still to do."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            self._initialise()
        else:
            with checkpoint.as_directory() as name:
                self._resume(Path(name))
        for epoch in range(self.state["epoch"], self.method.epochs):
            self._epoch(epoch)

    def _epoch(self, epoch: int) -> None:
        started = time.monotonic()
        guard = FiniteGuard(
            *(self.world, self.method.steps_per_epoch, self.spec.on_bad_loss, self.state["skipped"]),
            folder=self.spec.reports or self.spec.folder,
        )
        mine = train_epoch(self.method, self.engine, epoch, guard)
        seconds = time.monotonic() - started
        ranks = self.world.gather(mine)
        losses = {name: sum(rank.get(name, math.nan) for rank in ranks) / self.world.size for name in mine}
        self.world.average_buffers(self.engine.model)
        self.world.average_buffers(self.method.ema_model)
        score, metrics = self.method.validate(epoch)
        terms = {f"loss_{name}": losses[name] for name in losses if name != "loss"}
        row = {"epoch": epoch + 1, "loss": losses["loss"], **terms, "score": score, "seconds": round(seconds, 2)}
        row["skipped"], self.state["skipped"] = guard.skipped - self.state["skipped"], guard.skipped
        row |= {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        self.state["history"].append(row)
        self.state["epoch"] = epoch + 1
        if self.state["best"] is None or score > self.state["best"]["score"]:
            self.state["best"] = {**metrics, "score": score, "epoch": epoch + 1}
            self.best = {name: tensor.cpu().clone() for name, tensor in self.method.ema_model.state_dict().items()}
        best = self.state["best"]
        log.info(
            "epoch %d/%d  loss %.4f%s  val macro-F1 %.2f  best %.2f (epoch %d)  %.0f images/s",
            *(epoch + 1, self.method.epochs, losses["loss"], _by_term(losses)),
            *(100 * score, 100 * best["score"], best["epoch"]),
            self.method.images_per_epoch / seconds,
        )
        self._save(row)

    def _initialise(self) -> None:
        self.engine = DeepSpeedEngine(self.method, self.world, self.spec.zero_stage)

    def _save(self, row: dict[str, Any]) -> None:
        # Every rank takes part in putting them together; only the first keeps them.
        live, moments = (
            {name: tensor.to("cpu", copy=True) for name, tensor in whole if self.world.rank == 0}
            for whole in (self.engine.weights(), self.engine.moments())
        )
        if self.world.rank != 0:
            ray.train.report(row)
            return
        with tempfile.TemporaryDirectory() as name:
            self._save_state(Path(name), live, moments)
            if self.spec.lease:
                self.spec.lease.check()
            ray.train.report(row, ray.train.Checkpoint.from_directory(name))

    def _save_state(self, folder: Path, live: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]) -> None:
        averaged = {_EMA: self.method.ema_model.state_dict(), BEST: self.best}
        for name, tensors in {**averaged, _LIVE: live, _MOMENTS: moments, _METHOD: self.method.tensors()}.items():
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, folder / name)
        document = {**self.state, "recipe": self.method.state(), "host": socket.gethostname()}
        (folder / STATE).write_text(storage.to_json(document))

    def _resume(self, folder: Path) -> None:
        if not (folder / _MOMENTS).exists():
            raise UserError(f"{self.spec.folder} holds a run of an earlier version of ray-fer; delete it to begin anew")
        document = json.loads((folder / STATE).read_text())
        self.method.load_state(document.pop("recipe"), load_file(folder / _METHOD))
        self.method.model.load_state_dict(load_file(folder / _LIVE))
        self.method.ema_model.load_state_dict(load_file(folder / _EMA))
        self.best = load_file(folder / BEST)
        self.state = {key: document[key] for key in self.state}
        self.state["resumed"] = [*self.state["resumed"], self.state["epoch"]]
        self._initialise()
        self.engine.load_moments(load_file(folder / _MOMENTS))
        if self.state["epoch"] < self.method.epochs:
            log.info("going on after epoch %d of %d", self.state["epoch"], self.method.epochs)
