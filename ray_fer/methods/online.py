"""Online semi-supervised training: labelled and unlabeled faces share every step (FixMatch, arXiv:2001.07685, and kin).

    loss = supervised + weight * mean_j a_j w[t_j] CE(t_j, z_j + margin) + the heads' terms

j runs over unlabeled faces, strongly augmented. Their labels t and weights a come from a selection rule
(`ray_fer.selection`) applied to what the averaged model makes of the weak view, in evaluation mode: a teacher that is
slower and steadier than the student, and whose BatchNorm does not depend on the batch. Rejected faces stay in the
denominator, so the mean of the ranks' losses is the loss. One joint forward and one backward pass per step. With
selected pseudo-labels beside them, it is the hybrid of online and offline training.

The feedback acts in all four places, and is neutral where there is none: class weights w, the classes' shares of
labelled and unlabeled draws, the rule's thresholds, and the prior that is taken out of the teacher's probabilities.

Heads beside the classifier, all on shared features:

* ``balanced``: a second classifier, which is published, after ABC (arXiv:2110.10368). Labelled faces reach it
  class-uniformly (drawn naturally, with weight min n / n_c), but for the feedback; accepted unlabeled ones with weight
  1 - progress (1 - min n / n_c), n the running class shares of the teacher's predictions. See `keep_rates`.
* ``debiased``: DST (arXiv:2202.07136): a head of its own fits the pseudo-labels, so that the classifier which makes
  them never learns from them, and a worst-case head, played against the features, keeps these robust.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ray_fer.compat.timm import classifier_name
from ray_fer.data.augment import STRONG, WEAK
from ray_fer.data.read_ahead import read_ahead
from ray_fer.data.sampling import weighted_indices
from ray_fer.feedback.factors import moved_thresholds
from ray_fer.methods.balanced import balanced
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.methods.heads import (
    BALANCED,
    DEBIASED,
    MAIN,
    PSEUDO,
    WORST,
    HeadedBackbone,
    keep_rates,
    published,
    with_heads,
)
from ray_fer.methods.online_terms import Found, Unlabeled, reversal, worst_case
from ray_fer.methods.parts import Parts, RecipeKind, Stream, Weights
from ray_fer.methods.recipe import Faces, Factors, Feedback, Indices, sampled_margin
from ray_fer.methods.supervised import PseudoLabels, SupervisedRecipe, SupervisedSettings
from ray_fer.selection import RULES, Accepted, Measured, Rule, SelectionContext, debias, harden, move, smoothed_prior
from ray_fer.selection.rule import CONCATENATED
from ray_fer.training.loop import Step
from ray_fer.training.world import World

_UNSEEN = -1
_STREAM = 1 << 20  # apart from the draws of selected pseudo-labels


@dataclass(frozen=True, kw_only=True)
class OnlineSettings(SupervisedSettings):
    """The numbers of the unlabeled part.

    Attributes:
        rule: decides what becomes a pseudo-label.
        threshold: what the rule's thresholds are before any feedback.
        ratio: unlabeled faces per labelled one in a step.
        weight: of the unlabeled term.
        targets: ``hard`` trains on the class, ``soft`` on the teacher's probabilities.
        momentum: of the rule's running statistics.
        head: see the module.
        calibrate: divide the teacher's logits by the temperature that the last validation found.
    """

    rule: Rule
    threshold: float = 0.95
    ratio: int = 2
    weight: float = 1.0
    targets: Literal["hard", "soft"] = "hard"
    momentum: float = 0.99
    head: Literal["main", "balanced", "debiased"] = MAIN
    calibrate: bool = False


class OnlineRecipe(SupervisedRecipe):
    """See the module, and `BackboneRecipe` for the other arguments.

    Args:
        settings: the numbers.
        model: with the heads that ``settings.head`` asks for, see `with_heads`.
        pseudo: selected pseudo-labels that take part as well (hybrid), if any.
        unlabeled: N faces, the same on every rank; their labels, if there are any, are never looked at.

    Attributes:
        stream: gives this rank's rows, pictures and which of them are readable, step by step of an epoch, where the
            faces do not fit in memory; it draws evenly, whatever the feedback says. None: they are drawn by index.
    """

    def __init__(
        self,
        settings: OnlineSettings,
        model: HeadedBackbone,
        mean: Sequence[float],
        std: Sequence[float],
        labeled: Faces,
        val: Faces,
        feedback_rows: NDArray[np.bool_],
        pseudo: PseudoLabels | None,
        unlabeled: Faces,
        classes: Sequence[str],
        world: World,
        feedback: Feedback | None = None,
        factors: Factors | None = None,
    ) -> None:
        self.online = settings
        self.unlabeled = unlabeled
        self.stream: Stream | None = None
        self.unlabeled_per_step = settings.batch_size * settings.ratio
        self.heads = model
        device, count, k = world.device, len(unlabeled), len(classes)
        # What the teacher last named in every unlabeled face, and the running shares of the classes it names.
        self.named = torch.full((count,), _UNSEEN, dtype=torch.int8, device=device)
        self.touched = torch.zeros(count, dtype=torch.bool, device=device)
        self.class_shares = torch.full((k,), 1 / k, device=device)
        self.accepted = torch.zeros(2, device=device)  # this epoch: accepted faces, faces
        super().__init__(
            *(settings, model, mean, std, labeled, val, feedback_rows, pseudo, classes, world),
            feedback=feedback,
            factors=factors,
        )
        self.images_per_epoch += self.unlabeled_per_step * self.steps_per_epoch
        # The feedback's boost is on top of a balanced mix, which has nothing to be adjusted for.
        self.labeled_kept = keep_rates(self.tensor(self.neutral_probs))
        drawn = self.neutral_probs > 0
        self.balanced_margin = self.tensor(sampled_margin(drawn / drawn.sum(), len(labeled), settings.logit_adjustment))
        self.like = torch.zeros((1, k), device=device)
        self.rule_state = move(settings.rule.start(self.known(0), rows=count), self.like)

    def known(self, epoch: int) -> SelectionContext:
        """What the rule may know in ``epoch``."""
        confidence = self.confidence_of_correct
        return SelectionContext(
            thresholds=moved_thresholds(self.online.threshold, self.factors.thresholds),
            labelled_prior=smoothed_prior(self.labeled_counts),
            labelled_counts=self.labeled_counts,
            labelled_confidence=np.full(len(self.classes), np.nan)
            if confidence is None
            else np.array([math.nan if each is None else each for each in confidence]),
            log_prior=self.factors.log_debiasing_prior,
            epoch=float(epoch),
        )

    def inference_logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, K) of the head that is published."""
        return outputs[:, self.heads.index(BALANCED if self.online.head == BALANCED else MAIN)]

    def steps(self, epoch: int) -> Iterator[Step]:
        """This rank's part of every step of ``epoch``."""
        self.known_now = self.known(epoch).to(self.like)
        self.rule_state = self.online.rule.refresh(self.rule_state, self.known_now)
        self.accepted.zero_()
        self.touched.zero_()
        unlabeled = self.stream(epoch) if self.stream else self._unlabeled_pictures(epoch)
        for number, (step, faces) in enumerate(zip(super().steps(epoch), unlabeled, strict=True)):
            yield self._with_unlabeled(epoch, number, step, *faces)

    def loss(self, outputs: torch.Tensor, step: Step) -> torch.Tensor:
        """The loss of the module's docstring; its mean over the ranks is the loss of the step."""
        settings = self.online
        targets, unlabeled = step.data
        outputs = outputs.float()
        first, m = unlabeled.first, len(unlabeled.rows)
        supervised, strong = outputs[:first], outputs[first : first + m]
        loss = self.supervised_loss(supervised[:, 0], targets)

        accepted = self._pseudo_labels(unlabeled)
        labels = accepted.labels
        weights = accepted.weights * unlabeled.ok * self.class_weights[labels]
        soft = accepted.targets if settings.targets == "soft" else harden(labels, len(self.classes))
        scale = settings.weight / self.unlabeled_per_step
        logits = strong[:, self.heads.index(PSEUDO if settings.head == DEBIASED else MAIN)]
        margin = settings.rule.margin(self.rule_state)
        if margin is not None:
            logits = logits + margin
        loss = loss + scale * (F.cross_entropy(logits, soft, reduction="none") * weights).sum()
        if settings.head == BALANCED:
            head, of_labels = self.heads.index(BALANCED), balanced(targets, self.labeled_kept)
            kept = keep_rates(self.class_shares.clamp(min=1e-6), unlabeled.progress)
            errors = F.cross_entropy(strong[:, head], soft, reduction="none")
            loss = loss + self.supervised_loss(supervised[:, head], of_labels, self.balanced_margin)
            loss = loss + scale * (errors * weights * kept[labels]).sum()
        elif settings.head == DEBIASED:
            worst, labeled = self.heads.index(WORST), supervised[: len(targets.labels)]
            both = labeled[:, 0], labeled[:, worst]
            term = worst_case(both, targets.label_weights, outputs[first + m :, worst], labels, unlabeled.ok)
            loss = loss + term / self.world.size
        total: torch.Tensor = loss * self.world.size
        return total

    def after_step(self, model: nn.Module, steps: list[Step]) -> None:
        """Also takes over what the steps found out about the unlabeled faces."""
        super().after_step(model, steps)
        for step in steps:
            _, unlabeled = step.data
            found, rows = unlabeled.found, unlabeled.found.rows
            self.named[rows], self.touched[rows] = found.named.to(torch.int8), True
            if len(rows):
                shares = F.one_hot(found.named, len(self.classes)).float().mean(dim=0)
                self.class_shares = torch.lerp(self.class_shares, shares, 1 - self.online.momentum)
            self.rule_state = self.online.rule.update(self.rule_state, found.measured, self.online.momentum)
            self.accepted += torch.stack([(found.accepted > 0).sum(), found.accepted.new_tensor(len(rows))])

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """As ever, and says which share of the unlabeled faces was accepted."""
        self._exchange()
        score, metrics = super().validate(epoch)
        if not self.online.calibrate:
            # Ada-CM compares it with what the teacher says in training.
            self.confidence_of_correct = metrics["confidence_of_correct_uncalibrated"]
        metrics["accepted_share"] = self.unlabeled_view()[1]
        return score, metrics

    def unlabeled_view(self) -> tuple[Sequence[float] | None, float | None]:
        """Class counts of the teacher's predictions on the unlabeled faces, and the share accepted this epoch."""
        counts, (accepted, total) = self._counts(), self.accepted.tolist()
        return (counts.tolist() if counts.any() else None), (accepted / total if total else None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the teacher said of the unlabeled faces, and what the rule made of it."""
        mine = {"named": self.named, "class_shares": self.class_shares}
        return mine | {f"rule.{name}": torch.as_tensor(each) for name, each in self.rule_state.items()}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` and `tensors` returned."""
        super().load_state(state, tensors)
        there = {name: tensor.to(self.world.device) for name, tensor in tensors.items()}
        self.named, self.class_shares = there["named"], there["class_shares"]
        self.rule_state = {name: there[f"rule.{name}"] for name in self.rule_state}

    def _with_unlabeled(self, epoch: int, number: int, step: Step, rows: Indices, pixels: Any, ok: Any) -> Step:
        progress = (epoch + number / self.steps_per_epoch) / self.epochs
        generator = self.generator(epoch, number, stream=1)
        weak = self.augmented(pixels, WEAK, generator)
        parts = [step.inputs, self.augmented(pixels, STRONG, generator)]
        if self.online.head == DEBIASED:
            parts.append(weak)
            self.heads.reverse(reversal(progress))
        there = torch.from_numpy(rows).to(self.world.device)
        readable = torch.from_numpy(np.flatnonzero(np.asarray(ok))).to(self.world.device)
        unlabeled = Unlabeled(len(step.inputs), weak, self.tensor(ok), readable, there, progress)
        inputs = torch.cat(parts).contiguous(memory_format=self.layout)
        return Step(inputs, [*step.uris, *(self.unlabeled.uris[row] for row in rows)], (step.data, unlabeled))

    def _unlabeled_pictures(self, epoch: int) -> Iterator[tuple[Indices, Any, Any]]:
        own = (self.own(rows) for rows in self._unlabeled_rows(epoch))
        return read_ahead(lambda rows: (rows, *self.unlabeled.images.batch(rows)), own)

    def _unlabeled_rows(self, epoch: int) -> Indices:
        # (steps, unlabeled faces of a step over all ranks); a face that was not seen yet counts as the average one
        count = self.steps_per_epoch * self.unlabeled_per_step
        counts, sampling = self._counts(), self.factors.sampling_weights
        weights = np.ones(len(self.unlabeled))
        if counts.any():
            named = self.named.cpu().numpy()
            weights = np.where(named >= 0, sampling[named], (sampling @ counts) / counts.sum())
        rows = weighted_indices(weights, count, seed=self.online.seed + _STREAM, epoch=epoch)
        return rows.reshape(self.steps_per_epoch, -1)

    def _counts(self) -> NDArray[np.int64]:
        named = self.named.cpu().numpy()
        return np.bincount(named[named >= 0], minlength=len(self.class_shares))

    @torch.no_grad()
    def _pseudo_labels(self, unlabeled: Unlabeled) -> Accepted:
        """Weights, labels and soft targets from the averaged model's view of the weak faces."""
        rule, state = self.online.rule, self.rule_state
        logits = self.averaged_logits(unlabeled.weak)
        probs = (logits / (self.temperature if self.online.calibrate else 1.0)).softmax(dim=1)
        named = probs.argmax(dim=1)
        probs = debias(probs, self.known_now.log_prior)
        # An unreadable face is a black picture: what the teacher makes of it says nothing about the others.
        readable, rows = unlabeled.readable, unlabeled.rows[unlabeled.readable]
        measured = self._combined(rule.measure(probs[readable], state, rows))
        if rule.update_first:
            state = rule.update(state, measured, self.online.momentum)
        accepted: Accepted = rule.accept(probs, state, self.known_now)
        unlabeled.found = Found(rows, named[readable], measured, accepted.weights[readable])
        return accepted

    def _combined(self, measured: Measured) -> Measured:
        if self.world.size > 1:
            for name in sorted(measured):
                if name in CONCATENATED:
                    # Through the host: other ranks' tensors come from other devices.
                    parts = self.world.gather(measured[name].cpu())
                    measured[name] = torch.cat(parts).to(self.world.device)
                else:
                    dist.all_reduce(measured[name])
        return measured

    def _exchange(self) -> None:
        """Tells all ranks what each has seen of the unlabeled faces in this epoch."""
        if self.world.size == 1:
            return
        rows = self.touched.nonzero()[:, 0]
        mine = rows.cpu(), self.named[rows].cpu(), self.class_shares.cpu(), self.accepted.cpu()
        parts = self.world.gather(mine)
        for seen, named, _, _ in parts:
            self.named[seen.to(self.named.device)] = named.to(self.named.device)
        shares, accepted = torch.stack([part[2] for part in parts]), torch.stack([part[3] for part in parts])
        self.class_shares = shares.mean(dim=0).to(self.world.device)
        self.accepted = accepted.sum(dim=0).to(self.world.device)


def build(parts: Parts) -> OnlineRecipe:
    """The recipe of one rank."""
    own = parts.config.online.model_dump() | {"rule": RULES[parts.config.online.rule]()}
    settings = parts.settings(OnlineSettings, **own)
    model = with_heads(parts.backbone, settings.head, len(parts.classes))
    recipe = OnlineRecipe(settings, model, pseudo=parts.pseudo, unlabeled=parts.unlabeled, **parts.shared())
    recipe.stream = parts.stream(recipe.unlabeled_per_step, recipe.steps_per_epoch)
    return recipe


def publish(weights: Weights, config: TrainBackboneConfig, backbone: Any) -> Weights:
    """The backbone with the head that is validated."""
    head = BALANCED if config.online.head == BALANCED else MAIN
    return published(weights, head, classifier_name(backbone))


RECIPE = RecipeKind(build=build, unlabeled=True, pseudo=True, publish=publish)
