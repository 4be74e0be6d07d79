"""When a student becomes the teacher, and when the loop ends before its time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.feedback.actor import FeedbackStore
from ray_fer.training import self_train
from ray_fer.training.self_train import replaces, why_stop


def rounds(*outcomes: tuple[int, bool]) -> list[dict[str, Any]]:
    """(``asked``, whether the student was better) of each round."""
    return [
        {"round": number, "asked": asked, "student": "s", "teacher": "s" if better else "t"}
        for number, (asked, better) in enumerate(outcomes, start=1)
    ]


@pytest.mark.parametrize(
    ("outcomes", "asked", "patience", "stops"),
    [
        ([(5, True)], 5, 1, False),
        ([(5, True), (5, False)], 5, 1, True),
        ([(5, False), (5, True)], 5, 1, False),
        ([(5, True), (5, False)], 5, 2, False),
        ([(5, False), (5, False)], 5, 2, True),
        ([(5, False), (5, True), (5, False)], 5, 2, False),
        # More are asked for: what ended the loop before does not end it now.
        ([(2, True), (2, False)], 3, 1, False),
        ([(2, True), (2, False), (3, False)], 3, 1, True),
        ([(2, False), (3, False)], 3, 2, False),
    ],
)
def test_patience(outcomes: list[tuple[int, bool]], asked: int, patience: int, stops: bool) -> None:
    said = why_stop(rounds(*outcomes), asked, patience)
    assert (said is not None) == stops
    if said:
        assert said.startswith(f"stopped after round {len(outcomes)} of {asked}: no better student in ")


@pytest.mark.parametrize(("student", "teacher", "better"), [(0.501, 0.5, True), (0.5, 0.5, False), (0.4, 0.5, False)])
def test_only_a_better_student_replaces_its_teacher(student: float, teacher: float, better: bool) -> None:
    answer, reason = replaces(student, teacher)
    assert answer == better
    assert reason.endswith("the student replaces it" if better else "the teacher stays")
    assert f"{100 * student:.2f}, the teacher's {100 * teacher:.2f}" in reason


@pytest.mark.parametrize(("debiased", "helps"), [(0.6, False), (0.8, True)])
def test_a_round_says_whether_the_prior_helps(
    debiased: float, helps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an epoch does: a prior under which the teacher was worse is not moved on, it returns to neutral."""
    store = FeedbackStore(str(tmp_path / "feedback"), ("a", "b"))
    actor = SimpleNamespace(update=SimpleNamespace(remote=store.update))
    monkeypatch.setattr("ray_fer.cluster.connect", lambda: None)
    monkeypatch.setattr(self_train, "get_feedback_actor", lambda *_: actor)
    monkeypatch.setattr(self_train, "predicted_counts", lambda _: np.array([900, 100]))
    monkeypatch.setattr("ray.get", lambda answer: answer)
    half = {"confusion_matrix": [[90, 10], [50, 50]], "macro_f1": 0.7, "macro_f1_debiased": debiased}
    teacher = SimpleNamespace(id="t", classes=store.classes, metrics={"val": {"feedback": half}})
    given = ["labeled=l", "val=v", "source=s", f"out={tmp_path}"]
    loop = self_train._Loop(load_config("self_train", given))
    loop._feed_back(1, teacher, None)  # type: ignore[arg-type]
    (document,) = store.history()
    assert document["prior_helps"] == helps
    assert (document["state"]["log_debias"] != [0.0, 0.0]) == helps


def test_a_recipe_that_takes_no_pseudo_labels_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "alone.py").write_text(
        "from dataclasses import dataclass\n"
        "from ray_fer.training.parts import RecipeKind\n"
        "from ray_fer.training.supervised import SupervisedSettings, build\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Numbers(SupervisedSettings):\n"
        "    penalty: float = 1.0\n\n\n"
        "RECIPE = RecipeKind(build=build, settings=Numbers)\n"
    )
    (tmp_path / "face.png").write_bytes(b"")
    given = [
        "labeled=l",
        "val=v",
        f"source={tmp_path}",
        f"out={tmp_path}",
        "train.recipe=alone",
        "train.settings.penalty=2",
    ]
    with pytest.raises(UserError, match=r"^recipe=alone: takes no pseudo=$"):
        self_train._Loop(load_config("self_train", given)).check()
    loop = self_train._Loop(load_config("self_train", [*given, "student.recipe=supervised"]))
    loop.check()
    assert loop._student_config(1, "teacher").settings is None, "they are of another recipe"
