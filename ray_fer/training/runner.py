"""Running a method on Ray Train, which this file alone knows.

Ray Train places the ranks, restarts them when one is lost, and keeps their checkpoints in one folder (local or S3).
What they know is saved at the end of every epoch, so a lost worker, a lost driver, or the same command run again costs
at most one epoch.

A checkpoint has weights and moments whole, by name, however ZeRO cuts them up among the ranks: a run goes on with any
number of workers and at any stage. DeepSpeed's own checkpoints have one part per rank, which only as many ranks read.

Threads wait without spinning: measured on two cores beside one other process, a step took 0.26 s instead of 1.8 s, and
no longer without company.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue
from safetensors.torch import load_file, save_file

from ray_fer import cluster, storage
from ray_fer.config import Device
from ray_fer.errors import UserError
from ray_fer.models.artifact import resolve_precision
from ray_fer.resources import find_device, ranks
from ray_fer.room import Demand, Patience, Resources, check_room
from ray_fer.training.engine import DeepSpeedEngine
from ray_fer.training.failures import StopAtOnce, found_lasting, lasting
from ray_fer.training.finite import FiniteGuard, OnBadLoss
from ray_fer.training.lease import Lease
from ray_fer.training.loop import Method, train_epoch
from ray_fer.training.placement import PLACED, PlacementTeller
from ray_fer.training.world import World

log = logging.getLogger(__name__)

_STATE = "state.json"
_EMA, _BEST, _LIVE, _METHOD = "ema.safetensors", "best.safetensors", "live.safetensors", "method.safetensors"
_MOMENTS = "moments.safetensors"


@dataclass(frozen=True)
class Run:
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
        clip_norm: largest gradient norm.
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
    clip_norm: float = 1.0
    reports: str | None = None
    wait_minutes: float | None = None
    lease: Lease | None = None


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        best: metrics of the best epoch, among them ``epoch`` (from 1).
        history: one row of numbers per epoch.
        weights: averaged weights of the best epoch, by name.
        resumed: epochs (complete ones) after which the run went on from a checkpoint.
    """

    best: dict[str, Any]
    history: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    resumed: list[int]


def fit(run: Run) -> Outcome:
    """Runs a method to its end, from its last checkpoint if there is one. Needs a connected cluster.

    Raises:
        UserError: what a rank found wrong with the user's input, or what else the user can mend, as where there is no
            room for the ranks.
        RuntimeError: for other errors on a rank that no restart mends, and after ``max_failures`` that one might have.
    """
    scaling = _scaling(find_device(run.device), run.workers)
    assert isinstance(scaling.num_workers, int)
    demand = Demand("workers", scaling.num_workers, cast(Resources, scaling.resources_per_worker))
    local = cluster.is_local()
    if local:
        check_room(demand, cluster.nodes())
    # A rank that reports an epoch waits until the controller looks; by default it looks every two seconds, which is
    # longer than an epoch of a small set.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    lines = Queue(actor_options={"num_cpus": 0})
    trainer = ray.train.torch.TorchTrainer(
        _train,
        train_loop_config={"run": run, "lines": lines},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=scaling,
        run_config=_run_config(run, lines),
    )
    patience = Patience(demand, None if local else run.wait_minutes)  # here there is room, if not at once
    with _relayed(lines, patience):
        try:
            result = _fit(trainer, patience)
        except ray.train.TrainingFailedError as error:
            raise _reason(error, run.max_failures) from error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as name:
        state = json.loads((Path(name) / _STATE).read_text())
        return Outcome(state["best"], state["history"], load_file(Path(name) / _BEST), state["resumed"])


def _reason(error: ray.train.TrainingFailedError, max_failures: int) -> Exception:
    found = found_lasting(error)
    if found is None:
        return RuntimeError(f"training failed more than max_failures={max_failures} times")
    if found.mendable:
        return UserError(found.line)
    return RuntimeError(f"{found.details}\ntraining failed once, and no restart would mend it: {found.line}")


def _fit(trainer: ray.train.torch.TorchTrainer, patience: Patience) -> ray.train.Result:
    """Ray Train's `fit`, which in the main thread would take SIGINT and keep it; here that looks after the wait."""
    future: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            future.set_result(trainer.fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    while not wait([future], timeout=1.0).done:
        if line := patience.look(cluster.describe):
            log.info("%s", line)
    return future.result()


def _run_config(run: Run, lines: Any) -> RunConfig:
    filesystem, path = storage.arrow_filesystem(run.folder)
    # A dict, for Ray's annotations are those of its predecessor.
    settings: dict[str, Any] = {
        "name": "ray",
        "storage_path": path,
        "storage_filesystem": filesystem,
        "callbacks": [StopAtOnce(), PlacementTeller(lines)],
        "failure_config": FailureConfig(max_failures=run.max_failures),
        "checkpoint_config": CheckpointConfig(num_to_keep=1),
        "logging_config": LoggingConfig(log_level="ERROR"),
        "worker_runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
    }
    return RunConfig(**settings)


def _scaling(device: str, workers: int | None) -> ScalingConfig:
    count, share = ranks(device, workers, cluster.nodes())
    return ScalingConfig(num_workers=count, use_gpu=device == "cuda", resources_per_worker=share)


# --- in the driver: what the ranks say ---


@contextlib.contextmanager
def _relayed(lines: Any, patience: Patience) -> Iterator[None]:
    """Logs here what rank 0 logs, and notes whether the ranks have room, while the block runs."""

    def relay() -> None:
        while line := lines.get():
            if line[0] == PLACED:
                patience.note(line[1])
            else:
                log.log(line[0], "%s", line[1])

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Its node may have gone, which is no reason to lose what was trained.
        with contextlib.suppress(RayActorError):
            lines.put(None)
        thread.join()
        lines.shutdown()


class _Sender(logging.Handler):
    """Sends log records to the driver."""

    def __init__(self, lines: Any) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put((record.levelno, record.getMessage()))


# --- on a rank ---


def _train(settings: dict[str, Any]) -> None:
    run: Run = settings["run"]
    context = ray.train.get_context()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces every report
    logger = logging.getLogger("ray_fer")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.handlers = [_Sender(settings["lines"])] if context.get_world_rank() == 0 else []
    try:
        _Rank(run).train()
    except Exception as error:
        if (found := lasting(error, context.get_world_rank())) is None:
            raise
        raise found from error


def _by_term(losses: dict[str, float]) -> str:
    terms = [f"{name} {value:.4f}" for name, value in losses.items() if name != "loss"]
    return f" ({', '.join(terms)})" if len(terms) > 1 else ""


class _Rank:
    """One rank's engine, method and progress."""

    def __init__(self, run: Run) -> None:
        context = ray.train.get_context()
        self.run, device = run, ray.train.torch.get_device()
        world = World(
            rank=context.get_world_rank(),
            size=context.get_world_size(),
            device=device,
            precision=resolve_precision(run.precision, device.type == "cuda"),
        )
        self.world = replace(world, local_size=max(world.gather(context.get_local_world_size())))
        if self.world.device.type == "cpu":
            torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        self.method = run.make(self.world)
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
            *(self.world, self.method.steps_per_epoch, self.run.on_bad_loss, self.state["skipped"]),
            folder=self.run.reports or self.run.folder,
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
        self.engine = DeepSpeedEngine(self.method, self.world, self.run.zero_stage, self.run.clip_norm)

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
            if self.run.lease:
                self.run.lease.check()
            ray.train.report(row, ray.train.Checkpoint.from_directory(name))

    def _save_state(self, folder: Path, live: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]) -> None:
        averaged = {_EMA: self.method.ema_model.state_dict(), _BEST: self.best}
        for name, tensors in {**averaged, _LIVE: live, _MOMENTS: moments, _METHOD: self.method.tensors()}.items():
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, folder / name)
        document = {**self.state, "recipe": self.method.state(), "host": socket.gethostname()}
        (folder / _STATE).write_text(storage.to_json(document))

    def _resume(self, folder: Path) -> None:
        if not (folder / _MOMENTS).exists():
            raise UserError(f"{self.run.folder} holds a run of an earlier version of ray-fer; delete it to begin anew")
        document = json.loads((folder / _STATE).read_text())
        self.method.load_state(document.pop("recipe"), load_file(folder / _METHOD))
        self.method.model.load_state_dict(load_file(folder / _LIVE))
        self.method.ema_model.load_state_dict(load_file(folder / _EMA))
        self.best = load_file(folder / _BEST)
        self.state = {key: document[key] for key in self.state}
        self.state["resumed"] = [*self.state["resumed"], self.state["epoch"]]
        self._initialise()
        self.engine.load_moments(load_file(folder / _MOMENTS))
        if self.state["epoch"] < self.method.epochs:
            log.info("going on after epoch %d of %d", self.state["epoch"], self.method.epochs)
