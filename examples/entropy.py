"""A method of one's own in one file: entropy minimisation (Grandvalet and Bengio, 2004) on as many unlabeled faces.

loss = mean_i w[y_i] CE(y_i, z_i) + weight * mean_j H(softmax z_j)    i labelled, j unlabeled, w the feedback's
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ray_fer.data.augment import WEAK
from ray_fer.methods.config import MethodConfig
from ray_fer.methods.labeled import LabeledMethod
from ray_fer.training.loop import Batch, Terms


@dataclass(frozen=True, eq=False)
class Pairs(Batch):
    """As many labelled as unlabeled faces: labels (B,), and 0 for each that cannot be read, (B,) and (B,)."""

    labels: torch.Tensor
    labels_ok: torch.Tensor
    others_ok: torch.Tensor


class METHOD(LabeledMethod):
    """See the module; sampling by class, feedback, averaging, validation and resuming are those of every method."""

    class Config(MethodConfig):
        """The method's own numbers, given as ``method.NAME=``."""

        weight: float = 0.1
        """weight of the second term"""

    needs = ("labeled", "unlabeled")

    def steps(self, epoch: int) -> Iterator[Pairs]:
        """This rank's part of every step; a function of seed, epoch and rank, so an interrupted run goes on exactly."""
        torch.manual_seed(self.random_seed(epoch))  # dropout
        draws, unlabeled = np.random.default_rng(self.random_seed(epoch)), self.context.unlabeled
        for number, labeled in enumerate(map(self.own, self.sampler.epoch(epoch))):
            drawn = (self.labeled, labeled), (unlabeled, draws.integers(len(unlabeled), size=len(labeled)))
            pixels, readable = zip(*(faces.images.batch(rows) for faces, rows in drawn), strict=True)
            inputs = self.augmented(np.concatenate(pixels), WEAK, self.generator(epoch, number))
            labels = torch.from_numpy(self.labeled.labels[labeled]).to(self.world.device)
            yield Pairs(inputs, [f.uris[row] for f, rows in drawn for row in rows], labels, *map(self.tensor, readable))

    def losses(self, outputs: torch.Tensor, batch: Pairs) -> Terms:
        """The module's, for logits (2 B, K); an unreadable face counts 0."""
        labeled, others = outputs.float().chunk(2)
        errors = cross_entropy(labeled, batch.labels, reduction="none") * self.class_weights[batch.labels]
        entropy = -(others.softmax(dim=1) * others.log_softmax(dim=1)).sum(dim=1)
        weighted = self.numbers.weight * (entropy * batch.others_ok).mean()
        return {"labeled": (errors * batch.labels_ok).mean(), "entropy": weighted}
