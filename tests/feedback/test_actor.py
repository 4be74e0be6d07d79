import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from ray_fer.errors import UserError
from ray_fer.feedback.actor import FeedbackStore, get_feedback_actor, load_snapshot
from ray_fer.feedback.formulas import feedback, initial_state, snapshot

CLASSES = ("neutral", "anger", "happiness")
WEAK_ANGER = np.array([[90, 5, 5], [40, 50, 10], [5, 5, 90]])


def test_versions_are_files_and_follow_the_formulas(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path / "f"), CLASSES)
    assert store.snapshot()["version"] == 0
    assert store.snapshot()["loss_weights"] == [1.0, 1.0, 1.0]
    first = store.update(WEAK_ANGER, "run/epoch-1")
    second = store.update(WEAK_ANGER, "run/epoch-2", q_hat=[0.6, 0.2, 0.2], accepted_share=0.5)
    state = feedback(WEAK_ANGER, None, initial_state(3))
    assert first["loss_weights"] == snapshot(state).loss_weights.tolist()
    state = feedback(WEAK_ANGER, [0.6, 0.2, 0.2], state, accepted_share=0.5)
    assert second["log_debiasing_prior"] == snapshot(state).log_debiasing_prior.tolist()
    assert second["loss_weights"][1] > first["loss_weights"][1] > 1
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["v000001.json", "v000002.json"]
    stored = json.loads((tmp_path / "f" / "v000002.json").read_text())
    assert stored["source"] == "run/epoch-2"
    assert stored["confusion_matrix"] == WEAK_ANGER.tolist()
    assert store.history()[1] == stored
    assert store.snapshot(version=1) == first


def test_a_source_counts_once(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path), CLASSES)
    first = store.update(WEAK_ANGER, "run/epoch-1")
    store.update(WEAK_ANGER, "run/epoch-2")
    assert store.update(np.eye(3) * 100, "run/epoch-1") == first
    assert store.snapshot()["version"] == 2


def test_a_matrix_that_cannot_be_trusted_changes_nothing(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path), CLASSES)
    assert store.update(np.eye(3), "few")["version"] == 0
    assert not list(tmp_path.iterdir())


def test_load_snapshot_without_an_actor(tmp_path: Path) -> None:
    uri = str(tmp_path / "f")
    assert load_snapshot(uri, CLASSES).version == 0
    answer = FeedbackStore(uri, CLASSES).update(WEAK_ANGER, "run/epoch-1")
    loaded = load_snapshot(uri, CLASSES)
    assert loaded.version == 1
    assert loaded.thresholds.tolist() == answer["thresholds"]
    assert load_snapshot(uri, CLASSES, version=0).loss_weights.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UserError, match="no version 5 there"):
        load_snapshot(uri, CLASSES, version=5)
    with pytest.raises(UserError, match="it is about the classes neutral, anger, happiness, not neutral, anger"):
        load_snapshot(uri, CLASSES[:2])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def call(reference: Any) -> Any:
    return ray.get(reference, timeout=60)


@pytest.mark.usefixtures("cluster")
def test_a_killed_actor_comes_back_as_it_was(tmp_path: Path) -> None:
    actor = get_feedback_actor(str(tmp_path), CLASSES)
    before = call(actor.update.remote(WEAK_ANGER.tolist(), "run/epoch-1"))
    pids = {call(actor.__ray_call__.remote(lambda self: os.getpid()))}
    os.kill(next(iter(pids)), signal.SIGKILL)
    time.sleep(0.2)
    assert call(actor.update.remote(WEAK_ANGER.tolist(), "run/epoch-1")) == before
    assert call(actor.update.remote(WEAK_ANGER.tolist(), "run/epoch-2"))["version"] == 2
    assert call(actor.__ray_call__.remote(lambda self: os.getpid())) not in pids


@pytest.mark.usefixtures("cluster")
def test_one_actor_for_one_place(tmp_path: Path) -> None:
    actor = get_feedback_actor(str(tmp_path / "a"), CLASSES)
    assert get_feedback_actor(f"{tmp_path}/a/", CLASSES)._actor_id == actor._actor_id
    assert get_feedback_actor(str(tmp_path / "b"), CLASSES)._actor_id != actor._actor_id


@pytest.mark.usefixtures("cluster")
def test_a_new_actor_goes_on_from_the_files(tmp_path: Path) -> None:
    FeedbackStore(str(tmp_path), CLASSES).update(WEAK_ANGER, "run/epoch-1")
    actor = get_feedback_actor(str(tmp_path), CLASSES)
    assert call(actor.snapshot.remote())["version"] == 1
    assert [row["source"] for row in call(actor.history.remote())] == ["run/epoch-1"]
    with pytest.raises(UserError, match="it is about the classes"):
        get_feedback_actor(str(tmp_path), CLASSES[:2])
