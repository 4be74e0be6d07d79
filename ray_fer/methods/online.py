"""Online semi-supervised training: labelled and unlabeled faces share every step (FixMatch, arXiv:2001.07685, and kin).

    loss = supervised + weight * mean_j a_j w[t_j] CE(t_j, z_j + margin) + the head's terms

j runs over unlabeled faces, strongly augmented. Their labels t and weights a come from a selection rule
(`ray_fer.selection`) applied to what the averaged model makes of the weak view, in evaluation mode: a teacher that is
slower and steadier than the student, and whose BatchNorm does not depend on the batch. Rejected faces stay in the
denominator, so the mean of the ranks' losses is the loss. One joint forward and one backward pass per step. With
selected pseudo-labels beside them, it is the hybrid of online and offline training.

The feedback acts in all four places, and is neutral where there is none: class weights w, the classes' shares of
labelled and unlabeled draws, the rule's thresholds, and the prior that is taken out of the teacher's probabilities.

Heads beside the classifier, on shared features, are `ray_fer.methods.online_heads`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field

from ray_fer.config import Count, NonNegative
from ray_fer.data.augment import STRONG, WEAK
from ray_fer.data.loading import read_ahead
from ray_fer.data.sampling import weighted_indices
from ray_fer.feedback.factors import moved_thresholds
from ray_fer.methods.batch import Indices
from ray_fer.methods.context import Context
from ray_fer.methods.heads import BALANCED, DEBIASED, MAIN
from ray_fer.methods.online_heads import (
    DebiasedHead,
    Found,
    OnlineBalancedHead,
    OnlineBatch,
    OnlineHead,
    OnlineOutputs,
    Unlabeled,
)
from ray_fer.methods.supervised import Head, PseudoConfig, SupervisedMethod
from ray_fer.selection import RULES, Accepted, Measured, SelectionContext, debias, harden, move, smoothed_prior
from ray_fer.selection.config import Rule
from ray_fer.selection.rule import CONCATENATED
from ray_fer.training.loop import Terms

_UNSEEN = -1
_STREAM = 1 << 20  # apart from the draws of selected pseudo-labels
MOMENTUM = 0.99
"""Of the rule's running statistics and of the class shares."""


class OnlineMethod(SupervisedMethod):
    """See the module.

    Args:
        context: All that it is given.

    Attributes:
        stream: Gives this rank's rows, pixels and which of them are readable, step by step of an epoch, where the faces
            do not fit in memory; it draws evenly, whatever the feedback says. None: they are drawn by index.
        named: int8 (N,), the class that the teacher last named in each unlabeled face, -1 before.
        class_shares: float (K,), running shares of the classes that it names.
    """

    class Config(PseudoConfig):
        """The method's own numbers."""

        rule: Rule = "softmatch"
        """what becomes a pseudo-label, as selection.rule in selection.yaml"""
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
        """of the rules that have one, before any feedback"""
        ratio: Count = 2
        """unlabeled faces per labelled face in a step"""
        weight: NonNegative = 1.0
        """weight of their loss"""
        targets: Literal["soft", "hard"] = "soft"
        """soft: the averaged model's probabilities; hard: the class"""
        head: Literal["main", "balanced", "debiased"] = MAIN
        """balanced: a second, class-balanced classifier, which is published (ABC); debiased: DST's two heads"""
        calibrate: bool = True
        """divide the averaged model's logits by the temperature that the last validation found"""

    needs: ClassVar[tuple[str, ...]] = ("labeled", "unlabeled")
    heads: ClassVar[dict[str, type[Head]]] = {MAIN: OnlineHead, BALANCED: OnlineBalancedHead, DEBIASED: DebiasedHead}
    head: OnlineHead

    def __init__(self, context: Context) -> None:
        self.unlabeled, numbers = context.unlabeled, context.numbers
        self.rule = RULES[numbers.rule]()
        self.unlabeled_per_step = context.config.batch_size * numbers.ratio
        device, count, k = context.world.device, len(self.unlabeled), len(context.classes)
        self.named = torch.full((count,), _UNSEEN, dtype=torch.int8, device=device)
        self.touched = torch.zeros(count, dtype=torch.bool, device=device)
        self.class_shares = torch.full((k,), 1 / k, device=device)
        self.accepted = torch.zeros(2, device=device)  # this epoch: accepted faces, faces
        super().__init__(context)
        self.images_per_epoch += self.unlabeled_per_step * self.steps_per_epoch
        self.stream = context.stream(self.unlabeled_per_step, self.steps_per_epoch)
        self.like = torch.zeros((1, k), device=device)
        self.rule_state = move(self.rule.start(self.known(0), rows=count), self.like)

    def known(self, epoch: int) -> SelectionContext:
        """What the rule may know in ``epoch``."""
        confidence = self.confidence_of_correct
        return SelectionContext(
            thresholds=moved_thresholds(self.numbers.threshold, self.snapshot.thresholds),
            labelled_prior=smoothed_prior(self.labeled_counts),
            labelled_counts=self.labeled_counts,
            labelled_confidence=np.full(len(self.classes), np.nan)
            if confidence is None
            else np.array([math.nan if each is None else each for each in confidence]),
            log_prior=self.snapshot.log_debiasing_prior,
            epoch=float(epoch),
        )

    def steps(self, epoch: int) -> Iterator[OnlineBatch]:
        """This rank's part of every step of ``epoch``."""
        self.known_now = self.known(epoch).to(self.like)
        self.rule_state = self.rule.refresh(self.rule_state, self.known_now)
        self.accepted.zero_()
        self.touched.zero_()
        unlabeled = self.stream(epoch) if self.stream else self._unlabeled_pictures(epoch)
        for number, (batch, faces) in enumerate(zip(super().steps(epoch), unlabeled, strict=True)):
            yield self._with_unlabeled(epoch, number, batch, *faces)

    def losses(self, outputs: torch.Tensor, batch: OnlineBatch) -> Terms:  # type: ignore[override]
        """The terms of the module's docstring, scaled so that their mean over the ranks is the step's."""
        outputs, unlabeled = outputs.float(), batch.unlabeled
        first, m = unlabeled.first, len(unlabeled.rows)
        supervised, strong = outputs[:first], outputs[first : first + m]
        terms = self.supervised_terms(self.logits(supervised, MAIN), batch.targets)
        accepted = self._pseudo_labels(unlabeled)
        labels = accepted.labels
        weights = accepted.weights * unlabeled.ok * self.class_weights[labels]
        soft = accepted.targets if self.numbers.targets == "soft" else harden(labels, len(self.classes))
        scale = self.numbers.weight / self.unlabeled_per_step
        logits = self.logits(strong, self.head.fits)
        margin = self.rule.margin(self.rule_state)
        if margin is not None:
            logits = logits + margin
        terms["unlabeled"] = scale * (F.cross_entropy(logits, soft, reduction="none") * weights).sum()
        shown = OnlineOutputs(
            supervised=supervised,
            strong=strong,
            weak=outputs[first + m :],
            targets=batch.targets,
            labels=labels,
            soft=soft,
            weights=weights,
            scale=scale,
            class_shares=self.class_shares,
            unlabeled=unlabeled,
        )
        return self.scaled(terms | self.head.terms(shown))

    def after_step(self, model: torch.nn.Module, batches: list[OnlineBatch]) -> None:
        """Also takes over what the steps found out about the unlabeled faces."""
        super().after_step(model, batches)
        for batch in batches:
            found = batch.unlabeled.found
            assert found is not None
            rows = found.rows
            self.named[rows], self.touched[rows] = found.named.to(torch.int8), True
            if len(rows):
                shares = F.one_hot(found.named, len(self.classes)).float().mean(dim=0)
                self.class_shares = torch.lerp(self.class_shares, shares, 1 - MOMENTUM)
            self.rule_state = self.rule.update(self.rule_state, found.measured, MOMENTUM)
            self.accepted += torch.stack([(found.accepted > 0).sum(), found.accepted.new_tensor(len(rows))])

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Also says which share of the unlabeled faces was accepted."""
        self._exchange()
        score, metrics = super().validate(epoch)
        if not self.numbers.calibrate:
            # Ada-CM compares it with what the teacher says in training.
            self.confidence_of_correct = metrics["confidence_of_correct_uncalibrated"]
        metrics["accepted_share"] = self.unlabeled_view()[1]
        return score, metrics

    def unlabeled_view(self) -> tuple[Sequence[float] | None, float | None]:
        """Class counts of the teacher's predictions on the unlabeled faces, and the share accepted this epoch."""
        counts, (accepted, faces) = self._counts(), self.accepted.tolist()
        return (counts.tolist() if counts.any() else None), (accepted / faces if faces else None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the teacher said of the unlabeled faces, and what the rule made of it."""
        mine = {"named": self.named, "class_shares": self.class_shares}
        return mine | {f"rule.{name}": torch.as_tensor(each) for name, each in self.rule_state.items()}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `state` and `tensors` returned."""
        super().load_state(state, tensors)
        there = {name: tensor.to(self.world.device) for name, tensor in tensors.items()}
        self.named, self.class_shares = there["named"], there["class_shares"]
        self.rule_state = {name: there[f"rule.{name}"] for name in self.rule_state}

    def _with_unlabeled(self, epoch: int, number: int, batch: Any, rows: Indices, pixels: Any, ok: Any) -> OnlineBatch:
        progress = (epoch + number / self.steps_per_epoch) / self.epochs
        generator = self.generator(epoch, number, stream=1)
        weak = self.augmented(pixels, WEAK, generator)
        parts = [batch.inputs, self.augmented(pixels, STRONG, generator), *([weak] if self.head.weak_views else [])]
        self.head.at(progress)
        there = torch.from_numpy(rows).to(self.world.device)
        readable = torch.from_numpy(np.flatnonzero(np.asarray(ok))).to(self.world.device)
        unlabeled = Unlabeled(len(batch.inputs), weak, self.tensor(ok), readable, there, progress)
        inputs = torch.cat(parts).contiguous(memory_format=self.layout)
        uris = [*batch.uris, *(self.unlabeled.uris[row] for row in rows)]
        return OnlineBatch(inputs, uris, batch.targets, unlabeled)

    def _unlabeled_pictures(self, epoch: int) -> Iterator[tuple[Indices, Any, Any]]:
        own = (self.own(rows) for rows in self._unlabeled_rows(epoch))
        return read_ahead(lambda rows: (rows, *self.unlabeled.images.batch(rows)), own)

    def _unlabeled_rows(self, epoch: int) -> Indices:
        # (steps, unlabeled faces of a step over all ranks); a face that was not seen yet counts as the average one
        count = self.steps_per_epoch * self.unlabeled_per_step
        counts, sampling = self._counts(), self.snapshot.sampling_weights
        weights = np.ones(len(self.unlabeled))
        if counts.any():
            named = self.named.cpu().numpy()
            weights = np.where(named >= 0, sampling[named], (sampling @ counts) / counts.sum())
        rows = weighted_indices(weights, count, seed=self.config.seed + _STREAM, epoch=epoch)
        return rows.reshape(self.steps_per_epoch, -1)

    def _counts(self) -> NDArray[np.int64]:
        named = self.named.cpu().numpy()
        return np.bincount(named[named >= 0], minlength=len(self.class_shares))

    @torch.no_grad()
    def _pseudo_labels(self, unlabeled: Unlabeled) -> Accepted:
        """Weights, labels and soft targets from the averaged model's view of the weak faces."""
        rule, state = self.rule, self.rule_state
        logits = self.averaged_logits(unlabeled.weak)
        probs = (logits / (self.temperature if self.numbers.calibrate else 1.0)).softmax(dim=1)
        named = probs.argmax(dim=1)
        probs = debias(probs, self.known_now.log_prior)
        # An unreadable face is a black picture: what the teacher makes of it says nothing about the others.
        readable, rows = unlabeled.readable, unlabeled.rows[unlabeled.readable]
        measured = self._combined(rule.measure(probs[readable], state, rows))
        if rule.update_first:
            state = rule.update(state, measured, MOMENTUM)
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


METHOD = OnlineMethod
