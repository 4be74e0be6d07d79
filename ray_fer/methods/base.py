"""What methods share: the averaged model, its schedule, its validation.

A method sees faces as arrays by index, whatever they lie on, so the same code runs under Ray Train and DeepSpeed, in a
benchmark and in a test. The file of a method adds what a step consists of, its loss, and its own numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_fer.data.augment import STRONG, WEAK, Augmentation, augment, normalise
from ray_fer.evaluation.halves import evaluate_halves
from ray_fer.methods.batch import Faces, Indices
from ray_fer.methods.config import MethodConfig
from ray_fer.methods.context import Context
from ray_fer.training.loop import Batch, Terms
from ray_fer.training.optimisation import Ema, learning_rate_factor, parameter_groups

VALIDATION_BATCH = 256
VIEWS = {"weak": WEAK, "strong": STRONG}
Weights = dict[str, torch.Tensor]


class BackboneMethod(ABC):
    """A method whose product is a backbone with a classifier; see `ray_fer.training.loop.Method` for its protocol.

    A method that learns from labels is a `LabeledMethod`. One that learns without them may derive from this class.

    Args:
        context: All that it is given.

    Attributes:
        Config: The method's own numbers, with their defaults and their documentation.
        needs: What the job has to be given: ``labeled``, ``unlabeled``, ``pseudo``, ``feedback``.
        takes: What it may be given besides.
        pre_trains: Whether it learns without a label, so that the job need not be given ``labeled`` and ``val``; then
            what is published has no classifier.
        from_scratch: What to warn of where neither ``init=`` nor ``pretrained=`` is given.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    pre_trains: ClassVar[bool] = False
    from_scratch: ClassVar[str | None] = None

    def __init__(self, context: Context) -> None:
        self.context, self.config, self.world, self.classes = context, context.config, context.world, context.classes
        self.numbers = context.numbers
        self.val = context.val
        self.model = self.network().to(self.world.device)
        # On a CPU the plain layout is faster. Weights stay as they are: DeepSpeed broadcasts them as flat bytes.
        self.layout = torch.channels_last if self.world.device.type == "cuda" else torch.contiguous_format
        self.accumulate, self.epochs = self.config.accumulate, self.config.epochs
        faces = len(context.labeled) or len(context.unlabeled)
        together = self.config.batch_size * self.accumulate
        self.steps_per_epoch: int = context.steps_per_epoch or -(-faces // together) * self.accumulate
        # A window of the whole run would still hold its beginning.
        window = min(0.997, 1 - 10 / max(11, self.epochs * self.steps_per_epoch // self.accumulate))
        self.ema = Ema(self.model, window if self.config.ema_decay is None else self.config.ema_decay)
        self.ema_model = self.ema.model
        self.images_per_epoch = self.config.batch_size * self.steps_per_epoch
        self.temperature = 1.0
        self.confidence_of_correct: list[float | None] | None = None

    def network(self) -> nn.Module:
        """The model that is trained; of what it returns, `inference_logits` takes the logits (B, K)."""
        return self.context.backbone()

    @classmethod
    def publish(cls, weights: Weights, numbers: Any, classifier: str) -> Weights:
        """The weights of the plain backbone, from the averaged weights of the method's model.

        Args:
            weights: ``state_dict()`` of that model.
            numbers: An instance of ``Config``.
            classifier: What the backbone calls its classifier, for example ``fc``.
        """
        return weights

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW; norms and biases do not decay."""
        rate = self.config.backbone_rate or 1.0
        return parameter_groups(self.model, self.config.weight_decay, self.config.layer_decay, rate)

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine over the whole run's optimiser steps."""
        in_epoch = self.steps_per_epoch // self.accumulate
        steps = self.epochs * in_epoch
        warmup = round(self.config.warmup_epochs * in_epoch)
        assert self.config.learning_rate is not None
        return self.config.learning_rate * learning_rate_factor(step, steps, min(warmup, steps))

    @abstractmethod
    def steps(self, epoch: int) -> Iterator[Batch]:
        """This rank's part of every step of ``epoch``."""

    @abstractmethod
    def losses(self, outputs: torch.Tensor, batch: Any) -> Terms:
        """The terms of this rank's loss; the mean of their sums over the ranks is the loss of the step."""

    def after_step(self, model: nn.Module, batches: list[Any]) -> None:
        """Updates the averaged weights."""
        self.ema.update(model)

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Macro-F1 on the choice half, and all metrics of the averaged model."""
        probs, labels = self.predict(self.val)
        metrics = evaluate_halves(probs, labels, self.context.feedback_rows, self.classes, self.log_prior())
        self.temperature, self.confidence_of_correct = metrics["temperature"], metrics["confidence_of_correct"]
        return float(metrics["choice"]["macro_f1"]), metrics

    def log_prior(self) -> NDArray[np.float64] | None:
        """The debiasing prior log p_d, (K,), that validation tries; None is uniform."""
        return None

    def state(self) -> dict[str, Any]:
        """What the next epoch needs besides weights."""
        return {
            "ema_updates": self.ema.updates,
            "temperature": self.temperature,
            "confidence_of_correct": self.confidence_of_correct,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """State that is tensors; none."""
        return {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `state` and `tensors` returned."""
        self.ema.updates, self.temperature = state["ema_updates"], state["temperature"]
        self.confidence_of_correct = state["confidence_of_correct"]

    @torch.inference_mode()
    def predict(self, faces: Faces) -> tuple[NDArray[np.float32], Indices]:
        """Probabilities (N, K) of the averaged model from all ranks' parts, and the labels, -1 where unreadable."""
        rows = np.arange(self.world.rank, len(faces), self.world.size)
        probs, readable = [np.empty((0, len(self.classes)), np.float32)], [np.empty(0, bool)]
        for start in range(0, len(rows), VALIDATION_BATCH):
            pixels, ok = faces.images.batch(rows[start : start + VALIDATION_BATCH])
            inputs = normalise(self.pixels(pixels), self.context.mean, self.context.std)
            probs.append(self.averaged_logits(inputs).softmax(dim=1).cpu().numpy())
            readable.append(np.asarray(ok))
        parts = self.world.gather((rows, np.concatenate(probs), np.concatenate(readable)))
        order, gathered, ok = (np.concatenate(part) for part in zip(*parts, strict=True))
        place = np.argsort(order)
        return gathered[place], np.where(ok[place], faces.labels, -1)

    def averaged_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 (B, K) of the averaged model for normalised ``inputs``, in evaluation mode."""
        return self.inference_logits(self.outputs_of(self.ema_model, inputs))

    def inference_logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, K) of what the model returns."""
        return outputs

    def outputs_of(self, model: Any, inputs: torch.Tensor) -> torch.Tensor:
        """What ``model`` returns for normalised ``inputs`` in this world's precision, as float32."""
        with self.world.autocast():
            outputs: torch.Tensor = model(inputs.contiguous(memory_format=self.layout)).float()
        return outputs

    def augmented(self, pixels: Any, policy: Augmentation, generator: torch.Generator) -> torch.Tensor:
        """float32 (B, 3, S, S), normalised, of pixels uint8 (B, S, S, 3)."""
        return augment(self.pixels(pixels), policy, generator, self.context.mean, self.context.std)

    def pixels(self, pixels: Any) -> torch.Tensor:
        """``pixels`` on this rank's device."""
        return torch.as_tensor(pixels).to(self.world.device, non_blocking=True)

    def tensor(self, values: Any) -> torch.Tensor:
        """float32 on this rank's device."""
        return torch.as_tensor(values, dtype=torch.float32).to(self.world.device)

    def own(self, rows: Indices) -> Indices:
        """This rank's part of the rows of a step."""
        return rows[self.world.rank :: self.world.size]

    def generator(self, epoch: int, step: int, stream: int = 0) -> torch.Generator:
        """Random numbers for a step's augmentation on this rank; ``stream`` tells the parts of a step apart."""
        return torch.Generator(self.world.device).manual_seed(self.random_seed(epoch, step + 1, stream))

    def random_seed(self, epoch: int, step: int = 0, stream: int = 0) -> int:
        """The seed of one step on this rank."""
        place = (self.config.seed & 0xFFFFFFFF, epoch, step, self.world.rank, *([stream] if stream else []))
        return int(np.random.SeedSequence(place).generate_state(1)[0])
