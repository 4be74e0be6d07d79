"""The recipe of teacher and offline student: labelled faces drawn by class, pseudo-labelled ones beside them.

    loss = mean_i w[y_i] CE(y_i smoothed, z_i + m) + pseudo_weight * mean_j (t_j . w) CE(t_j, z_j)

i runs over the labelled faces of a step, weakly augmented, j over the pseudo-labelled ones, strongly augmented, w are
the feedback's class weights (1 without feedback), t the soft targets, z logits, and m (`sampled_margin`) the adjustment
to the classes as they are sampled. Class-uniform sampling is the paper's (arXiv:2403.11942); putting both terms into
one forward and one backward pass is FixMatch's (arXiv:2001.07685) with labels that were made beforehand. A pseudo-
labelled face is drawn in proportion to its weight in the selection, so the weight is not in the loss again. Means have
fixed denominators: the mean of the ranks' losses is the loss.

One joint forward pass is a third cheaper than two, and the price is that BatchNorm sees one mixture of both sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ray_fer.compat.timm import classifier_name
from ray_fer.data.augment import STRONG
from ray_fer.data.read_ahead import read_ahead
from ray_fer.data.sampling import weighted_indices
from ray_fer.feedback.factors import sampling_probabilities
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.methods.heads import BALANCED, MAIN, published, with_heads
from ray_fer.methods.parts import Parts, RecipeKind, Weights
from ray_fer.methods.recipe import VIEWS, BackboneRecipe, Faces, Factors, Feedback, Indices, Settings
from ray_fer.training.loop import Step
from ray_fer.training.world import World


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Selected predictions.

    Attributes:
        faces: M pictures.
        targets: float32 (M, K), rows sum to 1.
        weights: float32 (M,), how often each is drawn, relative to the others, without any feedback.
    """

    faces: Faces
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]

    def weights_under(self, sampling_weights: NDArray[np.float64], n_draws: int) -> NDArray[np.float64]:
        """How often each row is drawn, (M,), relative to the others, under the feedback's sampling weights.

        Args:
            sampling_weights: (K,).
            n_draws: rows drawn per epoch.
        """
        labels = self.targets.argmax(axis=1)
        counts = np.bincount(labels, minlength=len(sampling_weights))
        mass = np.bincount(labels, self.weights, minlength=len(sampling_weights))
        wanted = sampling_probabilities(sampling_weights, mass, counts, n_draws)
        tilted: NDArray[np.float64] = self.weights * (wanted / np.where(mass > 0, mass, 1.0))[labels]
        return tilted


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings(Settings):
    """The numbers of the pseudo-labelled part.

    Attributes:
        pseudo_ratio: pseudo-labelled faces per labelled one in a step.
        pseudo_weight: of their loss.
    """

    pseudo_ratio: int = 2
    pseudo_weight: float = 1.0


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


class SupervisedRecipe(BackboneRecipe):
    """See the module, and `BackboneRecipe` for the other arguments.

    Args:
        settings: the numbers.
        model: logits over ``classes``.
        pseudo: selected pseudo-labels, if any.
    """

    def __init__(
        self,
        settings: SupervisedSettings,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        labeled: Faces,
        val: Faces,
        feedback_rows: NDArray[np.bool_],
        pseudo: PseudoLabels | None,
        classes: Sequence[str],
        world: World,
        feedback: Feedback | None = None,
        factors: Factors | None = None,
    ) -> None:
        self.settings: SupervisedSettings = settings
        self.pseudo = pseudo
        self.pseudo_per_step = settings.batch_size * settings.pseudo_ratio if pseudo else 0
        super().__init__(
            *(settings, model, mean, std, labeled, val, feedback_rows, classes, world),
            feedback=feedback,
            factors=factors,
        )
        self.images_per_epoch += self.pseudo_per_step * self.steps_per_epoch

    def use(self, factors: Factors, epoch: int) -> None:
        """Also tilts the draws of pseudo-labelled faces."""
        super().use(factors, epoch)
        if self.pseudo is not None:
            n_draws = self.steps_per_epoch * self.pseudo_per_step
            self.pseudo_weights = self.pseudo.weights_under(factors.sampling_weights, n_draws)

    def steps(self, epoch: int) -> Iterator[Step]:
        """This rank's part of every step of ``epoch``."""
        torch.manual_seed(self.random_seed(epoch))  # dropout
        plans = zip(range(self.steps_per_epoch), self.sampler.epoch(epoch), self._pseudo_rows(epoch), strict=True)
        own = ((number, self.own(labeled), self.own(pseudo)) for number, labeled, pseudo in plans)
        for (number, labeled, pseudo), *pictures in read_ahead(self._read, own):
            yield self._step(labeled, pseudo, pictures, self.generator(epoch, number))

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """`joint_loss`, scaled so that its mean over the ranks is the loss of the step."""
        return self.supervised_loss(outputs, step.data) * self.world.size

    def supervised_loss(
        self, logits: torch.Tensor, targets: Targets, margin: torch.Tensor | float | None = None
    ) -> torch.Tensor:
        """This rank's share of `joint_loss` for logits (B + M, K); without ``margin``, with that of the classifier."""
        numbers = self.settings.label_smoothing, self.settings.pseudo_weight
        margin = self.margin if margin is None else margin
        return joint_loss(logits, targets, self.class_weights, *numbers, margin)

    def _pseudo_rows(self, epoch: int) -> Indices:
        # (steps, faces per step over all ranks)
        if self.pseudo is None:
            return np.empty((self.steps_per_epoch, 0), np.int64)
        count = self.steps_per_epoch * self.pseudo_per_step
        rows = weighted_indices(self.pseudo_weights, count, seed=self.settings.seed, epoch=epoch)
        return rows.reshape(self.steps_per_epoch, -1)

    def _read(self, rows: tuple[int, Indices, Indices]) -> tuple[Any, ...]:
        _, labeled, pseudo = rows
        pictures = [self.labeled.images.batch(labeled)]
        if self.pseudo is not None:
            pictures.append(self.pseudo.faces.images.batch(pseudo))
        return rows, *pictures

    def _step(self, labeled: Indices, pseudo: Indices, pictures: list[Any], generator: torch.Generator) -> Step:
        pixels, labels_ok = pictures[0]
        inputs = self.augmented(pixels, VIEWS[self.settings.labeled_view], generator)
        uris = [self.labeled.uris[row] for row in labeled]
        soft, soft_ok = np.empty((0, len(self.classes)), np.float32), np.empty(0, bool)
        if self.pseudo is not None:
            pixels, soft_ok = pictures[1]
            inputs = torch.cat([inputs, self.augmented(pixels, STRONG, generator)])
            uris += [self.pseudo.faces.uris[row] for row in pseudo]
            soft = self.pseudo.targets[pseudo]
        targets = Targets(
            labels=torch.from_numpy(self.labeled.labels[labeled]).to(self.world.device),
            label_weights=self.tensor(labels_ok),
            soft=self.tensor(soft),
            soft_weights=self.tensor(soft_ok),
            label_count=self.settings.batch_size,
            soft_count=self.pseudo_per_step,
        )
        return Step(inputs.contiguous(memory_format=self.layout), uris, targets)


def build(parts: Parts) -> SupervisedRecipe:
    """The recipe of one rank, with the head that ``supervised.head`` asks for."""
    settings, shared = parts.settings(SupervisedSettings), parts.shared()
    if parts.config.supervised.head == MAIN:
        return SupervisedRecipe(settings, parts.backbone, pseudo=parts.pseudo, **shared)
    from ray_fer.methods.balanced import BalancedRecipe  # a form of this one

    return BalancedRecipe(
        settings, with_heads(parts.backbone, BALANCED, len(parts.classes)), pseudo=parts.pseudo, **shared
    )


def publish(weights: Weights, config: TrainBackboneConfig, backbone: Any) -> Weights:
    """The backbone with the head that ``supervised.head`` asks for."""
    if config.supervised.head == MAIN:
        return weights
    return published(weights, BALANCED, classifier_name(backbone))


RECIPE = RecipeKind(build=build, pseudo=True, publish=publish)
