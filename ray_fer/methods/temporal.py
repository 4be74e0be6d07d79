"""The method of the temporal encoder: windows of frames drawn so that every class has the same share of the loss.

The paper draws a class with probability 1/C and then an instance of it (arXiv:2403.11942). A window holds frames of
several classes, so the instance is a labelled frame, and a window that contains it is drawn. What comes along with it
(neutral, mostly) would be too frequent still: a weight per class corrects exactly the rest. With n_ic labelled frames
of class c in window i, n_c their sum over the windows, C the classes that occur, and B windows in a step:

    q_i = 1/C sum_c n_ic / n_c              probability of window i
    w_c = 1 / (C sum_i q_i n_ic)            weight of a frame of class c
    loss = 1/B sum_frames w[y] CE(y smoothed, p)

so the weights of a class's frames in a window sum to 1/C on average. A weighted loss over windows drawn evenly has the
same mean, but most of its steps have no rare class at all, and the others have a large weight. This form is ours.

Every rank holds all training clips (2 kB a frame with 512 features) and its share of the validation clips.
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

from ray_fer.data.sampling import weighted_indices
from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.models.softmax import softmax
from ray_fer.training.loop import Batch, Terms
from ray_fer.training.optimisation import Ema, learning_rate_factor, parameter_groups
from ray_fer.training.world import World
from ray_fer.video.config import TrainTemporalConfig
from ray_fer.video.encoder import TemporalEncoder, clip_logits
from ray_fer.video.features import LabelledClip
from ray_fer.video.windows import frame_grid, gather, window_starts

Floats = NDArray[np.float64]

# Of the last few hundred steps: an epoch is short, and single steps are noisy.
_EMA_DECAY = 0.99
_WARMUP_SHARE = 0.1
_NORMALISED_OVER = 100_000


class WindowModel(nn.Module):
    """A temporal encoder as a function of one tensor, which is what an engine passes on.

    Args:
        encoder: of D features and K classes.
    """

    def __init__(self, encoder: TemporalEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self._parts = [int(encoder.sizes["dim"]), int(encoder.sizes["n_classes"]), 1]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, K) of inputs (B, T, D + K + 1): features, probabilities, and 1 (present) or 0."""
        features, probs, present = torch.split(inputs, self._parts, dim=-1)
        logits: torch.Tensor = self.encoder(features, probs, present[..., 0] > 0.5)
        return logits


@dataclass(frozen=True, eq=False)
class WindowSet:
    """Every window of training clips that has a labelled frame: W of them, of T steps each.

    Attributes:
        names: of the clips.
        inputs: of each clip on its grid, float32 (N, D + K + 1) as `WindowModel` takes them.
        labels: of each clip on its grid, int64 (N,), -1 for none.
        clips: which clip a window is from, int64 (W,).
        starts: its first step there, int64 (W,).
        counts: labelled frames per class, int64 (W, K).
        window: T.
    """

    names: list[str]
    inputs: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    clips: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    window: int

    def take(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
        """Inputs (B, T, D + K + 1), labels (B, T) and names of the windows ``rows``, (B,)."""
        inputs = np.zeros((len(rows), self.window, self.inputs[0].shape[1]), np.float32)
        labels = np.full((len(rows), self.window), -1, np.int64)
        names = []
        for at, (clip, start) in enumerate(zip(self.clips[rows], self.starts[rows], strict=True)):
            there = slice(start, start + self.window)
            length = len(self.labels[clip][there])
            inputs[at, :length], labels[at, :length] = self.inputs[clip][there], self.labels[clip][there]
            names.append(f"{self.names[clip]} from step {start}")
        return inputs, labels, names


def cut_windows(clips: Sequence[LabelledClip], window: int, stride: int) -> WindowSet:
    """The labelled windows of ``clips``; their starts are ``stride`` steps apart, the last is flush with the end."""
    n_classes = clips[0].probs.shape[1]
    names, inputs, labels = [], [], []
    places: list[NDArray[np.int64]] = []
    counts: list[NDArray[np.int64]] = []
    for number, clip in enumerate(clips):
        grid = frame_grid(clip.frames)
        present = np.ones((len(clip.frames), 1), np.float32)
        names.append(clip.name)
        inputs.append(grid.spread(np.concatenate([clip.features, clip.probs, present], axis=1)))
        labels.append(grid.spread(clip.labels, -1))
        starts = window_starts(grid.length, window, stride)
        classes = gather(labels[-1], starts, window, fill=-1)
        found = (classes[..., None] == np.arange(n_classes)).sum(axis=1)
        labelled = found.any(axis=1)
        counts.append(found[labelled])
        places.append(np.stack([np.full(len(starts), number), starts], axis=1)[labelled])
    clip_of, start_of = np.concatenate(places).T
    return WindowSet(names, inputs, labels, clip_of, start_of, np.concatenate(counts), window)


def balance(counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Probabilities of windows (W,) and weights of classes (K,), 0 for one that never occurs; see the module's formula.

    Args:
        counts: labelled frames per window and class, (W, K), at least one in all.
    """
    totals = counts.sum(axis=0)
    occurs = totals > 0
    probabilities = (counts[:, occurs] / totals[occurs]).sum(axis=1) / occurs.sum()
    weights = np.zeros(counts.shape[1])
    weights[occurs] = 1 / (occurs.sum() * (probabilities @ counts[:, occurs]))
    return probabilities, weights


@dataclass(frozen=True, eq=False)
class WindowBatch(Batch):
    """Windows of frames.

    Attributes:
        labels: int64 (B, T), -1 for frames without one.
    """

    labels: torch.Tensor


class TemporalMethod:
    """An encoder, its clips, and how a step is made; see `ray_fer.training.loop.Method` for the methods.

    Args:
        config: of the job.
        classes: names of the K classes.
        train: clips with at least one labelled frame in all.
        val: this rank's share of the validation clips.
        world: the ranks.
    """

    def __init__(
        self,
        config: TrainTemporalConfig,
        classes: tuple[str, ...],
        train: Sequence[LabelledClip],
        val: Sequence[LabelledClip],
        world: World,
    ) -> None:
        self.config, self.classes, self.val, self.world = config, classes, val, world
        encoder = build_encoder(config, train[0].features.shape[1], len(classes))
        every = max(1, sum(len(clip.frames) for clip in train) // _NORMALISED_OVER)
        encoder.normalise_inputs(
            np.concatenate([clip.features[::every] for clip in train]),
            np.concatenate([clip.probs[::every] for clip in train]),
        )
        model = WindowModel(encoder).to(world.device)
        self.model: nn.Module = model
        self.ema = Ema(model, _EMA_DECAY)
        self.ema_model = self.ema.model
        self.windows = cut_windows(train, config.window, config.stride)
        self.probabilities, weights = balance(self.windows.counts)
        self.class_weights = torch.as_tensor(weights, dtype=torch.float32).to(world.device)
        self.epochs, self.accumulate = config.epochs, 1
        self.steps_per_epoch = -(-len(self.windows.clips) // config.batch_size)
        self.images_per_epoch = self.steps_per_epoch * config.batch_size * config.window

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For AdamW; norms and biases do not decay."""
        return parameter_groups(self.model, self.config.weight_decay)

    def learning_rate(self, step: int) -> float:
        """Warm-up over a tenth of the run, then a cosine."""
        steps = self.epochs * self.steps_per_epoch
        return self.config.learning_rate * learning_rate_factor(step, steps, round(_WARMUP_SHARE * steps))

    def steps(self, epoch: int) -> Iterator[WindowBatch]:
        """This rank's part of every step of ``epoch``: as many windows as there are, drawn by their probability."""
        torch.manual_seed(self._seed(epoch))  # dropout
        count = self.steps_per_epoch * self.config.batch_size
        rows = weighted_indices(self.probabilities, count, seed=self.config.seed, epoch=epoch)
        for together in rows.reshape(self.steps_per_epoch, -1):
            inputs, labels, names = self.windows.take(together[self.world.rank :: self.world.size])
            device = self.world.device
            yield WindowBatch(torch.from_numpy(inputs).to(device), names, torch.from_numpy(labels).to(device))

    def losses(self, outputs: torch.Tensor, batch: WindowBatch) -> Terms:
        """The module's loss, scaled so that its mean over the ranks is the loss of the step."""
        labelled = batch.labels >= 0
        labels = batch.labels[labelled]
        smoothing = self.config.label_smoothing
        errors = F.cross_entropy(outputs[labelled].float(), labels, label_smoothing=smoothing, reduction="none")
        scale = self.world.size / self.config.batch_size
        return {"frames": (errors * self.class_weights[labels]).sum() * scale}

    def after_step(self, model: nn.Module, batches: list[WindowBatch]) -> None:
        """Updates the averaged weights."""
        self.ema.update(model)

    def validate(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Macro-F1 and all metrics of the averaged encoder over every labelled frame of whole clips, not smoothed."""
        encoder = self.ema_model.encoder
        assert isinstance(encoder, TemporalEncoder)
        logits = [np.empty((0, len(self.classes)), np.float32)]
        labels = [np.empty(0, np.int64)]
        for clip in self.val:
            one = clip_logits(encoder, clip.frames, clip.features, clip.probs, inference_stride(self.config.window))
            logits.append(one[clip.labels >= 0])
            labels.append(clip.labels[clip.labels >= 0])
        parts = self.world.gather((np.concatenate(logits), np.concatenate(labels)))
        pooled, truth = (np.concatenate(part) for part in zip(*parts, strict=True))
        metrics = evaluate_probs(softmax(pooled), truth, self.classes)
        return float(metrics["macro_f1"]), metrics

    def state(self) -> dict[str, Any]:
        """What the next epoch needs besides weights."""
        return {"ema_updates": self.ema.updates}

    def tensors(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` returned."""
        self.ema.updates = state["ema_updates"]

    def _seed(self, epoch: int) -> int:
        sequence = np.random.SeedSequence((self.config.seed & 0xFFFFFFFF, epoch, self.world.rank))
        return int(sequence.generate_state(1)[0])


def build_encoder(config: TrainTemporalConfig, dim: int, n_classes: int) -> TemporalEncoder:
    """The untrained encoder of a run, the same for the same ``seed``."""
    torch.manual_seed(config.seed)
    return TemporalEncoder(
        dim,
        n_classes,
        window=config.window,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
    )


def inference_stride(window: int) -> int:
    """Steps between the starts of windows at inference: with a quarter of the window, four see each frame."""
    return max(1, window // 4)
