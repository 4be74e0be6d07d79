"""Meta feedback: teacher and student share the step, and the teacher learns how much its pseudo-labels helped.

The circuit of Meta-Face2Exp (Zeng et al., CVPR 2022; the public code is what the description in arXiv:2403.11942
matches, whose equations could not be read), a form of Meta Pseudo Labels (arXiv:2003.10580). At step k:

    student:  CE(argmax T(w(u_k)), S(s(u_k)))
    feedback: h_k = CE(y, S_k(x_k)) - CE(y, S_k+1(x_k))    on class-uniform labelled faces; positive when it helped
    teacher:  CE(y, T(x_k)) + ramp consistency(T(w(u)), T(s(u))) + strength h CE(argmax T(s(u)), T(s(u)))

Then the student is fine-tuned on labelled faces alone, and is what is published. The teacher, whose gradients are zero
then, still drifts with AdamW's momentum and weight decay, which nothing sees.

Three things differ from that code, all of them ray-fer's. The teacher's terms about u use the batch of the step before,
for which h is known by then: so both learn in one forward and one backward pass. (Of the optimiser step before, where
several steps are averaged into one: h is what all of them did together.) Both terms of h come from the same
faces in evaluation mode, under the BatchNorm statistics from before the step: else their change, which is as large as
the weights' and of any sign, would pass for learning. And h enters as
clip((h - mean) / (std + 1e-3), -1, 1) with running moments: without a baseline it is large and positive while the
student learns anything at all, and drives the teacher to over-confidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.func import functional_call

from ray_fer.config import Count, NonNegative, Share
from ray_fer.data.augment import STRONG, WEAK
from ray_fer.data.loading import read_ahead
from ray_fer.data.sampling import weighted_indices
from ray_fer.methods.base import VIEWS, Weights
from ray_fer.methods.batch import Indices
from ray_fer.methods.config import MethodConfig
from ray_fer.methods.context import Context
from ray_fer.methods.labeled import LabeledMethod
from ray_fer.training.loop import Batch, Terms
from ray_fer.training.optimisation import learning_rate_factor

_CONSISTENCY_RAMP = 0.1  # share of the run
_MOMENTUM = 0.99  # of the moments of h
_FINETUNE_FACTOR = 0.3  # of the learning rate while the student is fine-tuned


class TeacherAndStudent(nn.Module):
    """Two networks in one forward pass: the first ``split`` rows for the teacher, the others for the student.

    Args:
        teacher: (B, 3, S, S) to (B, K).
        student: likewise.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        self.split = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in the order of the inputs."""
        # At rest in evaluation mode also when checkpointed activations are computed again.
        self.teacher.train(self.training and self.split > 0)
        if self.split == 0:
            # ZeRO stage 3 takes the last gradient of a weight that gets none: it would be clipped with the student's.
            outputs: torch.Tensor = self.student(inputs) + 0 * self.teacher(inputs[:1]).sum()
            return outputs
        return torch.cat([self.teacher(inputs[: self.split]), self.student(inputs[self.split :])])


@dataclass(frozen=True, eq=False)
class Unlabeled:
    """Unlabeled faces of one step.

    Attributes:
        strong: their strong views, (M, 3, S, S).
        probs: the teacher's of their weak views, (M, K).
        ok: float (M,), 0 where unreadable.
    """

    strong: torch.Tensor
    probs: torch.Tensor
    ok: torch.Tensor


@dataclass(frozen=True, eq=False)
class MetaBatch(Batch):
    """Labelled and unlabeled faces of one step.

    Attributes:
        labels: int64 (B,).
        labels_ok: float (B,), 0 where unreadable.
        labeled: the labelled faces, augmented, (B, 3, S, S).
        unlabeled: what the student learns from; None in fine-tuning.
        before: of the optimiser step before, what the teacher learns from; None where there is none.
        buffers: of the student before the step, by name.
        error: of the student on the labelled faces before the step, in evaluation mode.
        progress: share of the run that is over.
    """

    labels: torch.Tensor
    labels_ok: torch.Tensor
    labeled: torch.Tensor
    unlabeled: Unlabeled | None
    before: Unlabeled | None
    buffers: dict[str, torch.Tensor]
    error: float
    progress: float


class MetaFeedbackMethod(LabeledMethod):
    """See the module.

    Args:
        context: All that it is given.
    """

    class Config(MethodConfig):
        """The method's own numbers."""

        ratio: Count = 2
        """unlabeled faces per labelled face in a step"""
        consistency: NonNegative = 1.0
        """weight of the teacher's own loss on unlabeled faces"""
        strength: Annotated[float, Field(ge=0, le=0.5)] = 0.5
        """weight of the feedback from the student"""
        finetune: Share = 0.2
        """share of the run, at its end, in which the student sees labelled faces alone"""

    needs: ClassVar[tuple[str, ...]] = ("labeled", "unlabeled")
    takes: ClassVar[tuple[str, ...]] = ()  # the feedback corrects the teacher, which is trained here
    from_scratch = "the student learns from a teacher that knows nothing; give init="

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.unlabeled = context.unlabeled
        self.unlabeled_per_step = self.config.batch_size * self.numbers.ratio
        self.images_per_epoch += self.unlabeled_per_step * self.steps_per_epoch
        # What the optimiser step before, whose h is known, leaves to the steps of the next.
        self.before: list[Unlabeled] = []
        self.moments = {"mean": 0.0, "square": 0.0, "count": 0}
        self.h = 0.0

    def network(self) -> nn.Module:
        """Teacher and student, from the same start."""
        self.pair = TeacherAndStudent(self.context.backbone(), self.context.backbone())
        return self.pair

    @classmethod
    def publish(cls, weights: Weights, numbers: Any, classifier: str) -> Weights:
        """The student."""
        prefix = "student."
        return {key[len(prefix) :]: each for key, each in weights.items() if key.startswith(prefix)}

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine for the circuit, then once more, lower, for the fine-tuning."""
        assert self.config.learning_rate is not None
        peak, in_epoch = self.config.learning_rate, self.steps_per_epoch // self.accumulate
        steps = self.epochs * in_epoch
        first = round((1 - self.numbers.finetune) * steps)
        if step < first:
            warmup = min(round(self.config.warmup_epochs * in_epoch), first)
            return peak * learning_rate_factor(step, first, warmup)
        return _FINETUNE_FACTOR * peak * learning_rate_factor(step - first, steps - first, 0)

    def steps(self, epoch: int) -> Iterator[MetaBatch]:
        """This rank's part of every step of ``epoch``."""
        torch.manual_seed(self.random_seed(epoch))  # dropout
        count = self.steps_per_epoch * self.unlabeled_per_step
        rows = weighted_indices(np.ones(len(self.unlabeled)), count, seed=self.config.seed, epoch=epoch)
        self.before = []
        plans = zip(self.sampler.epoch(epoch), rows.reshape(self.steps_per_epoch, -1), strict=True)
        own = ((number, self.own(labeled), self.own(unlabeled)) for number, (labeled, unlabeled) in enumerate(plans))
        for (number, labeled, unlabeled), *pictures in read_ahead(self._read, own):
            yield self._batch(epoch, number, labeled, unlabeled, pictures)

    def losses(self, outputs: torch.Tensor, batch: MetaBatch) -> Terms:
        """The losses of teacher and student, which share no weight; means of this rank's part."""
        outputs, smoothing = outputs.float(), self.config.label_smoothing
        b, split = len(batch.labels), self.pair.split
        errors = F.cross_entropy(outputs[:b] + self.margin, batch.labels, label_smoothing=smoothing, reduction="none")
        terms = {"labeled": (errors * batch.labels_ok).mean()}
        if batch.unlabeled is None:
            return terms
        if batch.before is not None:
            strong = outputs[b:split]
            consistency = F.cross_entropy(strong, batch.before.probs, reduction="none")
            feedback = F.cross_entropy(strong, strong.detach().argmax(dim=1), reduction="none")
            ramp = min(1.0, batch.progress / _CONSISTENCY_RAMP)
            errors = ramp * self.numbers.consistency * consistency + self.numbers.strength * self.h * feedback
            terms["teacher"] = (errors * batch.before.ok).mean()
        errors = F.cross_entropy(outputs[split:], batch.unlabeled.probs.argmax(dim=1), reduction="none")
        terms["student"] = (errors * batch.unlabeled.ok).mean()
        return terms

    def after_step(self, model: nn.Module, batches: list[MetaBatch]) -> None:
        """Measures what the step did to the student, and updates the averaged weights."""
        super().after_step(model, batches)
        taken = [batch for batch in batches if batch.unlabeled is not None]
        self.before = [each.unlabeled for each in taken if each.unlabeled is not None]
        if taken:
            gains = [
                each.error - self._error(each.labeled, each.labels, each.labels_ok, each.buffers) for each in taken
            ]
            self.h = self._standardised(sum(self.world.gather(sum(gains) / len(gains))) / self.world.size)

    def state(self) -> dict[str, Any]:
        """What the next epoch needs besides weights."""
        return super().state() | {"moments": self.moments, "h": self.h}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned."""
        super().load_state(state, tensors)
        self.moments, self.h = state["moments"], state["h"]

    def averaged_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of the averaged student."""
        return self.outputs_of(self.ema_model.student, inputs)

    def _read(self, rows: tuple[int, Indices, Indices]) -> tuple[Any, ...]:
        _, labeled, unlabeled = rows
        return rows, self.labeled.images.batch(labeled), self.unlabeled.images.batch(unlabeled)

    def _batch(self, epoch: int, number: int, labeled: Indices, unlabeled: Indices, pictures: list[Any]) -> MetaBatch:
        progress = (epoch + number / self.steps_per_epoch) / self.epochs
        generator = self.generator(epoch, number)
        (pixels, labels_ok), (faces, faces_ok) = pictures
        labels = torch.from_numpy(self.labeled.labels[labeled]).to(self.world.device)
        ok = self.tensor(labels_ok)
        x = self.augmented(pixels, VIEWS[self.config.labeled_view], generator)
        uris = [self.labeled.uris[row] for row in labeled]
        if progress >= 1 - self.numbers.finetune:
            self.pair.split = 0
            return MetaBatch(x, uris, labels, ok, x, None, None, {}, 0.0, progress)
        weak, strong = (self.augmented(faces, view, generator) for view in (WEAK, STRONG))
        own = Unlabeled(strong, self._teacher_probs(weak), self.tensor(faces_ok))
        place = number % self.accumulate
        before = self.before[place] if place < len(self.before) else None
        parts = [x, *([before.strong] if before else []), strong]
        self.pair.split = sum(len(part) for part in parts[:-1])
        buffers = {name: buffer.clone() for name, buffer in self.pair.student.named_buffers()}
        error = self._error(x, labels, ok, buffers)
        uris += [self.unlabeled.uris[row] for row in unlabeled]
        inputs = torch.cat(parts).contiguous(memory_format=self.layout)
        return MetaBatch(inputs, uris, labels, ok, x, own, before, buffers, error, progress)

    @torch.no_grad()
    def _teacher_probs(self, weak: torch.Tensor) -> torch.Tensor:
        teacher = self.pair.teacher.eval()
        probs = self.outputs_of(teacher, weak).softmax(dim=1)
        teacher.train()
        return probs

    @torch.no_grad()
    def _error(
        self, labeled: torch.Tensor, labels: torch.Tensor, ok: torch.Tensor, buffers: dict[str, torch.Tensor]
    ) -> float:
        """Cross-entropy of the student with ``buffers``, in evaluation mode, so that no statistics of a batch enter."""
        student = self.pair.student.eval()
        with self.world.autocast():
            errors = F.cross_entropy(functional_call(student, buffers, labeled).float(), labels, reduction="none")
        student.train()
        return float((errors * ok).sum() / ok.sum().clamp(min=1))

    def _standardised(self, h: float) -> float:
        """(h - mean) / (std + 1e-3), within [-1, 1], by the moments of what came before."""
        moments = self.moments
        std = max(moments["square"] - moments["mean"] ** 2, 0.0) ** 0.5
        value = float(np.clip((h - moments["mean"]) / (std + 1e-3), -1, 1)) if moments["count"] else 0.0
        share = max(1 - _MOMENTUM, 1 / (moments["count"] + 1))
        moments["mean"] += share * (h - moments["mean"])
        moments["square"] += share * (h * h - moments["square"])
        moments["count"] += 1
        return value


METHOD = MetaFeedbackMethod
