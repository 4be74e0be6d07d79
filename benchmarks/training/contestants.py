"""The two that are compared; in a file of their own, for Ray pickles functions of a program's main file by value."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ray_fer import cluster
from ray_fer.config import TrainBackboneConfig
from ray_fer.data.augment import WEAK, augment
from ray_fer.data.loading import ImageLoader
from ray_fer.data.manifests import read_manifest
from ray_fer.data.read_ahead import read_ahead
from ray_fer.data.sampling import ClassUniformSampler
from ray_fer.models.backbone import build_backbone, normalisation
from ray_fer.training import supervised
from ray_fer.training.build_recipe import build_recipe
from ray_fer.training.inputs import Inputs
from ray_fer.training.optimisation import Ema, parameter_groups
from ray_fer.training.recipe import BackboneRecipe
from ray_fer.training.runner import Run, fit
from ray_fer.training.world import World


def ray_train(config: TrainBackboneConfig, folder: Path) -> list[dict[str, float]]:
    """Seconds, CPU seconds and seconds spent waiting for pictures of every epoch, on one worker."""
    cluster.connect()
    outcome = fit(Run(str(folder), functools.partial(measured_recipe, config), workers=1))
    return [{key: row[key] for key in ("seconds", "cpu_seconds", "wait_seconds")} for row in outcome.history]


def measured_recipe(config: TrainBackboneConfig, world: World) -> BackboneRecipe:
    """The recipe of the jobs, with clocks around its steps and its input."""
    labeled = read_manifest(config.labeled)
    val = labeled.take(np.arange(64))
    inputs = Inputs(config, labeled, val, np.arange(64) < 32, None, None, None)
    recipe = build_recipe(inputs, [], world, {})
    clocks = {"wait_seconds": 0.0, "cpu_seconds": 0.0}

    def steps(epoch: int) -> Iterator[Any]:
        clocks["wait_seconds"], started = 0.0, time.process_time()
        yield from original_steps(epoch)
        clocks["cpu_seconds"] = time.process_time() - started

    def validate(epoch: int) -> tuple[float, dict[str, Any]]:
        score, metrics = original_validate(epoch)
        return score, metrics | clocks

    def timed_read_ahead(make: Callable[[Any], Any], items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
        made = read_ahead(make, items, depth)
        while True:
            started = time.perf_counter()
            try:
                one = next(made)
            except StopIteration:
                return
            clocks["wait_seconds"] += time.perf_counter() - started
            yield one

    original_steps, original_validate = recipe.steps, recipe.validate
    recipe.steps, recipe.validate = steps, validate  # type: ignore[method-assign]
    supervised.read_ahead = timed_read_ahead  # type: ignore[assignment]
    return recipe


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
