"""Training of one head: AdamW on labelled rows and, beside them, on pseudo-labelled ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ray_fer.heads.examples import Examples, Indices, blocks_of, draw
from ray_fer.heads.net import Head, moments
from ray_fer.training.optimisation import Ema, learning_rate_factor, parameter_groups

_WARMUP = 0.05  # share of the steps


@dataclass(frozen=True)
class HeadSettings:
    """How a head is built and trained.

    Attributes:
        hidden: width of its hidden layer; 0 for a linear head.
        dropout: of the hidden layer.
        steps: of the optimiser.
        batch: labelled rows a step.
        ratio: pseudo-labelled rows a step per labelled row.
        learning_rate: the peak, after which it falls as half a cosine.
        weight_decay: of the matrices.
        draw_power: see `draw_weights`, for both kinds of rows.
        averaging: share of the steps over which the weights are averaged.
        bfloat16: whether the matrices are multiplied in bfloat16, three times as fast where the processor knows it.
    """

    hidden: int = 256
    dropout: float = 0.4
    steps: int = 1600
    batch: int = 64
    ratio: float = 2.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    draw_power: float = 0.5
    averaging: float = 0.1
    bfloat16: bool = False


def train_head(
    labeled: Examples,
    settings: HeadSettings,
    seed: int,
    *,
    pseudo: Examples | None = None,
    statistics: tuple[Any, Any] | None = None,
    transition: Any = None,
) -> Head:
    """A head with averaged weights, in evaluation mode.

    Args:
        labeled: rows with labels.
        settings: see there.
        seed: of the weights, the draws and dropout; the global generator of torch stays as it was.
        pseudo: rows with pseudo-labels, ``ratio`` for each labelled row in a step, of the same weight in the loss.
        statistics: mean and standard deviation of the embeddings, (D,) each; None: of the labelled rows.
        transition: (K, K), row c the distribution of the pseudo-labels of class c: the loss of pseudo-labelled rows is
            then that of the prediction seen through it, CE(t, p T) (forward correction, arXiv:1609.03683).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, scale = statistics or moments([labeled.embeddings])
        n_classes = labeled.targets.shape[1]
        head = Head(mean, scale, n_classes, hidden=settings.hidden, dropout=settings.dropout)
        return _trained(head, labeled, pseudo, settings, np.random.default_rng(seed), transition)


def _trained(
    head: Head,
    labeled: Examples,
    pseudo: Examples | None,
    settings: HeadSettings,
    generator: np.random.Generator,
    transition: Any,
) -> Head:
    optimiser = torch.optim.AdamW(
        parameter_groups(head, settings.weight_decay), settings.learning_rate, betas=(0.9, 0.99), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, settings.steps, round(_WARMUP * settings.steps))
    )
    average = Ema(head, 1 - 1 / max(settings.averaging * settings.steps, 1))
    rows = draw(labeled.draws, (settings.steps, settings.batch), generator)
    beside = round(settings.ratio * settings.batch) if pseudo else 0
    pseudo_rows = draw(pseudo.draws, (settings.steps, beside), generator) if pseudo else None
    seen = None if transition is None else torch.tensor(transition, dtype=torch.float32)
    for step in range(settings.steps):
        inputs, targets = taken(labeled, rows[step])
        if pseudo is not None and pseudo_rows is not None:
            more, soft = taken(pseudo, pseudo_rows[step])
            inputs, targets = torch.cat([inputs, more]), torch.cat([targets, soft])
        inputs = head.standardised(inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            logits = head.last(head.layers(inputs))
        log_probs = F.log_softmax(logits.float(), 1)
        if seen is not None:
            through = torch.log(log_probs[settings.batch :].exp() @ seen)
            log_probs = torch.cat([log_probs[: settings.batch], through])
        optimiser.zero_grad(set_to_none=True)
        loss = -(targets * log_probs).sum(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        average.update(head)
    averaged: Head = average.model  # type: ignore[assignment]
    return averaged


def taken(examples: Examples, rows: Indices) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings float32 (B, D) and targets float32 (B, K) of some rows."""
    embeddings = torch.from_numpy(np.ascontiguousarray(examples.embeddings[rows], dtype=np.float32))
    return embeddings, torch.from_numpy(np.asarray(examples.targets[rows], dtype=np.float32))


@torch.inference_mode()
def predict(head: nn.Module, embeddings: Any) -> NDArray[np.float32]:
    """Probabilities float32 (N, K) of embeddings (N, D), block by block."""
    wide = (torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32)) for block in blocks_of(embeddings))
    return np.concatenate([head(block).softmax(1).numpy() for block in wide])
