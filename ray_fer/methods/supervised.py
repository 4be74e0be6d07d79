"""Teacher and offline student: labelled faces drawn by class, selected pseudo-labels beside them.

    loss = mean_i w[y_i] CE(y_i smoothed, z_i + m) + pseudo_weight * mean_j (t_j . w) CE(t_j, z_j)

i runs over the labelled faces of a step, weakly augmented, j over the pseudo-labelled ones, strongly augmented, w are
the feedback's class weights (1 without feedback), t the soft targets, z logits, and m (`sampled_margin`) the adjustment
to the classes as they are sampled. Class-uniform sampling is the paper's (arXiv:2403.11942); putting both terms into
one forward and one backward pass is FixMatch's (arXiv:2001.07685) with labels that were made beforehand. A pseudo-
labelled face is drawn in proportion to its weight in the selection, so the weight is not in the loss again. Means have
fixed denominators: the mean of the ranks' losses is the loss.

One joint forward pass is a third cheaper than two; in exchange, BatchNorm sees one mixture of both sets.

With ``method.head=balanced`` a second classifier on the same features learns from the same faces, each times
min n / n_c of its class c, where n is how often each class is drawn (ABC, arXiv:2110.10368): see `BalancedHead`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ray_fer.config import Count, NonNegative
from ray_fer.data.augment import STRONG
from ray_fer.data.loading import read_ahead
from ray_fer.data.sampling import weighted_indices
from ray_fer.feedback.state import Snapshot
from ray_fer.methods.base import VIEWS, Weights
from ray_fer.methods.batch import Indices, LabeledBatch, Targets
from ray_fer.methods.config import MethodConfig
from ray_fer.methods.context import Context
from ray_fer.methods.heads import BALANCED, MAIN, HeadedBackbone, keep_rates, published
from ray_fer.methods.labeled import LabeledMethod
from ray_fer.methods.terms import balanced, supervised_terms
from ray_fer.training.loop import Terms, total


class Head:
    """What a method trains beside the classifier, with its own terms of the loss. This one is nothing.

    Attributes:
        published: Name of the head that becomes the published model's classifier.
        method: Whose head it is.
    """

    published: ClassVar[str] = MAIN

    def __init__(self, method: SupervisedMethod) -> None:
        self.method = method

    @classmethod
    def modules(cls, features: int, n_classes: int) -> dict[str, nn.Module]:
        """The heads beside the classifier by name: features (B, D) to logits (B, K)."""
        return {}

    def supervised_terms(self, outputs: torch.Tensor, targets: Targets) -> Terms:
        """The head's terms, this rank's share of the step's sums, from labelled and pseudo-labelled faces.

        Args:
            outputs: Of the model for these B + M faces.
            targets: Of the same.
        """
        return {}


class BalancedHead(Head):
    """A second, class-balanced classifier, which is published (ABC, arXiv:2110.10368).

    Every class has the same say in this head, while the classifier beside it and the features learn from all that is
    drawn. Of faces that are drawn uniformly both learn the same: the head is for natural sampling, where it is an
    alternative to the adjustment m, and for the classes of a selection. The weights are of the neutral draws, or they
    would take the feedback's boost away again. Those of pseudo-labelled faces hold from the first step. ABC begins with
    all faces and balances them by and by, as labels that are made while the model learns get better; these were made
    beforehand.
    """

    published = BALANCED

    def __init__(self, method: SupervisedMethod) -> None:
        super().__init__(method)
        self.labeled = keep_rates(method.tensor(method.neutral_probs))
        self.pseudo: torch.Tensor | None = None
        if method.pseudo is not None:
            labels = method.pseudo.targets.argmax(axis=1)
            counts = np.bincount(labels, method.pseudo.weights, len(method.classes))
            self.pseudo = keep_rates(method.tensor(counts))

    @classmethod
    def modules(cls, features: int, n_classes: int) -> dict[str, nn.Module]:
        """One linear layer."""
        return {BALANCED: nn.Linear(features, n_classes)}

    def supervised_terms(self, outputs: torch.Tensor, targets: Targets) -> Terms:
        """The method's loss of the balanced draws, without its margin: there is nothing to adjust for."""
        of_draws = balanced(targets, self.labeled, self.pseudo)
        return {"balanced": self.method.supervised_loss(self.method.logits(outputs, BALANCED), of_draws, margin=0.0)}


class PseudoConfig(MethodConfig):
    """The numbers of methods that take selected pseudo-labels."""

    pseudo_ratio: Count = 2
    """pseudo-labelled faces per labelled face in a step"""
    pseudo_weight: NonNegative = 1.0
    """weight of the pseudo-label loss"""


class SupervisedMethod(LabeledMethod):
    """See the module.

    Args:
        context: All that it is given.
    """

    class Config(PseudoConfig):
        """The method's own numbers."""

        head: Literal["main", "balanced"] = MAIN
        """balanced: a second, class-balanced classifier, which is published (ABC). It is for classes that are not drawn
        alike: with class_sampling=natural or pseudo; logit_adjustment reaches main alone"""

    takes: ClassVar[tuple[str, ...]] = ("pseudo", "feedback")
    heads: ClassVar[dict[str, type[Head]]] = {MAIN: Head, BALANCED: BalancedHead}

    def __init__(self, context: Context) -> None:
        self.pseudo = context.pseudo
        self.pseudo_per_step = context.config.batch_size * context.numbers.pseudo_ratio if self.pseudo else 0
        super().__init__(context)
        self.images_per_epoch += self.pseudo_per_step * self.steps_per_epoch
        self.head = self.heads[self.numbers.head](self)

    def network(self) -> nn.Module:
        """The backbone, with the head's modules where it has some."""
        backbone: Any = self.context.backbone()
        modules = self.heads[self.numbers.head].modules(backbone.get_classifier().in_features, len(self.classes))
        return HeadedBackbone(backbone, modules) if modules else backbone

    @classmethod
    def publish(cls, weights: Weights, numbers: Any, classifier: str) -> Weights:
        """The backbone with the head that is validated."""
        head = cls.heads[numbers.head]
        return published(weights, head.published, classifier)

    def logits(self, outputs: torch.Tensor, name: str) -> torch.Tensor:
        """(B, K) of one head, by name, of what the model returns."""
        return self.model.logits(outputs, name) if isinstance(self.model, HeadedBackbone) else outputs

    def inference_logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, K) of the head that is published."""
        return self.logits(outputs, self.heads[self.numbers.head].published)

    def use(self, factors: Snapshot, epoch: int) -> None:
        """Also tilts the draws of pseudo-labelled faces."""
        super().use(factors, epoch)
        if self.pseudo is not None:
            n_draws = self.steps_per_epoch * self.pseudo_per_step
            self.pseudo_weights = self.pseudo.weights_under(factors.sampling_weights, n_draws)

    def steps(self, epoch: int) -> Iterator[LabeledBatch]:
        """This rank's part of every step of ``epoch``."""
        torch.manual_seed(self.random_seed(epoch))  # dropout
        plans = zip(range(self.steps_per_epoch), self.sampler.epoch(epoch), self._pseudo_rows(epoch), strict=True)
        own = ((number, self.own(labeled), self.own(pseudo)) for number, labeled, pseudo in plans)
        for (number, labeled, pseudo), *pictures in read_ahead(self._read, own):
            yield self._batch(labeled, pseudo, pictures, self.generator(epoch, number))

    def losses(self, outputs: torch.Tensor, batch: LabeledBatch) -> Terms:
        """The terms of the classifier and of the head, scaled so that their mean over the ranks is the step's."""
        terms = self.supervised_terms(self.logits(outputs, MAIN), batch.targets)
        terms |= self.head.supervised_terms(outputs, batch.targets)
        return self.scaled(terms)

    def scaled(self, terms: Terms) -> Terms:
        """From this rank's shares of the step's sums to terms whose mean over the ranks is the step's."""
        return {name: term * self.world.size for name, term in terms.items()}

    def supervised_terms(
        self, logits: torch.Tensor, targets: Targets, margin: torch.Tensor | float | None = None
    ) -> Terms:
        """`supervised_terms` for logits (B + M, K); without ``margin``, with that of the classifier."""
        numbers = self.config.label_smoothing, self.numbers.pseudo_weight
        margin = self.margin if margin is None else margin
        return supervised_terms(logits, targets, self.class_weights, *numbers, margin)

    def supervised_loss(
        self, logits: torch.Tensor, targets: Targets, margin: torch.Tensor | float | None = None
    ) -> torch.Tensor:
        """The sum of `supervised_terms`."""
        return total(self.supervised_terms(logits, targets, margin))

    def _pseudo_rows(self, epoch: int) -> Indices:
        # (steps, faces per step over all ranks)
        if self.pseudo is None:
            return np.empty((self.steps_per_epoch, 0), np.int64)
        count = self.steps_per_epoch * self.pseudo_per_step
        rows = weighted_indices(self.pseudo_weights, count, seed=self.config.seed, epoch=epoch)
        return rows.reshape(self.steps_per_epoch, -1)

    def _read(self, rows: tuple[int, Indices, Indices]) -> tuple[Any, ...]:
        _, labeled, pseudo = rows
        pictures = [self.labeled.images.batch(labeled)]
        if self.pseudo is not None:
            pictures.append(self.pseudo.faces.images.batch(pseudo))
        return rows, *pictures

    def _batch(self, labeled: Indices, pseudo: Indices, pictures: list[Any], generator: torch.Generator) -> Any:
        pixels, labels_ok = pictures[0]
        inputs = self.augmented(pixels, VIEWS[self.config.labeled_view], generator)
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
            label_count=self.config.batch_size,
            soft_count=self.pseudo_per_step,
        )
        return LabeledBatch(inputs.contiguous(memory_format=self.layout), uris, targets)


METHOD = SupervisedMethod
