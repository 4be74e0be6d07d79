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
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from benchmarks.ssl.faces import Sets
from ray_fer.evaluation.metrics import apply_temperature, evaluate_probs
from ray_fer.expressions import SEVEN
from ray_fer.feedback.config import PARTS
from ray_fer.feedback.controller import next_state
from ray_fer.feedback.state import initial_state, snapshot
from ray_fer.methods.heads import with_heads
from ray_fer.methods.meta_feedback import MetaFeedbackRecipe, MetaSettings, TeacherAndStudent
from ray_fer.methods.online import OnlineRecipe, OnlineSettings
from ray_fer.methods.recipe import BackboneRecipe, Factors, Indices
from ray_fer.methods.supervised import PseudoLabels, SupervisedRecipe, SupervisedSettings
from ray_fer.selection import Accepted, Rule, SelectionContext, debias, fit, harden, smoothed_prior
from ray_fer.training.finite import FiniteGuard
from ray_fer.training.loop import train_epoch
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World

K = len(SEVEN)
FORWARD = 1 / 3
HALF = (0.5, 0.5, 0.5)
QUARTER = (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Size:
    """What the runs of one table have in common."""

    backbone: str = "resnet10t"
    passes: int = 160_000
    batch: int = 32
    epochs: int = 20


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
        """A backbone from scratch."""
        torch.manual_seed(self.seed)
        return timm.create_model(self.size.backbone, num_classes=K)

    def schedule(self, passes: float, per_face: float) -> dict[str, Any]:
        """The settings that make a recipe spend ``passes``, at ``per_face`` of them for every labelled face."""
        epochs, per_step = self.size.epochs, self.size.batch * per_face
        steps = max(1, round(passes / per_step / epochs))
        self.spent += steps * epochs * per_step
        return {
            "epochs": epochs,
            "steps_per_epoch": steps,
            "batch_size": self.size.batch,
            # A window of the whole run would still hold its beginning.
            "ema_decay": min(0.997, 1 - 10 / (steps * epochs)),
            "label_smoothing": 0.0,
            "seed": self.seed,
        }

    def shared(self) -> dict[str, Any]:
        """The arguments that all recipes have."""
        sets = self.sets
        return {
            "mean": HALF,
            "std": QUARTER,
            "labeled": sets.labeled,
            "val": sets.val,
            "feedback_rows": sets.feedback_rows,
            "classes": SEVEN,
            "world": self.world,
        }

    def train(self, recipe: BackboneRecipe) -> None:
        """All epochs; the last averaged weights are the result, whatever the validations say."""
        engine = PlainEngine(recipe)
        for epoch in range(recipe.epochs):
            train_epoch(recipe, engine, epoch, FiniteGuard(self.world, recipe.steps_per_epoch))
            # The others change nothing without feedback or labels that are calibrated while training.
            if epoch == recipe.epochs - 1 or recipe.feedback or isinstance(recipe, OnlineRecipe):
                recipe.validate(epoch)
        if recipe.feedback:
            self.notes["feedback"] = {
                key: np.round(value, 3).tolist() for key, value in recipe.factors.to_json().items()
            }


def supervised(
    run: Run,
    passes: float,
    pseudo: PseudoLabels | None = None,
    init: Any = None,
    feedback: LocalFeedback | None = None,
    **settings: Any,
) -> SupervisedRecipe:
    """Labelled faces, and pseudo-labels where there are any."""
    per_face = 1 + (settings.get("pseudo_ratio", 2) if pseudo else 0)
    numbers = SupervisedSettings(**(run.schedule(passes, per_face) | settings))
    model = init if init is not None else run.backbone()
    recipe = SupervisedRecipe(settings=numbers, model=model, pseudo=pseudo, feedback=feedback, **run.shared())
    run.train(recipe)
    return recipe


def online(
    run: Run,
    passes: float,
    feedback_parts: Sequence[str] | None = None,
    confusion: str = "measured",
    pseudo: PseudoLabels | None = None,
    init: Any = None,
    **settings: Any,
) -> OnlineRecipe:
    """Labelled and unlabeled faces in every step, with or without feedback."""
    ratio, head = settings.get("ratio", 2), settings.get("head", "main")
    per_face = 1 + ratio * (1 + FORWARD + (head == "debiased")) + (settings.get("pseudo_ratio", 2) if pseudo else 0)
    numbers = OnlineSettings(**(run.schedule(passes, per_face) | settings))
    backbone = init if init is not None else run.backbone()
    told = None if feedback_parts is None else LocalFeedback(feedback_parts, confusion, run.seed)
    unlabeled = run.sets.unlabeled
    recipe = OnlineRecipe(
        settings=numbers,
        model=with_heads(backbone, numbers.head, K),
        pseudo=pseudo,
        unlabeled=unlabeled,
        feedback=told,
        **run.shared(),
    )
    run.train(recipe)
    probs = recipe.predict(unlabeled)[0]
    if numbers.calibrate:
        probs = apply_temperature(probs, recipe.temperature).astype(np.float32)
    state = {name: each.cpu().numpy() if torch.is_tensor(each) else each for name, each in recipe.rule_state.items()}
    known = recipe.known(recipe.epochs)
    accepted = numbers.rule.accept(debias(probs, known.log_prior), state, known.to(probs))
    run.notes["pseudo"] = quality(accepted, unlabeled.labels)
    return recipe


def meta_feedback(run: Run, passes: float, warm: float = 0.0, **settings: Any) -> MetaFeedbackRecipe:
    """The circuit, fine-tuning included.

    Args:
        run: the run.
        passes: to spend.
        warm: share of them for the supervised model that teacher and student start from; 0: they start from nothing.
        settings: of the recipe.
    """
    start = supervised(run, passes * warm).ema_model.requires_grad_(True) if warm else run.backbone()
    ratio, share = settings.get("ratio", 2), settings.get("finetune", 0.2)
    together = 1 + ratio * (2 + FORWARD) + 2 * FORWARD
    numbers = MetaSettings(**(run.schedule(passes - run.spent, (1 - share) * together + share) | settings))
    model = TeacherAndStudent(start, copy.deepcopy(start))
    recipe = MetaFeedbackRecipe(settings=numbers, model=model, unlabeled=run.sets.unlabeled, **run.shared())
    run.train(recipe)
    return recipe


def labelled_by(
    run: Run, teacher: BackboneRecipe, rule: Rule, threshold: float, calibrate: bool = True, targets: str = "soft"
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

    def __call__(self, confusion: NDArray[np.int64], epoch: int, *, trained_under: int, **evidence: Any) -> Factors:
        """See `ray_fer.methods.recipe.Feedback`; every matrix comes from a model of the last version."""
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


def execute(method: Callable[[Run, float], BackboneRecipe], run: Run) -> dict[str, Any]:
    """Runs ``method`` and measures its model; one line of the results."""
    started = time.monotonic()
    recipe = method(run, run.size.passes)
    scores: dict[str, Any] = {}
    for split in ("choice", "heldout"):
        probs, labels = recipe.predict(getattr(run.sets, split))
        metrics = evaluate_probs(probs, labels, SEVEN)
        scores[split] = {key: metrics[key] for key in ("macro_f1", "macro_f1_frequent", "accuracy", "ece", "n")}
        calibrated = evaluate_probs(apply_temperature(probs, recipe.temperature), labels, SEVEN)
        scores[split]["ece_calibrated"] = calibrated["ece"]
        for score in ("f1", "recall"):
            scores[split][score] = {key: each[score] for key, each in metrics["per_class"].items()}
    device = torch.cuda.get_device_name() if run.world.device.type == "cuda" else "CPU"
    return {
        "image_passes": round(run.spent),
        "seconds": round(time.monotonic() - started, 1),
        "device": device,
        "temperature": recipe.temperature,
        **scores,
        **run.notes,
    }


def partial(function: Callable[..., Any], **settings: Any) -> Callable[[Run, float], Any]:
    """``function`` with its settings, to be called with (run, passes)."""
    return functools.partial(function, **settings)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
