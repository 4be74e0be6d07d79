"""The recipe of teacher and student: labelled faces drawn uniformly over the classes, pseudo-labelled ones beside them.

    loss = mean_i w[y_i] CE(y_i smoothed, z_i + m) + pseudo_weight * mean_j (t_j . w) CE(t_j, z_j)

i runs over the labelled faces of a step, weakly augmented, j over the pseudo-labelled ones, strongly augmented, w are
the feedback's class weights (1 without feedback), t the soft targets, z logits, and m (`sampled_margin`) the adjustment
to the classes as they are sampled. Class-uniform sampling is the paper's (arXiv:2403.11942); putting both terms into
one forward and one backward pass is FixMatch's (arXiv:2001.07685) with labels that were made beforehand. A pseudo-
labelled face is drawn in proportion to its weight in the selection, so the weight is not in the loss again. Means have
fixed denominators: the mean of the ranks' losses is the loss.

The feedback's sampling weights tilt both draws, within the limits of `sampling_probabilities`; w is scaled to mean 1
over the labelled faces that are really drawn, so that no factor changes the size of a step.

One joint forward pass is a third cheaper than two, and the price is that BatchNorm sees one mixture of both sets.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ray_fer import storage
from ray_fer.config import TrainBackboneConfig
from ray_fer.data.augment import STRONG, WEAK, augment, normalise
from ray_fer.data.loading import CACHE_BYTES, ImageLoader, Indices, Pixels, read_ahead
from ray_fer.data.manifests import Manifest
from ray_fer.data.sampling import ClassUniformSampler, weighted_indices
from ray_fer.errors import UserError
from ray_fer.evaluation.halves import evaluate_halves
from ray_fer.feedback.formulas import initial_state, sampling_probabilities, snapshot
from ray_fer.models.backbone import checkpoint_activations
from ray_fer.training.loop import Step, World
from ray_fer.training.optimisation import Ema, learning_rate_factor, parameter_groups

VALIDATION_BATCH = 256

Factors = dict[str, Any]
"""A feedback snapshot as `Snapshot.to_json` writes it."""


class Feedback(Protocol):
    """What a validation is told to."""

    def __call__(self, confusion: NDArray[np.int64], epoch: int, *, trained_under: int, prior_helps: bool) -> Factors:
        """The factors of the next epoch, from counts (K, K) of the feedback half; see `FeedbackStore.update`."""
        ...


@dataclass(frozen=True, eq=False)
class Selection:
    """Pseudo-labels as `select_pseudo_labels` wrote them.

    Attributes:
        uris: M pictures.
        targets: float32 (M, K), rows sum to 1.
        weights: float32 (M,), how often each is drawn, relative to the others.
        info: ``selection.json``.
    """

    uris: Sequence[str]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    info: dict[str, Any]

    def weights_under(self, sampling_weights: NDArray[np.float64], n_draws: int) -> NDArray[np.float64]:
        """How often each row is drawn, (M,), relative to the others, under the feedback's sampling weights.

        The selection was made under earlier ones, which are in its weights; these take their place.

        Args:
            sampling_weights: (K,).
            n_draws: rows drawn per epoch.
        """
        earlier = self.info.get("sampling_weights", {})
        classes, labels = self.info["classes"], self.targets.argmax(axis=1)
        plain = self.weights / np.array([earlier.get(name, 1.0) for name in classes])[labels]
        counts = np.bincount(labels, minlength=len(classes))
        mass = np.bincount(labels, plain, minlength=len(classes))
        wanted = sampling_probabilities(sampling_weights, mass, counts, n_draws)
        tilted: NDArray[np.float64] = plain * (wanted / np.where(mass > 0, mass, 1.0))[labels]
        return tilted


def read_selection(uri: str, classes: tuple[str, ...]) -> Selection:
    """Reads the folder ``uri``.

    Raises:
        UserError: when there is no selection, it has other classes, or nothing in it can be drawn.
    """
    try:
        info = storage.read_json(storage.join(uri, "selection.json"))
        data = storage.read_bytes(storage.join(uri, "selection.parquet"))
    except FileNotFoundError as error:
        raise UserError(f"pseudo={uri}: no selection there ({error.filename or error} is missing)") from None
    if tuple(info["classes"]) != classes:
        theirs, ours = ", ".join(info["classes"]), ", ".join(classes)
        raise UserError(f"pseudo={uri}: its classes {theirs} are not those of labeled, {ours}")
    table = pq.read_table(io.BytesIO(data), columns=["uri", "target", "weight"])
    weights = table["weight"].to_numpy().astype(np.float32)
    if not weights.any():
        raise UserError(f"pseudo={uri}: the selection is empty")
    matrix = pc.list_flatten(table["target"]).to_numpy().astype(np.float32).reshape(len(weights), len(classes))
    return Selection(table["uri"].to_pylist(), matrix, weights, info)


@dataclass(frozen=True, eq=False)
class Targets:
    """Of one step's inputs: the first B are labelled, the other M pseudo-labelled; an unreadable one has weight 0.

    Attributes:
        labels: int64 (B,).
        label_weights: float (B,), 1 or 0.
        soft: float (M, K).
        soft_weights: float (M,), 1 or 0.
        label_count: labelled faces of the step over all ranks.
        soft_count: pseudo-labelled faces of the step over all ranks.
    """

    labels: torch.Tensor
    label_weights: torch.Tensor
    soft: torch.Tensor
    soft_weights: torch.Tensor
    label_count: int
    soft_count: int


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


def joint_loss(
    logits: torch.Tensor,
    targets: Targets,
    class_weights: torch.Tensor,
    label_smoothing: float,
    pseudo_weight: float,
    margin: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """The loss of the module's docstring, this rank's share of the sums over the whole step's counts.

    Args:
        logits: (B + M, K), any float type.
        targets: of the same rows.
        class_weights: w, float (K,).
        label_smoothing: share of the target spread evenly over the classes.
        pseudo_weight: weight of the second term.
        margin: m, float (K,).
    """
    logits = logits.float()
    n = len(targets.labels)
    errors = F.cross_entropy(logits[:n] + margin, targets.labels, label_smoothing=label_smoothing, reduction="none")
    loss = (errors * targets.label_weights * class_weights[targets.labels]).sum() / targets.label_count
    if targets.soft_count:
        errors = F.cross_entropy(logits[n:], targets.soft, reduction="none")
        importance = targets.soft_weights * (targets.soft @ class_weights)
        loss = loss + pseudo_weight * (errors * importance).sum() / targets.soft_count
    return loss


class SupervisedRecipe:
    """A backbone, its data, and how a step is made; see `ray_fer.training.loop.Recipe` for the methods.

    Args:
        config: with ``image_size`` resolved.
        model: logits over ``labeled.classes``.
        mean: of the normalisation, per channel, pixels in [0, 1].
        std: likewise.
        labeled: every row labelled.
        val: likewise, the same classes.
        feedback_rows: which rows of ``val`` are the feedback half, bool.
        selection: pseudo-labels, if any.
        world: the ranks.
        feedback: called on rank 0 after every validation, if feedback is on.
        factors: of the first epoch; None is neutral.
    """

    def __init__(
        self,
        config: TrainBackboneConfig,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        labeled: Manifest,
        val: Manifest,
        feedback_rows: NDArray[np.bool_],
        selection: Selection | None,
        world: World,
        feedback: Feedback | None = None,
        factors: Factors | None = None,
    ) -> None:
        assert config.image_size is not None
        self.config, self.world, self.mean, self.std = config, world, mean, std
        self.labeled, self.val, self.feedback_rows, self.selection = labeled, val, feedback_rows, selection
        self.feedback = feedback
        self.model = model.to(world.device)
        # On a CPU the plain layout is faster. Weights stay as they are: DeepSpeed broadcasts them as flat bytes.
        self.layout = torch.channels_last if world.device.type == "cuda" else torch.contiguous_format
        self.ema = Ema(self.model, config.ema_decay)
        self.ema_model = self.ema.model
        if config.checkpoint_activations:
            checkpoint_activations(self.model, str(config.backbone))
        self.accumulate = config.accumulate
        self.sampler = ClassUniformSampler(
            *(labeled.labels, len(labeled.classes), config.batch_size),
            steps=-(-len(labeled) // (config.batch_size * self.accumulate)) * self.accumulate,
            seed=config.seed,
            class_probs=labeled.counts() if config.class_sampling == "natural" else None,
        )
        self.neutral_probs = self.sampler.class_probs(0)
        self.epochs, self.steps_per_epoch = config.epochs, self.sampler.steps
        faces = config.batch_size * (1 + config.pseudo_ratio) if selection else config.batch_size
        self.images_per_epoch = faces * self.steps_per_epoch
        self._use(factors or snapshot(initial_state(len(labeled.classes))).to_json(), 0)
        budget = CACHE_BYTES // world.local_size
        size = config.image_size
        self.labeled_images = ImageLoader(labeled.uris, size, cache_bytes=budget, name="labeled")
        self.val_images = ImageLoader(val.uris, size, cache_bytes=budget, name="val")
        pseudo_uris = selection.uris if selection else []
        self.pseudo_images = ImageLoader(pseudo_uris, size, cache_bytes=budget, name="pseudo")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For AdamW; norms and biases do not decay."""
        return parameter_groups(self.model, self.config.weight_decay, self.config.layer_decay)

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine over the whole run's optimiser steps."""
        in_epoch = self.steps_per_epoch // self.accumulate
        steps = self.epochs * in_epoch
        warmup = round(self.config.warmup_epochs * in_epoch)
        return self.config.learning_rate * learning_rate_factor(step, steps, min(warmup, steps))

    def steps(self, epoch: int) -> Iterator[Step]:
        """This rank's part of every step of ``epoch``."""
        torch.manual_seed(self._seed(epoch))  # dropout
        tau = self.config.logit_adjustment
        # Without the feedback's part, which is meant to be felt.
        self.margin = self._tensor(sampled_margin(self.neutral_probs, len(self.labeled), tau))
        plans = zip(range(self.steps_per_epoch), self.sampler.epoch(epoch), self._pseudo_rows(epoch), strict=True)
        own = slice(self.world.rank, None, self.world.size)
        rows = ((number, labeled[own], pseudo[own]) for number, labeled, pseudo in plans)
        for (number, labeled, pseudo), *pictures in read_ahead(self._read, rows):
            generator = torch.Generator(self.world.device).manual_seed(self._seed(epoch, number + 1))
            yield self._step(labeled, pseudo, pictures, generator)

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """`joint_loss`, scaled so that its mean over the ranks is the loss of the step."""
        config = self.config
        settings = (config.label_smoothing, config.pseudo_weight, self.margin)
        return joint_loss(outputs, step.data, self.class_weights, *settings) * self.world.size

    def after_step(self, model: nn.Module, steps: list[Step]) -> None:
        """Moves the averaged weights."""
        self.ema.update(model)

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Macro-F1 on the choice half, and all metrics of the averaged model; feeds back what the other half shows."""
        rows = np.arange(self.world.rank, len(self.val), self.world.size)
        parts = self.world.gather((rows, *self._predict(rows)))
        order, probs, ok = (np.concatenate(part) for part in zip(*parts, strict=True))
        labels = np.where(ok, self.val.labels[order], -1)
        prior = self.factors["log_debiasing_prior"]
        metrics = evaluate_halves(probs, labels, self.feedback_rows[order], self.val.classes, prior)
        half = metrics["feedback"]
        if self.feedback is not None:
            metrics["trained_under_feedback"] = trained_under = self.factors["version"]
            factors: Factors = {}
            if self.world.rank == 0:
                helps = half["macro_f1"] is None or half["macro_f1_debiased"] >= half["macro_f1"]
                confusion = np.asarray(half["confusion_matrix"])
                factors = self.feedback(confusion, epoch, trained_under=trained_under, prior_helps=helps)
            self._use(self.world.broadcast(factors), epoch + 1)
            metrics["feedback_version"] = self.factors["version"]
        return float(metrics["choice"]["macro_f1"]), metrics

    def state(self) -> dict[str, Any]:
        """What the next epoch needs besides weights."""
        return {"ema_updates": self.ema.updates, "factors": self.factors, "class_probs": self.sampler.schedule}

    def tensors(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` returned."""
        self.ema.updates = state["ema_updates"]
        self.sampler.schedule = state["class_probs"]
        self._use(state["factors"], state["class_probs"][-1][0])

    def _use(self, factors: Factors, epoch: int) -> None:
        """Trains by ``factors`` from ``epoch`` on."""
        self.factors = factors
        sampling = np.asarray(factors["sampling_weights"])
        n_draws = self.steps_per_epoch * self.config.batch_size
        probs = sampling_probabilities(sampling, self.neutral_probs, self.labeled.counts(), n_draws)
        self.sampler.reweight(epoch, probs)
        weights = np.asarray(factors["loss_weights"])
        self.class_weights = self._tensor(weights / (probs @ weights))
        if self.selection is not None:
            self.pseudo_weights = self.selection.weights_under(sampling, n_draws * self.config.pseudo_ratio)

    def _pseudo_rows(self, epoch: int) -> NDArray[np.int64]:
        # (steps, faces per step over all ranks)
        if self.selection is None:
            return np.empty((self.steps_per_epoch, 0), np.int64)
        count = self.steps_per_epoch * self.config.batch_size * self.config.pseudo_ratio
        rows = weighted_indices(self.pseudo_weights, count, seed=self.config.seed, epoch=epoch)
        return rows.reshape(self.steps_per_epoch, -1)

    def _read(self, rows: tuple[int, Indices, Indices]) -> tuple[Any, ...]:
        _, labeled, pseudo = rows
        return rows, self.labeled_images.batch(labeled), self.pseudo_images.batch(pseudo)

    def _step(self, labeled: Indices, pseudo: Indices, pictures: list[Any], generator: torch.Generator) -> Step:
        (weak, weak_ok), (strong, strong_ok) = pictures
        inputs = augment(self._pixels(weak), WEAK, generator, self.mean, self.std)
        uris = [self.labeled.uris[row] for row in labeled]
        soft = np.empty((0, len(self.labeled.classes)), np.float32)
        if self.selection is not None:
            inputs = torch.cat([inputs, augment(self._pixels(strong), STRONG, generator, self.mean, self.std)])
            uris += [self.selection.uris[row] for row in pseudo]
            soft = self.selection.targets[pseudo]
        targets = Targets(
            labels=torch.from_numpy(self.labeled.labels[labeled]).to(self.world.device),
            label_weights=self._tensor(weak_ok),
            soft=self._tensor(soft),
            soft_weights=self._tensor(strong_ok),
            label_count=self.config.batch_size,
            soft_count=self.config.batch_size * self.config.pseudo_ratio if self.selection is not None else 0,
        )
        return Step(inputs.contiguous(memory_format=self.layout), uris, targets)

    @torch.inference_mode()
    def _predict(self, rows: Indices) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        probs = [np.empty((0, len(self.val.classes)), np.float32)]
        readable = [np.empty(0, bool)]
        batches = (rows[start : start + VALIDATION_BATCH] for start in range(0, len(rows), VALIDATION_BATCH))
        for pixels, ok in self.val_images.prefetch(batches):
            inputs = normalise(self._pixels(pixels), self.mean, self.std)
            with self.world.autocast():
                logits = self.ema_model(inputs.contiguous(memory_format=self.layout))
            probs.append(logits.float().softmax(dim=1).cpu().numpy())
            readable.append(ok)
        return np.concatenate(probs), np.concatenate(readable)

    def _pixels(self, pixels: Pixels) -> torch.Tensor:
        return torch.from_numpy(pixels).to(self.world.device, non_blocking=True)

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32).to(self.world.device)

    def _seed(self, epoch: int, step: int = 0) -> int:
        sequence = np.random.SeedSequence((self.config.seed & 0xFFFFFFFF, epoch, step, self.world.rank))
        return int(sequence.generate_state(1)[0])
