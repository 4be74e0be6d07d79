"""What is compared; in a file of its own, for Ray pickles functions of a program's main file by value."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.labeling.material import list_pictures
from ray_fer import cluster
from ray_fer.data.augment import WEAK, augment
from ray_fer.data.loading import ImageLoader, read_ahead
from ray_fer.data.manifests import read_manifest
from ray_fer.data.sampling import ClassUniformSampler
from ray_fer.jobs import backbone_context as builder
from ray_fer.jobs.backbone_inputs import Inputs
from ray_fer.methods import online, supervised
from ray_fer.methods.base import BackboneMethod
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.models.backbone import build_backbone, normalisation
from ray_fer.training.optimisation import Ema, parameter_groups
from ray_fer.training.rank import TrainSpec
from ray_fer.training.runner import fit
from ray_fer.training.world import World


def ray_train(config: TrainBackboneConfig, folder: Path, streamed: bool = False) -> list[dict[str, float]]:
    """Seconds, CPU seconds, and seconds spent waiting for pictures, also before the first step, of every epoch.

    Args:
        config: of a run on one worker.
        folder: of the run.
        streamed: as if the unlabeled pictures did not fit in memory.
    """
    cluster.connect()
    outcome = fit(TrainSpec(str(folder), functools.partial(measured_method, config, streamed), workers=1))
    clocks = ("seconds", "cpu_seconds", "wait_seconds", "first_wait_seconds")
    return [{key: row[key] for key in clocks} for row in outcome.history]


def measured_method(config: TrainBackboneConfig, streamed: bool, world: World) -> BackboneMethod:
    """The method of the jobs, with clocks around its steps and its input."""
    labeled = read_manifest(config.labeled)
    val = labeled.take(np.arange(64))
    inputs = Inputs(config, labeled, val, np.arange(64) < 32, None, None, None)
    if streamed:
        builder.CACHE_BYTES = len(labeled) * int(config.image_size or 0) ** 2 * 3  # type: ignore[attr-defined]
    unlabeled = list_pictures(str(config.unlabeled[0])) if config.unlabeled else []
    method = builder.build_method(inputs, world, unlabeled)
    clocks = dict.fromkeys(("cpu_seconds", "wait_seconds", "first_wait_seconds"), 0.0)

    def steps(epoch: int) -> Iterator[Any]:
        clocks["wait_seconds"], started = 0.0, time.process_time()
        for number, step in enumerate(original_steps(epoch)):
            if number == 0:
                clocks["first_wait_seconds"] = clocks["wait_seconds"]
            yield step
        clocks["cpu_seconds"] = time.process_time() - started

    def validate(epoch: int) -> tuple[float, dict[str, Any]]:
        score, metrics = original_validate(epoch)
        return score, metrics | clocks

    def timed(made: Iterator[Any]) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            try:
                one = next(made)
            except StopIteration:
                return
            finally:
                clocks["wait_seconds"] += time.perf_counter() - started
            yield one

    original_steps, original_validate = method.steps, method.validate
    method.steps, method.validate = steps, validate  # type: ignore[method-assign]
    for module in (supervised, online):
        module.read_ahead = lambda *arguments: timed(read_ahead(*arguments))  # type: ignore[attr-defined]
    if isinstance(method, online.OnlineMethod) and method.stream is not None:
        stream = method.stream
        method.stream = lambda epoch: timed(stream(epoch))
    return method


def bare_loop(config: TrainBackboneConfig) -> list[dict[str, float]]:
    """Seconds and CPU seconds of every epoch of the loop that one writes without any framework."""
    torch.manual_seed(config.seed)
    labeled = read_manifest(config.labeled)
    size = int(config.image_size or 0)
    model = build_backbone(str(config.backbone), len(labeled.classes), size)
    mean, std = normalisation(model)
    pixels, _ = ImageLoader(labeled.uris, size).batch(np.arange(len(labeled)))
    sampler = ClassUniformSampler(labeled.labels, len(labeled.classes), config.batch_size, seed=config.seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.learning_rate, fused=True)
    ema = Ema(model, config.ema_decay)
    generator = torch.Generator().manual_seed(config.seed)
    epochs = []
    for epoch in range(config.epochs):
        started, cpu = time.monotonic(), time.process_time()
        for rows in sampler.epoch(epoch):
            inputs = augment(torch.from_numpy(pixels[rows]), WEAK, generator, mean, std)
            labels = torch.from_numpy(labeled.labels[rows])
            loss = F.cross_entropy(model(inputs), labels, label_smoothing=config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model)
        epochs.append({"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu})
    return epochs
