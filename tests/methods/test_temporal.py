from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_fer.config import load_config
from ray_fer.methods.temporal import TemporalMethod, WindowBatch, balance, cut_windows
from ray_fer.training.plain_engine import PlainEngine
from ray_fer.training.world import World
from ray_fer.video.config import TrainTemporalConfig
from ray_fer.video.features import LabelledClip
from ray_fer.video.smoothing import choose_half_width, choose_smoothing
from ray_fer.video.windows import common_step
from tests.training.epochs import loss_of, run_epochs

CLASSES = ("neutral", "anger")
RUN = 8  # frames of one expression


def relay(seed: int, runs: int = 8) -> LabelledClip:
    """One frame in the middle of each run tells its class, the others nothing; the frame classifier knows nothing."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 2, runs), RUN)
    features = rng.normal(0, 0.1, (len(labels), 3)).astype(np.float32)
    told = np.arange(len(labels)) % RUN == RUN // 2
    features[told, 0] += 2.0 * labels[told] - 1
    features[told, 1] += 1  # so that it can be told from the others
    probs = np.full((len(labels), 2), 0.5, np.float32)
    return LabelledClip(f"clip-{seed}", np.arange(len(labels)), features, probs, labels)


def announced(seed: int, runs: int = 9) -> LabelledClip:
    """One frame in the middle of each run tells the class of the *next*: none says anything of its own."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, runs + 1)
    labels = np.repeat(classes[:-1], RUN)
    features = rng.normal(0, 0.1, (len(labels), 3)).astype(np.float32)
    told = np.arange(len(labels)) % RUN == RUN // 2
    features[told, 0] += 2.0 * classes[1:] - 1
    features[told, 1] += 1
    labels[:RUN] = -1  # nothing announces the first
    return LabelledClip(
        f"clip-{seed}", np.arange(len(labels)), features, np.full((len(labels), 2), 0.5, np.float32), labels
    )


def frame_classifier(train: list[LabelledClip], classes: int) -> Callable[[LabelledClip], NDArray[np.float32]]:
    """The best linear map from a frame's features to its class, by least squares: what training adds without time."""

    def inputs(clip: LabelledClip) -> NDArray[np.float64]:
        return np.column_stack([clip.features, np.ones(len(clip.labels))])

    known = [clip.labels >= 0 for clip in train]
    x = np.concatenate([inputs(clip)[rows] for clip, rows in zip(train, known, strict=True)])
    y = np.concatenate([np.eye(classes)[clip.labels[rows]] for clip, rows in zip(train, known, strict=True)])
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    return lambda clip: np.clip(inputs(clip) @ weights, 0.001, 1).astype(np.float32)


def config(*arguments: str) -> TrainTemporalConfig:
    small = ("window=16", "stride=8", "width=32", "layers=2", "heads=2", "batch_size=16", "dropout=0.1")
    loaded: TrainTemporalConfig = load_config("train_temporal", ["features=f", "val=v", "out=o", *small, *arguments])
    return loaded


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads gain nothing on matrices this small, and beside other processes they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TRAIN = [relay(seed) for seed in range(24)]
VAL = [relay(100 + seed) for seed in range(6)]


def recipe_of(*arguments: str, world: World | None = None, train: Any = TRAIN, val: Any = VAL) -> TemporalMethod:
    return TemporalMethod(config(*arguments), CLASSES, train, val, world or World())


def test_balance_by_hand() -> None:
    """Classes of 8 and 2 labelled frames in two windows; a third class never occurs."""
    probabilities, weights = balance(np.array([[6, 0, 0], [2, 2, 0]]))
    assert probabilities.tolist() == [0.5 * 6 / 8, 0.5 * (2 / 8 + 1)]
    assert weights.tolist() == pytest.approx([1 / (2 * (0.375 * 6 + 0.625 * 2)), 1 / (2 * 0.625 * 2), 0])


@given(st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=1, max_size=12))
def test_every_class_has_the_same_share_of_the_loss(table: list[list[int]]) -> None:
    counts = np.array(table)
    if not counts.any():
        return
    probabilities, weights = balance(counts)
    assert probabilities.sum() == pytest.approx(1)
    share = (probabilities @ counts) * weights
    occurs = counts.any(axis=0)
    assert share[occurs] == pytest.approx(1 / occurs.sum())
    assert (share[~occurs] == 0).all()


def test_windows_by_hand() -> None:
    frames = np.array([10, 12, 14, 20, 22])  # on a grid of 2: steps 0, 1, 2, 5, 6
    features, probs = np.arange(5, dtype=np.float32)[:, None], np.tile(np.float32([0.25, 0.75]), (5, 1))
    labelled = LabelledClip("a", frames, features, probs, np.array([0, -1, -1, 1, 1]))
    without = LabelledClip("b", np.arange(3), features[:3], probs[:3], np.full(3, -1))
    windows = cut_windows([labelled, without], 4, 2)
    assert windows.starts.tolist() == [0, 2, 3]
    assert windows.clips.tolist() == [0, 0, 0]
    assert windows.counts.tolist() == [[1, 0], [0, 1], [0, 2]]
    inputs, labels, names = windows.take(np.array([1, 0]))
    assert labels.tolist() == [[-1, -1, -1, 1], [0, -1, -1, -1]]
    assert inputs[0].tolist() == [[2, 0.25, 0.75, 1], [0, 0, 0, 0], [0, 0, 0, 0], [3, 0.25, 0.75, 1]]
    assert names == ["a from step 2", "a from step 0"]


def test_a_short_clip_is_one_padded_window() -> None:
    windows = cut_windows([relay(0, runs=1)], 16, 8)
    inputs, labels, _ = windows.take(np.array([0]))
    assert inputs.shape == (1, 16, 6)
    assert inputs[0, :, -1].tolist() == [1] * 8 + [0] * 8
    assert labels[0, 8:].tolist() == [-1] * 8


def test_the_loss_by_hand() -> None:
    recipe = recipe_of("batch_size=4", "label_smoothing=0.2")
    recipe.class_weights = torch.tensor([0.5, 2.0])
    logits = torch.tensor([[[2.0, 0.0], [5.0, 5.0], [0.0, 2.0]]])
    labels = torch.tensor([[0, -1, 0]])
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    by_hand = 0.5 * ((0.9 * right + 0.1 * wrong) + (0.9 * wrong + 0.1 * right)) / 4
    assert loss_of(recipe, logits, WindowBatch(logits, [], labels)).item() == pytest.approx(by_hand, rel=1e-5)


def test_ranks_share_a_step_its_loss_and_its_windows() -> None:
    whole = recipe_of("batch_size=6")
    parts = [recipe_of("batch_size=6", world=World(rank, 2)) for rank in (0, 1)]
    steps = [next(recipe.steps(3)) for recipe in (whole, *parts)]
    assert sorted(steps[0].uris) == sorted(steps[1].uris + steps[2].uris)
    assert torch.equal(steps[0].inputs[::2], steps[1].inputs)
    logits = torch.randn(6, 16, 2)
    losses = [loss_of(whole, logits, steps[0])]
    losses += [
        loss_of(recipe, logits[r::2], step) for r, (recipe, step) in enumerate(zip(parts, steps[1:], strict=True))
    ]
    assert (losses[1] + losses[2]).item() / 2 == pytest.approx(losses[0].item(), rel=1e-5)


def test_an_epoch_has_as_many_windows_as_there_are() -> None:
    recipe = recipe_of()
    windows = 24 * 7  # 64 frames in windows of 16, 8 apart
    assert len(recipe.windows.clips) == windows
    steps = list(recipe.steps(0))
    assert len(steps) == recipe.steps_per_epoch == 11  # of 16
    assert recipe.images_per_epoch == 11 * 16 * 16
    assert [step.uris for step in steps] == [step.uris for step in recipe.steps(0)]
    assert [step.uris for step in steps] != [step.uris for step in recipe.steps(1)]


def test_it_learns_what_only_neighbours_know_and_repeats_itself() -> None:
    """No smoothing of a trained frame classifier can do it, which is right half of the time; the encoder does, twice
    the same way.
    """
    train, val = ([announced(first + seed) for seed in range(count)] for first, count in ((0, 24), (100, 6)))
    probs = frame_classifier(train, 2)
    clips = [(clip.frames, probs(clip), clip.labels) for clip in val]
    assert max(choose_half_width(clips, [0, 2, 4, 5, 8, 10])[1].values()) < 0.6
    runs = []
    for _ in range(2):
        recipe = recipe_of("epochs=15", "learning_rate=0.005", "window=24", train=train, val=val)
        before, _ = recipe.validate(0)
        losses = run_epochs(recipe, range(15))
        score, metrics = recipe.validate(14)
        runs.append((losses, score, metrics["confusion_matrix"]))
    assert runs[0] == runs[1]
    assert before < 0.4
    assert runs[0][1] > 0.9
    assert metrics["n"] == 6 * 64


def test_an_epoch_depends_on_nothing_but_weights_and_state() -> None:
    recipe = recipe_of("epochs=4")
    engine = PlainEngine(recipe)
    run_epochs(recipe, range(2), engine)
    twin = recipe_of("epochs=4")
    twin.model.load_state_dict(recipe.model.state_dict())
    twin.ema_model.load_state_dict(recipe.ema_model.state_dict())
    twin.load_state(recipe.state(), recipe.tensors())
    other = PlainEngine(twin)
    other.optimizer.load_state_dict(deepcopy(engine.optimizer.state_dict()))
    assert run_epochs(recipe, range(2, 4), engine) == run_epochs(twin, range(2, 4), other)
    assert recipe.validate(3) == twin.validate(3)


def test_another_seed_is_another_run() -> None:
    first, second = recipe_of(), recipe_of("seed=1")
    assert not torch.equal(next(first.model.parameters()), next(second.model.parameters()))
    assert next(first.steps(0)).uris != next(second.steps(0)).uris


def test_validation_leaves_unlabelled_frames_out() -> None:
    clip = relay(7)
    clip.labels[:40] = -1
    _, metrics = recipe_of(val=[clip]).validate(0)
    assert metrics["n"] == 24


def test_the_step_of_most_frames(caplog: pytest.LogCaptureFixture) -> None:
    assert common_step([np.arange(0, 50, 5), np.array([3])]) == 5
    assert not caplog.records
    assert common_step([np.arange(4), np.arange(0, 50, 5)]) == 5
    assert "different steps" in caplog.text
    assert common_step([np.array([3])]) == 1


def test_an_encoder_of_no_use_is_called_that(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.repeat([0, 1, 0], 10)
    good = np.eye(2, dtype=np.float32)[labels] * 0.8 + 0.1
    spoiled = good.copy()
    spoiled[[5, 15, 25]] = 1 - spoiled[[5, 15, 25]]
    frames = np.arange(30)
    chosen = choose_smoothing([(frames, spoiled, labels)], [(frames, good, labels)], [0, 2])
    assert (chosen["smoothing"], chosen["frame_smoothing"]) == (0, 2)
    assert chosen["scores"]["encoder"] == chosen["scores"]["encoder_smoothed"] == 1
    assert chosen["scores"]["frame"] < chosen["scores"]["frame_smoothed"] == chosen["by_half_width"]["frame"]["2"] == 1
    assert "does not beat the smoothed frame classifier" in caplog.text  # equally good is no gain
    caplog.clear()
    assert choose_smoothing([(frames, spoiled, labels)], [(frames, good, labels)], [0])["smoothing"] == 0
    assert not caplog.records
