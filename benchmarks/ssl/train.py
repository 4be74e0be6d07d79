"""One run of one method: training at a given number of image passes, and what came of it.

An image pass is one image forward and backward; forward alone counts a third. Every method gets as many of them, the
passes of a teacher and of labelling included.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from benchmarks.ssl.faces import Sets
from ray_fer.config import load_config
from ray_fer.evaluation.calibration import apply_temperature
from ray_fer.evaluation.metrics import evaluate_probs
from ray_fer.expressions import SEVEN
from ray_fer.feedback.config import PARTS
from ray_fer.feedback.controller import next_state
from ray_fer.feedback.state import Snapshot, initial_state, snapshot
from ray_fer.heads.examples import draw_weights
from ray_fer.methods.base import BackboneMethod
from ray_fer.methods.batch import Indices, PseudoLabels
from ray_fer.methods.context import Context
from ray_fer.methods.meta_feedback import MetaFeedbackMethod
from ray_fer.methods.online import OnlineMethod
from ray_fer.methods.supervised import SupervisedMethod
from ray_fer.models.backbone import build_backbone, normalisation
from ray_fer.models.folder_facts import architecture_of
from ray_fer.models.frozen import rest_batch_norm
from ray_fer.selection import Accepted, Rule, SelectionContext, debias, fit, harden, smoothed_prior
from ray_fer.training.finite import FiniteGuard
from ray_fer.training.loop import train_epoch
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World

K = len(SEVEN)
FORWARD = 1 / 3
HALF = (0.5, 0.5, 0.5)
QUARTER = (0.25, 0.25, 0.25)
FIXMATCH = {"threshold": 0.95, "targets": "hard", "calibrate": False}
Kind = TypeVar("Kind", bound=BackboneMethod)


@dataclass(frozen=True)
class Size:
    """What the runs of one table have in common."""

    backbone: str = "resnet10t"
    passes: int = 160_000
    batch: int = 32
    epochs: int = 20
    pretrained: str | None = None


@dataclass
class Run:
    """One method on one cut of the data."""

    sets: Sets
    size: Size
    seed: int
    world: World
    spent: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    def backbone(self) -> Any:
        """A backbone from scratch, or from the pretrained net, over its depths and with BatchNorm at rest."""
        torch.manual_seed(self.seed)
        pretrained, side = self.size.pretrained, self.sets.labeled.images.images.shape[1]
        if pretrained is None:
            return timm.create_model(self.size.backbone, num_classes=K)
        model: Any = build_backbone(architecture_of(pretrained), K, side, pretrained=pretrained, depths=True)
        rest_batch_norm(model.body)
        return model

    def schedule(self, passes: float, per_face: float) -> dict[str, Any]:
        """The settings that make a method spend ``passes``, at ``per_face`` of them for every labelled face."""
        epochs, per_step = self.size.epochs, self.size.batch * per_face
        steps = max(1, round(passes / per_step / epochs))
        self.spent += steps * epochs * per_step
        return {
            "epochs": epochs,
            "steps_per_epoch": steps,
            "batch_size": self.size.batch,
            # A window of the whole run would still hold its beginning.
            "ema_decay": min(0.997, 1 - 10 / (steps * epochs)),
            "label_smoothing": 0.1 if self.size.pretrained else 0.0,
            "seed": self.seed,
        }

    def method(
        self,
        kind: type[Kind],
        start: torch.nn.Module,
        settings: dict[str, Any],
        pseudo: PseudoLabels | None = None,
        feedback: LocalFeedback | None = None,
    ) -> Kind:
        """A method that begins with ``start``; ``settings`` are of the job and, under their names, the method's own."""
        sets, given = self.sets, dict(settings)
        steps = given.pop("steps_per_epoch")
        mean, std = normalisation(start) if self.size.pretrained else (HALF, QUARTER)
        own = {key: given.pop(key) for key in kind.Config.model_fields if key in given}
        context = Context(
            config=load_config("train_backbone", ["labeled=-", "val=-", "out=-"])
            .with_defaults(fine_tuned=self.size.pretrained is not None)
            .model_copy(update=given),
            numbers=kind.Config(**own),
            classes=SEVEN,
            mean=mean,
            std=std,
            backbone=functools.partial(copy.deepcopy, start),
            labeled=sets.labeled,
            val=sets.val,
            feedback_rows=sets.feedback_rows,
            pseudo=pseudo,
            unlabeled=sets.unlabeled,
            world=self.world,
            feedback=feedback,
            steps_per_epoch=steps,
        )
        return kind(context)

    def train(self, method: BackboneMethod) -> None:
        """All epochs; the last averaged weights are the result, whatever the validations say."""
        engine, feedback = PlainEngine(method), method.context.feedback
        for epoch in range(method.epochs):
            train_epoch(method, engine, epoch, FiniteGuard(self.world, method.steps_per_epoch))
            # The others change nothing without feedback or labels that are calibrated while training.
            if epoch == method.epochs - 1 or feedback or isinstance(method, OnlineMethod):
                method.validate(epoch)
        if feedback and isinstance(method, SupervisedMethod):
            factors = method.snapshot.to_json()
            self.notes["feedback"] = {key: np.round(value, 3).tolist() for key, value in factors.items()}


def supervised(
    run: Run,
    passes: float,
    pseudo: PseudoLabels | None = None,
    init: Any = None,
    feedback: LocalFeedback | None = None,
    **settings: Any,
) -> SupervisedMethod:
    """Labelled faces, and pseudo-labels where there are any."""
    per_face = 1 + (settings.get("pseudo_ratio", 2) if pseudo else 0)
    start = init if init is not None else run.backbone()
    method = run.method(SupervisedMethod, start, run.schedule(passes, per_face) | settings, pseudo, feedback)
    run.train(method)
    return method


def online(
    run: Run,
    passes: float,
    feedback_parts: Sequence[str] | None = None,
    confusion: str = "measured",
    pseudo: PseudoLabels | None = None,
    init: Any = None,
    **settings: Any,
) -> OnlineMethod:
    """Labelled and unlabeled faces in every step, with or without feedback."""
    ratio, head = settings.get("ratio", 2), settings.get("head", "main")
    per_face = 1 + ratio * (1 + FORWARD + (head == "debiased")) + (settings.get("pseudo_ratio", 2) if pseudo else 0)
    start = init if init is not None else run.backbone()
    told = None if feedback_parts is None else LocalFeedback(feedback_parts, confusion, run.seed)
    numbers = run.schedule(passes, per_face) | FIXMATCH | settings
    method, unlabeled = run.method(OnlineMethod, start, numbers, pseudo, told), run.sets.unlabeled
    run.train(method)
    probs = method.predict(unlabeled)[0]
    if method.numbers.calibrate:
        probs = apply_temperature(probs, method.temperature).astype(np.float32)
    state = {name: each.cpu().numpy() if torch.is_tensor(each) else each for name, each in method.rule_state.items()}
    known = method.known(method.epochs)
    accepted = method.rule.accept(debias(probs, known.log_prior), state, known.to(probs))
    run.notes["pseudo"] = quality(accepted, unlabeled.labels)
    return method


def meta_feedback(run: Run, passes: float, warm: float = 0.0, **settings: Any) -> MetaFeedbackMethod:
    """The circuit, fine-tuning included.

    Args:
        run: the run.
        passes: to spend.
        warm: share of them for the supervised model that teacher and student start from; 0: they start from nothing.
        settings: of the method.
    """
    start = supervised(run, passes * warm).ema_model.requires_grad_(True) if warm else run.backbone()
    ratio, share = settings.get("ratio", 2), settings.get("finetune", 0.2)
    together = 1 + ratio * (2 + FORWARD) + 2 * FORWARD
    numbers = run.schedule(passes - run.spent, (1 - share) * together + share) | settings
    method = run.method(MetaFeedbackMethod, start, numbers)
    run.train(method)
    return method


def soft_labels(run: Run, teachers: Sequence[NDArray[np.float64]], power: float) -> PseudoLabels:
    """The mean of what calibrated teachers say of all unlabeled faces, as soft pseudo-labels for all of them.

    Args:
        run: the run.
        teachers: probabilities (N, K) of each.
        power: a class is drawn in proportion to this power of its mass among the soft labels; 1 draws faces evenly.
    """
    unlabeled = run.sets.unlabeled
    targets = np.mean(teachers, axis=0).astype(np.float32)
    weights = (draw_weights(targets, power) * len(targets)).astype(np.float32)
    run.notes["pseudo"] = quality(Accepted(weights, targets.argmax(axis=1), targets), unlabeled.labels)
    return PseudoLabels(unlabeled, targets, weights)


def labelled_by(
    run: Run, teacher: BackboneMethod, rule: Rule, threshold: float, calibrate: bool = True, targets: str = "soft"
) -> PseudoLabels:
    """A selection over all unlabeled faces, as `select_pseudo_labels` makes it from the table."""
    unlabeled = run.sets.unlabeled
    run.spent += len(unlabeled) * FORWARD
    probs, _ = teacher.predict(unlabeled)
    if calibrate:
        probs = apply_temperature(probs, teacher.temperature)
    probs = probs.astype(np.float32)
    counts = np.bincount(run.sets.labeled.labels, minlength=K)
    known = SelectionContext(np.full(K, threshold), smoothed_prior(counts), counts).to(probs)
    accepted = rule.accept(probs, fit(rule, [probs], known), known)
    run.notes["pseudo"] = quality(accepted, unlabeled.labels)
    matrix = accepted.targets if targets == "soft" else harden(accepted.labels, K)
    return PseudoLabels(unlabeled, matrix.astype(np.float32), accepted.weights.astype(np.float32))


class LocalFeedback:
    """The feedback's formulas without the actor.

    Args:
        parts: which of the four factors act.
        confusion: ``measured``; ``identity``: of a perfect student, so that nothing acts; ``shuffled``: the classes of
            the matrix are named wrongly, the same way every time.
        seed: of that naming.
    """

    def __init__(self, parts: Sequence[str], confusion: str, seed: int) -> None:
        self.parts = [part for part in PARTS if part in parts]
        self.state = initial_state(K, self.parts)
        self.confusion = confusion
        self.names = np.roll(np.random.default_rng(seed).permutation(K), 1)

    def __call__(self, confusion: NDArray[np.int64], epoch: int, *, trained_under: int, **evidence: Any) -> Snapshot:
        """See `ray_fer.methods.context.Feedback`; every matrix comes from a model of the last version."""
        if self.confusion == "identity":
            confusion = np.diag(confusion.sum(axis=1))
        elif self.confusion == "shuffled":
            confusion = confusion[np.ix_(self.names, self.names)]
        self.state = next_state(confusion, state=self.state, parts=self.parts, **evidence)
        return snapshot(self.state)


def quality(accepted: Accepted, labels: Indices) -> dict[str, Any]:
    """Precision, coverage and number of the accepted pseudo-labels, against labels that no method sees."""
    known, taken = labels >= 0, accepted.weights > 0
    right = accepted.labels == labels
    per_class = {}
    for k, name in enumerate(SEVEN):
        mine = taken & known & (accepted.labels == k)
        truth = known & (labels == k)
        per_class[name] = {
            "accepted": int(mine.sum()),
            "precision": _ratio((mine & right).sum(), mine.sum()),
            "coverage": _ratio((truth & taken & right).sum(), truth.sum()),
        }
    return {
        "accepted_share": float(taken.mean()),
        "accuracy": _ratio((taken & known & right).sum(), (taken & known).sum()),
        "per_class": per_class,
    }


def execute(method: Callable[[Run, float], BackboneMethod], run: Run) -> dict[str, Any]:
    """Runs ``method`` and measures its model; one line of the results."""
    started = time.monotonic()
    model = method(run, run.size.passes)
    scores: dict[str, Any] = {}
    for split in ("choice", "heldout"):
        probs, labels = model.predict(getattr(run.sets, split))
        metrics = evaluate_probs(probs, labels, SEVEN)
        scores[split] = {key: metrics[key] for key in ("macro_f1", "macro_f1_frequent", "accuracy", "ece", "n")}
        calibrated = evaluate_probs(apply_temperature(probs, model.temperature), labels, SEVEN)
        scores[split]["ece_calibrated"] = calibrated["ece"]
        for score in ("f1", "recall"):
            scores[split][score] = {key: each[score] for key, each in metrics["per_class"].items()}
    device = torch.cuda.get_device_name() if run.world.device.type == "cuda" else "CPU"
    return {
        "image_passes": round(run.spent),
        "seconds": round(time.monotonic() - started, 1),
        "device": device,
        "temperature": model.temperature,
        **scores,
        **run.notes,
    }


def partial(function: Callable[..., Any], **settings: Any) -> Callable[[Run, float], Any]:
    """``function`` with its settings, to be called with (run, passes)."""
    return functools.partial(function, **settings)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
