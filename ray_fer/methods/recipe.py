"""What every recipe for a backbone shares: labelled faces by class, the averaged model, validation, the feedback.

A recipe sees faces as arrays by index, whatever they lie on, so the same code runs under Ray Train and DeepSpeed, in a
benchmark and in a test. One file per recipe adds what a step consists of, and its loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_fer.data.augment import STRONG, WEAK, Augmentation, augment, normalise
from ray_fer.data.sampling import ClassUniformSampler
from ray_fer.evaluation.halves import evaluate_halves, prior_helps
from ray_fer.feedback.factors import sampling_probabilities
from ray_fer.feedback.state import Snapshot, initial_state, snapshot
from ray_fer.training.loop import Step
from ray_fer.training.optimisation import Ema, learning_rate_factor, parameter_groups
from ray_fer.training.world import World

VALIDATION_BATCH = 256
VIEWS = {"weak": WEAK, "strong": STRONG}

Indices = NDArray[np.int64]
Factors = Snapshot


class Images(Protocol):
    """Pictures by index."""

    def batch(self, indices: Indices) -> tuple[Any, Any]:
        """Pixels uint8 (B, S, S, 3) and which of them are readable, bool (B,); arrays or tensors."""
        ...


@dataclass(frozen=True, eq=False)
class Faces:
    """A set of faces.

    Attributes:
        images: their pixels by index.
        uris: N names, for messages.
        labels: int64 (N,), -1 where unknown.
    """

    images: Images
    uris: Sequence[str]
    labels: Indices

    def __len__(self) -> int:
        return len(self.uris)


class Feedback(Protocol):
    """What a validation is told to."""

    def __call__(
        self,
        confusion: NDArray[np.int64],
        epoch: int,
        *,
        trained_under: int,
        prior_helps: bool,
        q_hat: Sequence[float] | None,
        accepted_share: float | None,
    ) -> Factors:
        """The factors of the next epoch, from counts (K, K) of the feedback half; see `FeedbackStore.update`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers that every recipe has; ``conf/train_backbone.yaml`` explains them.

    Attributes:
        epochs: of ``steps_per_epoch`` steps.
        steps_per_epoch: None: as many as it takes to draw as many labelled faces as there are.
        batch_size: labelled faces per step over all ranks.
        accumulate: steps whose gradients make one optimiser step.
        class_sampling: how the classes of labelled faces are drawn before any feedback.
        logit_adjustment: tau of `sampled_margin`.
        labeled_view: augmentation of the labelled faces.
        learning_rate: peak, of AdamW.
        layer_decay: see `parameter_groups`.
        weight_decay: of kernels and matrices.
        warmup_epochs: of the learning rate.
        label_smoothing: share of a label spread evenly over the classes.
        ema_decay: of the averaged weights.
        seed: of everything random.
    """

    epochs: int
    steps_per_epoch: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    class_sampling: Literal["uniform", "natural"] = "uniform"
    logit_adjustment: float = 0.0
    labeled_view: Literal["weak", "strong"] = "weak"
    learning_rate: float = 2e-3
    layer_decay: float | None = None
    weight_decay: float = 0.05
    warmup_epochs: float = 2
    label_smoothing: float = 0.1
    ema_decay: float = 0.997
    seed: int = 0


def sampled_margin(class_probs: NDArray[np.float64], count: int, tau: float) -> NDArray[np.float64]:
    """What logit adjustment adds to the logits of labelled faces in the loss (arXiv:2007.07314, eq. 10).

    It has to be the prior that is sampled, m_c = tau log((n p_c + 1) / (n + K)): the same for all classes, and so
    nothing, where they are sampled uniformly; the prior of the set would correct a second time. A class that is never
    sampled counts as one face of n (ours, as Laplace).

    Args:
        class_probs: p, how often each class is sampled, (K,), sums to 1.
        count: n, labelled faces.
        tau: 0 adds nothing, 1 is the balanced softmax.

    Returns:
        m, (K,).
    """
    return tau * np.log((count * class_probs + 1) / (count + len(class_probs)))


class BackboneRecipe(ABC):
    """The part of `ray_fer.training.loop.Recipe` that does not depend on what a step consists of.

    The feedback's sampling weights tilt the draws of labelled faces, within the limits of `sampling_probabilities`; its
    loss weights w are scaled to mean 1 over the faces that are really drawn, so that no factor changes the size of a
    step.

    Args:
        settings: the numbers.
        model: outputs logits (B, K); another output goes through `inference_logits`.
        mean: of the normalisation, per channel, pixels in [0, 1].
        std: likewise.
        labeled: every face labelled.
        val: likewise.
        feedback_rows: which rows of ``val`` are the feedback half, bool.
        classes: K names.
        world: the ranks.
        feedback: called on rank 0 after every validation, if feedback is on.
        factors: of the first epoch; None is neutral.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        labeled: Faces,
        val: Faces,
        feedback_rows: NDArray[np.bool_],
        classes: Sequence[str],
        world: World,
        feedback: Feedback | None = None,
        factors: Factors | None = None,
    ) -> None:
        self.world, self.mean, self.std = world, mean, std
        self.labeled, self.val, self.feedback_rows, self.classes = labeled, val, feedback_rows, tuple(classes)
        self.numbers, self.feedback = settings, feedback
        self.model = model.to(world.device)
        # On a CPU the plain layout is faster. Weights stay as they are: DeepSpeed broadcasts them as flat bytes.
        self.layout = torch.channels_last if world.device.type == "cuda" else torch.contiguous_format
        self.ema = Ema(self.model, settings.ema_decay)
        self.ema_model = self.ema.model
        self.accumulate = settings.accumulate
        self.labeled_counts = np.bincount(labeled.labels, minlength=len(self.classes))
        steps = (
            settings.steps_per_epoch or -(-len(labeled) // (settings.batch_size * self.accumulate)) * self.accumulate
        )
        self.sampler = ClassUniformSampler(
            *(labeled.labels, len(self.classes), settings.batch_size),
            steps=steps,
            seed=settings.seed,
            class_probs=self.labeled_counts if settings.class_sampling == "natural" else None,
        )
        self.neutral_probs = self.sampler.class_probs(0)
        # Of the neutral probabilities, or it would take the feedback's boost away again.
        margin = sampled_margin(self.neutral_probs, len(labeled), settings.logit_adjustment)
        self.margin = self.tensor(margin)
        self.epochs, self.steps_per_epoch = settings.epochs, steps
        self.images_per_epoch = settings.batch_size * steps
        self.temperature = 1.0
        self.confidence_of_correct: list[float | None] | None = None
        self.use(factors or snapshot(initial_state(len(self.classes))), 0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For AdamW; norms and biases do not decay."""
        return parameter_groups(self.model, self.numbers.weight_decay, self.numbers.layer_decay)

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine over the whole run's optimiser steps."""
        in_epoch = self.steps_per_epoch // self.accumulate
        steps = self.epochs * in_epoch
        warmup = round(self.numbers.warmup_epochs * in_epoch)
        return self.numbers.learning_rate * learning_rate_factor(step, steps, min(warmup, steps))

    @abstractmethod
    def steps(self, epoch: int) -> Iterator[Step]:
        """This rank's part of every step of ``epoch``."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """This rank's loss; its mean over the ranks is the loss of the step."""

    def after_step(self, model: nn.Module, steps: list[Step]) -> None:
        """Moves the averaged weights."""
        self.ema.update(model)

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Macro-F1 on the choice half, and all metrics of the averaged model; feeds back what the other half shows."""
        probs, labels = self.predict(self.val)
        prior = self.factors.log_debiasing_prior
        metrics = evaluate_halves(probs, labels, self.feedback_rows, self.classes, prior)
        half = metrics["feedback"]
        self.temperature, self.confidence_of_correct = metrics["temperature"], metrics["confidence_of_correct"]
        if self.feedback is not None:
            metrics["trained_under_feedback"] = trained_under = self.factors.version
            q_hat, accepted_share = self.unlabeled_view()
            factors = self.factors
            if self.world.rank == 0:
                factors = self.feedback(
                    np.asarray(half["confusion_matrix"]),
                    epoch,
                    trained_under=trained_under,
                    prior_helps=prior_helps(half),
                    q_hat=q_hat,
                    accepted_share=accepted_share,
                )
            self.use(self.world.broadcast(factors), epoch + 1)
            metrics["feedback_version"] = self.factors.version
        return float(metrics["choice"]["macro_f1"]), metrics

    def unlabeled_view(self) -> tuple[Sequence[float] | None, float | None]:
        """Class counts of the predictions on unlabeled faces, and the share of them that was accepted, if known."""
        return None, None

    def state(self) -> dict[str, Any]:
        """What the next epoch needs besides weights."""
        return {
            "ema_updates": self.ema.updates,
            "factors": self.factors.to_json(),
            "class_probs": self.sampler.schedule,
            "temperature": self.temperature,
            "confidence_of_correct": self.confidence_of_correct,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` and `tensors` returned."""
        self.ema.updates, self.temperature = state["ema_updates"], state["temperature"]
        self.confidence_of_correct = state["confidence_of_correct"]
        self.sampler.schedule = state["class_probs"]
        self.use(Snapshot.from_json(state["factors"]), state["class_probs"][-1][0])

    def use(self, factors: Factors, epoch: int) -> None:
        """Trains by ``factors`` from ``epoch`` on."""
        self.factors = factors
        n_draws = self.steps_per_epoch * self.numbers.batch_size
        probs = sampling_probabilities(factors.sampling_weights, self.neutral_probs, self.labeled_counts, n_draws)
        self.sampler.reweight(epoch, probs)
        self.class_weights = self.tensor(factors.loss_weights / (probs @ factors.loss_weights))

    @torch.inference_mode()
    def predict(self, faces: Faces) -> tuple[NDArray[np.float32], Indices]:
        """Probabilities (N, K) of the averaged model from all ranks' parts, and the labels, -1 where unreadable."""
        rows = np.arange(self.world.rank, len(faces), self.world.size)
        probs, readable = [np.empty((0, len(self.classes)), np.float32)], [np.empty(0, bool)]
        for start in range(0, len(rows), VALIDATION_BATCH):
            pixels, ok = faces.images.batch(rows[start : start + VALIDATION_BATCH])
            inputs = normalise(self.pixels(pixels), self.mean, self.std)
            probs.append(self.averaged_logits(inputs).softmax(dim=1).cpu().numpy())
            readable.append(np.asarray(ok))
        parts = self.world.gather((rows, np.concatenate(probs), np.concatenate(readable)))
        order, gathered, ok = (np.concatenate(part) for part in zip(*parts, strict=True))
        place = np.argsort(order)
        return gathered[place], np.where(ok[place], faces.labels, -1)

    def averaged_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 (B, K) of the averaged model for normalised ``inputs``, in evaluation mode."""
        with self.world.autocast():
            outputs = self.ema_model(inputs.contiguous(memory_format=self.layout))
        return self.inference_logits(outputs.float())

    def inference_logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, K) of what the model returns."""
        return outputs

    def augmented(self, pixels: Any, policy: Augmentation, generator: torch.Generator) -> torch.Tensor:
        """float32 (B, 3, S, S), normalised."""
        return augment(self.pixels(pixels), policy, generator, self.mean, self.std)

    def pixels(self, pixels: Any) -> torch.Tensor:
        """On this rank's device."""
        return torch.as_tensor(pixels).to(self.world.device, non_blocking=True)

    def tensor(self, values: Any) -> torch.Tensor:
        """float32 on this rank's device."""
        return torch.as_tensor(values, dtype=torch.float32).to(self.world.device)

    def own(self, rows: Indices) -> Indices:
        """This rank's part of the rows of a step."""
        return rows[self.world.rank :: self.world.size]

    def generator(self, epoch: int, step: int, stream: int = 0) -> torch.Generator:
        """Of a step's augmentation on this rank; another for every part of the step that is made by itself."""
        return torch.Generator(self.world.device).manual_seed(self.random_seed(epoch, step + 1, stream))

    def random_seed(self, epoch: int, step: int = 0, stream: int = 0) -> int:
        """Of one step on this rank."""
        place = (self.numbers.seed & 0xFFFFFFFF, epoch, step, self.world.rank, *([stream] if stream else []))
        return int(np.random.SeedSequence(place).generate_state(1)[0])
