"""Masked reconstruction: pre-training on unlabeled faces alone, before everything else.

    loss = sum_p m_p |x_p - x̂_p| / sum_p m_p

A share of the patches of every face is replaced by one learnt colour, and the backbone has to restore them: x are the
normalised values of the weakly augmented face, x̂ those that a linear layer makes of the backbone's last map, m_p is 1
where the patch of p is masked and 0 elsewhere (SimMIM, arXiv:2111.09886; of masked pre-training for facial
expressions, arXiv:2410.17622). No connection leads around the last map, or the late layers would stay idle.

What is published is the backbone, for ``pretrained=``. Masked faces have other BatchNorm statistics than faces have, so
every validation puts those of plain faces into the averaged model. With labelled faces a linear probe becomes its
classifier, and the best epoch is the one whose probe is best; without, the one that restores best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ray_fer.config import Count
from ray_fer.data.augment import WEAK, normalise
from ray_fer.data.loading import read_ahead
from ray_fer.evaluation.probe import ridge_probe
from ray_fer.methods.base import BackboneMethod, Weights
from ray_fer.methods.batch import Indices
from ray_fer.methods.config import MethodConfig
from ray_fer.methods.context import Context
from ray_fer.training.loop import Batch, Terms

_HELD_OUT, _PLAIN, _AT_ONCE = 512, 2048, 128


@dataclass(frozen=True, eq=False)
class MaskedBatch(Batch):
    """Masked faces, and what they are without a mask.

    Attributes:
        readable: float (B, 1, 1, 1), 0 for a face that cannot be read.
    """

    readable: torch.Tensor


class MaskedNet(nn.Module):
    """A backbone that restores masked faces.

    Args:
        backbone: A timm model.
        side: S, of the faces in pixels.
    """

    def __init__(self, backbone: Any, side: int) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.inference_mode():
            _, channels, height, _ = last_map(backbone.eval(), torch.zeros(1, 3, side, side)).shape
        self.shrinkage = -(-side // height)
        self.decoder = nn.Conv2d(channels, 3 * self.shrinkage**2, 1)
        self.colour = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Restored faces (B, 3, S, S) of (B, 4, S, S), whose last channel is the mask."""
        faces, mask = inputs[:, :3], inputs[:, 3:]
        maps = last_map(self.backbone, torch.lerp(faces, self.colour, mask))
        restored = nn.functional.pixel_shuffle(self.decoder(maps), self.shrinkage)
        return restored[..., : faces.shape[-2], : faces.shape[-1]]


def last_map(backbone: Any, faces: torch.Tensor) -> torch.Tensor:
    """The last map (B, C, H, W) of a timm backbone, also of a transformer."""
    maps: list[torch.Tensor] = backbone.forward_intermediates(faces, indices=1, intermediates_only=True)
    return maps[-1]


def patch_masks(count: int, side: int, patches: int, ratio: float, generator: torch.Generator) -> torch.Tensor:
    """Masks, float (B, 1, S, S), that cover the same number of patches in every face.

    Args:
        count: B.
        side: S, in pixels.
        patches: Number of patches along a side; the last ones are cut where they do not divide it.
        ratio: Share of the patches that is masked.
        generator: Source of all randomness, on the device of the result.
    """
    draws = torch.rand(count, patches**2, generator=generator, device=generator.device)
    masked = draws.argsort(dim=1).argsort(dim=1) < round(ratio * patches**2)
    place = torch.arange(side, device=draws.device) * patches // side
    return masked.view(count, 1, patches, patches)[:, :, place][..., place].float()


class MaskedMethod(BackboneMethod):
    """See the module.

    Args:
        context: All that it is given.
    """

    class Config(MethodConfig):
        """The method's own numbers."""

        ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
        """share of the patches that is masked"""
        patches: Count = 8
        """patches along a side"""

    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    takes: ClassVar[tuple[str, ...]] = ("labeled",)
    pre_trains: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        rows = np.arange(len(context.unlabeled))
        # Every twentieth face only measures; a smaller set than that has none to spare.
        self.held_out = rows[::20][:_HELD_OUT]
        self.backbone: Any = self.ema_model.backbone
        self.rows = np.setdiff1d(rows, self.held_out) if len(rows) > 1 else rows
        together = self.config.batch_size * self.accumulate
        self.steps_per_epoch = context.steps_per_epoch or -(-len(self.rows) // together) * self.accumulate
        self.images_per_epoch = self.config.batch_size * self.steps_per_epoch

    def network(self) -> nn.Module:
        """The backbone with a decoder."""
        assert self.config.image_size is not None
        return MaskedNet(self.context.backbone(), self.config.image_size)

    @classmethod
    def publish(cls, weights: Weights, numbers: Any, classifier: str) -> Weights:
        """The backbone without the decoder."""
        prefix = "backbone."
        return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}

    def steps(self, epoch: int) -> Iterator[MaskedBatch]:
        """This rank's part of every step of ``epoch``; every face comes once before any comes again."""
        torch.manual_seed(self.random_seed(epoch))  # dropout
        order = np.random.default_rng((self.config.seed & 0xFFFFFFFF, epoch)).permutation(self.rows)
        drawn = np.resize(order, (self.steps_per_epoch, self.config.batch_size))
        read = read_ahead(self.context.unlabeled.images.batch, map(self.own, drawn))
        for number, (rows, (pixels, readable)) in enumerate(zip(map(self.own, drawn), read, strict=True)):
            yield self._batch(rows, pixels, readable, self.generator(epoch, number))

    def losses(self, outputs: torch.Tensor, batch: MaskedBatch) -> Terms:
        """The mean absolute error of the masked values."""
        faces, mask = batch.inputs[:, :3], batch.inputs[:, 3:] * batch.readable
        error = (mask * (outputs.float() - faces).abs()).sum() / (3 * mask.sum()).clamp(min=1)
        return {"reconstruction": error}

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """The macro-F1 of a linear probe where there are labelled faces, else minus the error on faces held out."""
        error = self._error()
        self._plain_statistics()
        if not len(self.context.labeled) or not len(self.val):
            return -error, {"reconstruction": error}
        self._probe()
        score, metrics = super().validate(epoch)
        return score, metrics | {"reconstruction": error}

    def averaged_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 (B, K) of the averaged backbone and the probe."""
        return self.outputs_of(self.backbone, inputs)

    @torch.inference_mode()
    def _error(self) -> float:
        """The loss of the averaged model on the faces held out, with the same masks in every epoch."""
        total, count = 0.0, 0
        for start in range(0, len(self.held_out), _AT_ONCE):
            rows = self.held_out[start : start + _AT_ONCE]
            pixels, readable = self.context.unlabeled.images.batch(rows)
            generator = torch.Generator(self.world.device).manual_seed(start)
            batch = self._batch(rows, pixels, readable, generator)
            outputs = self.outputs_of(self.ema_model, batch.inputs)
            total += float(self.losses(outputs, batch)["reconstruction"]) * len(rows)
            count += len(rows)
        return total / max(count, 1)

    @torch.inference_mode()
    def _plain_statistics(self) -> None:
        """Gives BatchNorm of the averaged backbone the statistics of faces without a mask, the same on every rank."""
        norms = [each for each in self.backbone.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        momenta = [each.momentum for each in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        rows = self.rows[:: max(1, len(self.rows) // _PLAIN)][:_PLAIN]
        for start in range(0, len(rows) - 1 if norms else 0, _AT_ONCE):
            pixels, _ = self.context.unlabeled.images.batch(rows[start : start + _AT_ONCE])
            self.outputs_of(self.backbone, normalise(self.pixels(pixels), *self._normalisation))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    @torch.inference_mode()
    def _probe(self) -> None:
        """Makes a ridge regression on the labelled faces the classifier of the averaged backbone."""
        backbone, faces = self.backbone, self.context.labeled
        features, labels = [], []
        for start in range(0, len(faces), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(faces)))
            pixels, readable = faces.images.batch(rows)
            inputs = normalise(self.pixels(pixels), *self._normalisation)
            good = torch.as_tensor(np.asarray(readable))
            features.append(backbone.forward_head(backbone.forward_features(inputs), pre_logits=True).float()[good])
            labels.append(torch.from_numpy(faces.labels[rows]).to(self.world.device)[good])
        weight, bias = ridge_probe(torch.cat(features), torch.cat(labels), len(self.classes))
        classifier = backbone.get_classifier()
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)

    @property
    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.context.mean, self.context.std

    def _batch(self, rows: Indices, pixels: Any, readable: Any, generator: torch.Generator) -> MaskedBatch:
        faces = self.augmented(pixels, WEAK, generator)
        mask = patch_masks(len(faces), faces.shape[-1], self.numbers.patches, self.numbers.ratio, generator)
        uris = [self.context.unlabeled.uris[row] for row in rows]
        there = self.tensor(np.asarray(readable)).view(-1, 1, 1, 1)
        return MaskedBatch(torch.cat([faces, mask], dim=1), uris, there)


METHOD = MaskedMethod
