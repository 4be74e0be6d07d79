"""What methods with labels share: faces drawn class by class, logit adjustment, the feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ray_fer.data.sampling import CLASS_POWERS, ClassUniformSampler
from ray_fer.evaluation.halves import prior_helps
from ray_fer.feedback.factors import sampling_probabilities
from ray_fer.feedback.state import Snapshot, initial_state, snapshot
from ray_fer.methods.base import BackboneMethod
from ray_fer.methods.context import Context


class LabeledMethod(BackboneMethod):
    """A method that draws labelled faces class by class, and that may follow the feedback.

    The feedback's sampling weights tilt the draws of labelled faces, within the limits of `sampling_probabilities`. Its
    loss weights w are scaled to mean 1 over the faces that are really drawn, so that no factor changes the size of a
    step.

    Args:
        context: All that it is given.
    """

    needs: ClassVar[tuple[str, ...]] = ("labeled",)
    takes: ClassVar[tuple[str, ...]] = ("feedback",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config, self.labeled = self.config, context.labeled
        self.labeled_counts = np.bincount(self.labeled.labels, minlength=len(self.classes))
        self.sampler = ClassUniformSampler(
            *(self.labeled.labels, len(self.classes), config.batch_size),
            steps=self.steps_per_epoch,
            seed=config.seed,
            class_probs=self.labeled_counts ** CLASS_POWERS[config.class_sampling or "uniform"],
        )
        self.neutral_probs = self.sampler.class_probs(0)
        # Of the neutral probabilities: those of the feedback would take its boost away again.
        self.margin = self.tensor(sampled_margin(self.neutral_probs, len(self.labeled), config.logit_adjustment))
        self.use(context.snapshot or snapshot(initial_state(len(self.classes))), 0)

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Also reports what the feedback half shows, and takes over the factors that follow from it."""
        score, metrics = super().validate(epoch)
        if self.context.feedback is not None:
            metrics["trained_under_feedback"] = self.snapshot.version
            following = self.snapshot
            q_hat, accepted_share = self.unlabeled_view()
            if self.world.rank == 0:
                following = self.context.feedback(
                    np.asarray(metrics["feedback"]["confusion_matrix"]),
                    epoch,
                    trained_under=self.snapshot.version,
                    prior_helps=prior_helps(metrics["feedback"]),
                    q_hat=q_hat,
                    accepted_share=accepted_share,
                )
            self.use(self.world.broadcast(following), epoch + 1)
            metrics["feedback_version"] = self.snapshot.version
        return score, metrics

    def unlabeled_view(self) -> tuple[Sequence[float] | None, float | None]:
        """Class counts of the predictions on unlabeled faces, and the share of them that was accepted, if known."""
        return None, None

    def log_prior(self) -> NDArray[np.float64] | None:
        """The feedback's."""
        return self.snapshot.log_debiasing_prior

    def state(self) -> dict[str, Any]:
        """What the next epoch needs besides weights."""
        return super().state() | {"factors": self.snapshot.to_json(), "class_probs": self.sampler.schedule}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `state` and `tensors` returned."""
        super().load_state(state, tensors)
        self.sampler.schedule = state["class_probs"]
        self.use(Snapshot.from_json(state["factors"]), state["class_probs"][-1][0])

    def use(self, factors: Snapshot, epoch: int) -> None:
        """Trains by ``factors`` from ``epoch`` on."""
        self.snapshot = factors
        n_draws = self.steps_per_epoch * self.config.batch_size
        probs = sampling_probabilities(factors.sampling_weights, self.neutral_probs, self.labeled_counts, n_draws)
        self.sampler.reweight(epoch, probs)
        self.class_weights = self.tensor(factors.loss_weights / (probs @ factors.loss_weights))


def sampled_margin(class_probs: NDArray[np.float64], count: int, tau: float) -> NDArray[np.float64]:
    """What logit adjustment adds to the logits of labelled faces in the loss (arXiv:2007.07314, eq. 10).

    It has to be the prior that is sampled, m_c = tau log((n p_c + 1) / (n + K)): the same for all classes, and so
    nothing, where they are sampled uniformly. The prior of the set would correct a second time. A class that is never
    sampled counts as one face of n (ours, as Laplace).

    Args:
        class_probs: p, how often each class is sampled, (K,), sums to 1.
        count: n, labelled faces.
        tau: 0 adds nothing, 1 is the balanced softmax.

    Returns:
        m, (K,).
    """
    return tau * np.log((count * class_probs + 1) / (count + len(class_probs)))
