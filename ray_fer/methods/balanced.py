"""The supervised recipe with ABC's balanced head (arXiv:2110.10368): a second classifier on the same features.

    loss = loss of the supervised recipe + the same of the head, without m, each face times min n / n_c of its class c

n is how often each class is drawn, of labelled and of pseudo-labelled faces by themselves (`keep_rates`). So every
class has the same say in the head, which is what is validated and published, while the classifier beside it and the
features learn from all that is drawn. Of faces that are drawn uniformly both learn the same: the head is for natural
sampling, where it is an alternative to the adjustment m, and for the classes of a selection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ray_fer.methods.heads import BALANCED, HeadedBackbone, keep_rates
from ray_fer.methods.supervised import SupervisedRecipe, SupervisedSettings, Targets
from ray_fer.training.loop import Step


def balanced(targets: Targets, labeled: torch.Tensor, pseudo: torch.Tensor | None = None) -> Targets:
    """``targets`` with each face weighted by its class, for a soft target the likeliest one.

    Args:
        targets: of one step.
        labeled: weight of the labelled faces of each class, float (K,).
        pseudo: likewise of the pseudo-labelled ones; None leaves them as they are.
    """
    soft_weights = targets.soft_weights if pseudo is None else targets.soft_weights * pseudo[targets.soft.argmax(dim=1)]
    return replace(targets, label_weights=targets.label_weights * labeled[targets.labels], soft_weights=soft_weights)


class BalancedRecipe(SupervisedRecipe):
    """See the module.

    The weights are of the neutral draws, or they would take the feedback's boost away again. Those of pseudo-labelled
    faces hold from the first step: ABC begins with all faces and balances them by and by, as labels that are made
    while the model learns get better; these were made beforehand.

    Args:
        settings: the numbers.
        model: with the head `BALANCED`, see `with_heads`.
        others: as `SupervisedRecipe` takes them.
    """

    def __init__(self, settings: SupervisedSettings, model: HeadedBackbone, **others: Any) -> None:
        self.balanced = model.index(BALANCED)
        super().__init__(settings, model, **others)
        self.labeled_balance = keep_rates(self.tensor(self.neutral_probs))
        self.pseudo_balance = torch.ones_like(self.labeled_balance)
        if self.pseudo is not None:
            labels = self.pseudo.targets.argmax(axis=1)
            self.pseudo_balance = keep_rates(self.tensor(np.bincount(labels, self.pseudo.weights, len(self.classes))))

    def inference_logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, K) of the balanced head, which is published."""
        return outputs[:, self.balanced]

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """The losses of both heads for outputs (B + M, 2, K); their mean over the ranks is the loss of the step."""
        targets = balanced(step.data, self.labeled_balance, self.pseudo_balance)
        of_head = self.supervised_loss(outputs[:, self.balanced], targets, margin=0.0)
        return super().loss(outputs[:, 0], step) + of_head * self.world.size
