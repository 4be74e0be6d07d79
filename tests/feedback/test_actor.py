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

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.feedback.actor import get_feedback_actor, update
from ray_fer.feedback.config import PARTS
from ray_fer.feedback.controller import next_state
from ray_fer.feedback.state import initial_state, snapshot
from ray_fer.feedback.store import FeedbackStore, load_snapshot

CLASSES = ("neutral", "anger", "happiness")
WEAK_ANGER = np.array([[90, 5, 5], [40, 50, 10], [5, 5, 90]])


def test_versions_are_files_and_follow_the_formulas(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path / "f"), CLASSES)
    assert store.snapshot().version == 0
    assert store.snapshot().loss_weights.tolist() == [1.0, 1.0, 1.0]
    first = store.update(WEAK_ANGER, "run/epoch-1")
    second = store.update(WEAK_ANGER, "run/epoch-2", q_hat=[0.6, 0.2, 0.2], accepted_share=0.5)
    state = next_state(WEAK_ANGER, None, initial_state(3))
    assert first.loss_weights.tolist() == snapshot(state).loss_weights.tolist()
    state = next_state(WEAK_ANGER, [0.6, 0.2, 0.2], state, accepted_share=0.5)
    assert second.log_debiasing_prior.tolist() == snapshot(state).log_debiasing_prior.tolist()
    assert second.loss_weights[1] > first.loss_weights[1] > 1
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["v000001.json", "v000002.json"]
    stored = json.loads((tmp_path / "f" / "v000002.json").read_text())
    assert stored["source"] == "run/epoch-2"
    assert stored["confusion_matrix"] == WEAK_ANGER.tolist()
    assert store.history()[1] == stored
    assert store.snapshot(version=1).to_json() == first.to_json()


def test_a_source_counts_once(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path), CLASSES)
    first = store.update(WEAK_ANGER, "run/epoch-1")
    store.update(WEAK_ANGER, "run/epoch-2")
    assert store.update(np.eye(3) * 100, "run/epoch-1").to_json() == first.to_json()
    assert store.snapshot().version == 2


def test_a_matrix_that_cannot_be_trusted_changes_nothing(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path), CLASSES)
    assert store.update(np.eye(3), "few").version == 0
    assert not list(tmp_path.iterdir())


def test_a_late_matrix_only_learns_what_is_new(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path), CLASSES)
    first = store.update(WEAK_ANGER, "a/epoch-1", trained_under=0)
    assert first.version == 1
    assert store.update(np.eye(3) * 100, "b/epoch-1", trained_under=0).to_json() == first.to_json()
    assert store.update(np.eye(3) * 100, "b/epoch-2", trained_under=1).version == 2
    assert store.update(WEAK_ANGER, "a/epoch-2", trained_under=1).version == 2, "older than the last applied one"
    # Asked again after an interruption, an applied one is still the same.
    assert store.update(WEAK_ANGER, "a/epoch-1", trained_under=0).to_json() == first.to_json()
    assert [document["source"] for document in store.history()] == ["a/epoch-1", "b/epoch-2"]
    with pytest.raises(UserError, match=r"no version 9 there \(newest: 2\)"):
        store.update(WEAK_ANGER, "c/epoch-1", trained_under=9)


def test_a_first_epoch_is_no_loss_against_its_teachers_best(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path), CLASSES)
    store.update(np.eye(3) * 100, "teacher/best")
    untrained = np.tile([100, 0, 0], (3, 1))
    for epoch in (1, 2):
        store.update(untrained, f"student/epoch-{epoch}")
        assert store.history()[-1]["state"]["worse_rounds"] == 0
    for epoch in (3, 4, 5):
        store.update([[100, 0, 0], [0, 100, 0], [0, 0, 100]] if epoch == 3 else WEAK_ANGER, f"student/epoch-{epoch}")
    states = [document["state"] for document in store.history()]
    assert states[-2]["worse_rounds"] == 1, "within a run, epochs are compared"
    assert states[-1]["log_weights"] == pytest.approx([0.7 * x for x in states[-2]["log_weights"]]), "and rolled back"


@pytest.mark.parametrize(
    ("part", "factor"),
    [
        ("loss_weights", "loss_weights"),
        ("sampling_weights", "sampling_weights"),
        ("thresholds", "thresholds"),
        ("debiasing", "log_debiasing_prior"),
    ],
)
def test_each_part_can_be_left_out(tmp_path: Path, part: str, factor: str) -> None:
    parts = [other for other in PARTS if other != part]
    store, full = FeedbackStore(str(tmp_path / "a"), CLASSES, parts), FeedbackStore(str(tmp_path / "b"), CLASSES)
    neutral = store.snapshot().to_json()
    for number in range(2):
        some = store.update(WEAK_ANGER, f"run/epoch-{number}", q_hat=[0.6, 0.2, 0.2], accepted_share=0.01).to_json()
        every = full.update(WEAK_ANGER, f"run/epoch-{number}", q_hat=[0.6, 0.2, 0.2], accepted_share=0.01).to_json()
    for name in ("loss_weights", "sampling_weights", "thresholds", "log_debiasing_prior"):
        assert some[name] == (neutral if name == factor else every)[name]
        assert every[name] != neutral[name]
    assert load_snapshot(str(tmp_path / "a"), CLASSES).to_json()[factor] == neutral[factor]
    with pytest.raises(
        UserError, match=r"it was made with feedback_parts=\[.*\], not \[loss_weights, sampling_weights"
    ):
        FeedbackStore(str(tmp_path / "a"), CLASSES)


def test_without_any_part_everything_stays_neutral(tmp_path: Path) -> None:
    store = FeedbackStore(str(tmp_path), CLASSES, [])
    neutral = store.snapshot().to_json()
    answer = store.update(WEAK_ANGER, "run/epoch-1", q_hat=[0.6, 0.2, 0.2], accepted_share=0.01)
    assert answer.to_json() | {"version": 0} == neutral


def test_load_snapshot_without_an_actor(tmp_path: Path) -> None:
    uri = str(tmp_path / "f")
    assert load_snapshot(uri, CLASSES).version == 0
    answer = FeedbackStore(uri, CLASSES).update(WEAK_ANGER, "run/epoch-1")
    loaded = load_snapshot(uri, CLASSES)
    assert loaded.version == 1
    assert loaded.thresholds.tolist() == answer.thresholds.tolist()
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
    before = call(actor.update.remote(WEAK_ANGER.tolist(), "run/epoch-1")).to_json()
    pids = {call(actor.__ray_call__.remote(lambda self: os.getpid()))}
    os.kill(next(iter(pids)), signal.SIGKILL)
    time.sleep(0.2)
    assert call(actor.update.remote(WEAK_ANGER.tolist(), "run/epoch-1")).to_json() == before
    assert call(actor.update.remote(WEAK_ANGER.tolist(), "run/epoch-2")).version == 2
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
    assert call(actor.snapshot.remote()).version == 1
    assert [row["source"] for row in call(actor.history.remote())] == ["run/epoch-1"]
    with pytest.raises(UserError, match="it is about the classes"):
        get_feedback_actor(str(tmp_path), CLASSES[:2])


def test_fifty_updates_read_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = FeedbackStore(str(tmp_path), CLASSES), []
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read.append(uri))
    for epoch in range(50):
        store.update(WEAK_ANGER, f"run/epoch-{epoch}")
    assert read == []
    assert len(list(tmp_path.iterdir())) == 50


def test_two_clusters_on_one_folder_are_told(tmp_path: Path) -> None:
    ours, theirs = FeedbackStore(str(tmp_path), CLASSES), FeedbackStore(str(tmp_path), CLASSES)
    first = ours.update(WEAK_ANGER, "ours/epoch-1")
    with pytest.raises(UserError, match=r"another cluster has written v000001\.json since; give each"):
        theirs.update(np.eye(3) * 100, "theirs/epoch-1")
    assert theirs.history() == []
    # What was written by a request whose answer was lost is not of another.
    assert theirs.update(WEAK_ANGER, "ours/epoch-1").to_json() == first.to_json()
    assert FeedbackStore(str(tmp_path), CLASSES).history() == ours.history()


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_is_there_reads_nothing_more(tmp_path: Path) -> None:
    actor = get_feedback_actor(str(tmp_path), CLASSES)
    update(actor, WEAK_ANGER.tolist(), "run/epoch-1")
    (tmp_path / "v000001.json").write_text("damaged since")
    assert get_feedback_actor(str(tmp_path), CLASSES)._actor_id == actor._actor_id
    with pytest.raises(UserError, match="it is about the classes neutral, anger, happiness, not neutral, anger"):
        get_feedback_actor(str(tmp_path), CLASSES[:2])
    with pytest.raises(UserError, match=r"it was made with feedback_parts=\[loss_weights, .*\], not \[thresholds\]"):
        get_feedback_actor(str(tmp_path), CLASSES, ["thresholds"])


@pytest.mark.usefixtures("cluster")
def test_an_actor_s_refusal_is_one_line(tmp_path: Path) -> None:
    actor = get_feedback_actor(str(tmp_path), CLASSES)
    with pytest.raises(UserError) as error:
        update(actor, WEAK_ANGER.tolist(), "run/epoch-1", trained_under=9)
    assert str(error.value) == f"feedback={tmp_path}: no version 9 there (newest: 0)"
