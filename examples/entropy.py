"""A recipe of one's own in one file: entropy minimisation (Grandvalet and Bengio, 2004) on as many unlabeled faces.

loss = mean_i w[y_i] CE(y_i, z_i) + weight * mean_j H(softmax z_j)    i labelled, j unlabeled, w the feedback's
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ray_fer.data.augment import WEAK
from ray_fer.methods.parts import Parts, RecipeKind
from ray_fer.methods.recipe import BackboneRecipe, Faces, Settings
from ray_fer.training.loop import Step


@dataclass(frozen=True, kw_only=True)
class EntropySettings(Settings):
    """The numbers that all recipes share, and the weight of the second term."""

    weight: float = 0.1


class EntropyRecipe(BackboneRecipe):
    """See the module; sampling by class, feedback, averaging, validation and resuming are those of every recipe."""

    def __init__(self, settings: EntropySettings, model: torch.nn.Module, unlabeled: Faces, **others: Any) -> None:
        super().__init__(settings, model, **others)
        self.settings, self.unlabeled = settings, unlabeled

    def steps(self, epoch: int) -> Iterator[Step]:
        """This rank's part of every step; a function of seed, epoch and rank, so an interrupted run goes on exactly."""
        torch.manual_seed(self.random_seed(epoch))  # dropout
        draws = np.random.default_rng(self.random_seed(epoch))
        for number, labeled in enumerate(map(self.own, self.sampler.epoch(epoch))):
            drawn = (self.labeled, labeled), (self.unlabeled, draws.integers(len(self.unlabeled), size=len(labeled)))
            pixels, readable = zip(*(faces.images.batch(rows) for faces, rows in drawn), strict=True)
            inputs = self.augmented(np.concatenate(pixels), WEAK, self.generator(epoch, number))
            labels = torch.from_numpy(self.labeled.labels[labeled]).to(self.world.device)
            uris = [faces.uris[row] for faces, rows in drawn for row in rows]
            yield Step(inputs, uris, (labels, *map(self.tensor, readable)))

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """The module's, for logits (2 B, K); an unreadable face counts 0."""
        (labels, labels_ok, others_ok), (labeled, others) = step.data, outputs.float().chunk(2)
        errors = cross_entropy(labeled, labels, reduction="none") * self.class_weights[labels]
        entropy = -(others.softmax(dim=1) * others.log_softmax(dim=1)).sum(dim=1)
        return (errors * labels_ok + self.settings.weight * entropy * others_ok).mean()


def build(parts: Parts) -> EntropyRecipe:
    """The recipe of one rank."""
    return EntropyRecipe(parts.settings(EntropySettings), parts.backbone, parts.unlabeled, **parts.shared())


RECIPE = RecipeKind(build=build, unlabeled=True, settings=EntropySettings)
