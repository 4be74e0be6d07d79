"""When a student becomes the teacher, and when the loop ends before its time."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.errors import UserError
from ray_fer.feedback.store import FeedbackStore
from ray_fer.jobs import self_train
from ray_fer.jobs.backbone_inputs import with_defaults
from ray_fer.jobs.loop_configs import other_settings
from ray_fer.jobs.self_train import replaces, why_stop
from ray_fer.methods.registry import resolved
from ray_fer.training.run_folder import identity_of

SELECTION = {"rule": "top_k", "threshold": 0.6, "per_class": 20, "exclude": ["/d/labeled.csv", "/d/val.csv"]}
MODEL = "0123456789abcdef-float32"


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


def asked(selection: dict[str, Any] | None = None, **label: Any) -> dict[str, dict[str, Any]]:
    usual = {"precision": "auto", "flip": False, "faces": "none", "batch_size": 64}
    return {"selection": SELECTION | (selection or {}), "label": usual | label}


@pytest.mark.parametrize(
    ("now", "model", "others"),
    [
        (asked(), MODEL, []),
        (asked({"threshold": 0.9}), MODEL, ["selection.threshold=0.6"]),
        (asked({"rule": "crest", "per_class": None}), MODEL, ["selection.per_class=20", "selection.rule=top_k"]),
        (asked({"exclude": ["/d/labeled.csv"]}), MODEL, [f"selection.exclude={SELECTION['exclude']}"]),
        (asked({"exclude": ["/d/./labeled.csv", "file:///d/val.csv"]}), MODEL, []),
        (asked({"of_a_later_version": 1}), MODEL, []),
        (asked(flip=True), MODEL, ["label.flip=False"]),
        (asked(flip=True), f"{MODEL}-flip", []),
        (asked(), f"{MODEL}-flip", ["label.flip=True"]),
        (asked(faces="detect"), MODEL, ["label.faces=none"]),
        (asked(faces="detect", flip=True), f"{MODEL}-flip-faces-autocrop-2", []),
        (asked(), f"{MODEL}-faces-autocrop-flip", ["label.faces=detect"]),
        (asked(precision="bfloat16"), MODEL, ["label.precision=float32"]),
        (asked(precision="float32", batch_size=1), MODEL, []),
    ],
)
def test_other_settings_than_those_of_a_round(now: dict[str, Any], model: str, others: list[str]) -> None:
    assert other_settings(now, {"rule": SELECTION, "model": model}) == others
    assert other_settings(now, {"rule": SELECTION, "models": [model, model]}) == others


def test_what_an_older_selection_does_not_say_is_no_difference() -> None:
    assert other_settings(asked(flip=True, precision="bfloat16"), {}) == []


def a_finished_round(tmp_path: Path) -> list[str]:
    """The arguments of a loop of one round, with what that left."""
    arguments = ["labeled=/l.csv", "val=/v.csv", "source=s", f"out={tmp_path}", "student={epochs: 3}", "rounds=1"]
    loop = self_train._Loop(load_config("self_train", arguments))
    selection, student = loop.select_config(1, "/t"), loop.student_config(1, "/t")
    storage.write_json(
        f"{selection.out}/selection.json",
        {
            **{"classes": ["a", "b"], "table": "t", "version": 1, "model": MODEL, "feedback_version": 1},
            **{"considered": 4, "accepted": 2, "counts": {"a": 2, "b": 0}, "predicted": {"a": 3, "b": 1}},
            **{"thresholds": {"a": 0.8, "b": 0.8}, "rule": selection.selection.model_dump()},
        },
    )
    storage.write_json(f"{student.out}/config.json", {})
    storage.write_json(
        f"{student.out}/provenance.json", {"identity": identity_of(with_defaults(resolved(student), None), {})}
    )
    scores = {"val": 0.5, "choice": 0.5, "feedback": 0.5}
    summary = {
        **{"round": 1, "labelled_by": "/t", "predictions": 4, "accepted": 2, "accepted_per_class": {"a": 2, "b": 0}},
        **{"predicted_per_class": {"a": 3, "b": 1}, "thresholds": {"a": 0.8, "b": 0.8}, "feedback_version": 1},
        **{"student": student.out, "teacher": "/t", "teacher_macro_f1": scores, "student_macro_f1": scores},
        **{"reason": "r", "asked": 1},
    }
    storage.write_json(f"{tmp_path}/round-1/round.json", summary)
    return arguments


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("rounds=2", None),
        ("patience=3", None),
        ("source=[s,t]", None),
        ("label={batch_size: 3, actors: 1}", None),
        ("student={epochs: 3, workers: 2}", None),
        ("selection={threshold: 0.9}", r"holds round 1 with selection\.threshold=0\.8"),
        ("selection={rule: crest}", r"holds round 1 with selection\.rule=threshold"),
        ("label={flip: true}", r"holds round 1 with label\.flip=False"),
        ("student={epochs: 4}", r"round-1/student holds a model trained with epochs=3"),
        ("student={epochs: 3, init: teacher}", r"round-1/student holds a model trained with init=None"),
        ("train={method: online}", r"round-1/student holds a model trained with .*method\.name=supervised"),
        ("seed=1", r"round-1/student holds a model trained with seed=0"),
    ],
)
def test_a_finished_round_is_asked_for_with_its_own_settings(more: str, said: str | None, tmp_path: Path) -> None:
    arguments = a_finished_round(tmp_path)
    loop = self_train._Loop(load_config("self_train", [*arguments, more]))
    if said is None:
        assert loop.round(1, None)["round"] == 1  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=f"^out=.*{said}.*; choose another out$"):
        loop.round(1, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("round-1/round.json", '{"round": 1', r"round\.json: not JSON \("),
        ("round-1/round.json", "{}", r"round\.json: round: is missing"),
        ("round-1/round.json", "", r"round\.json: not JSON \(the file is empty\)"),
        ("round-1/selection/selection.json", "{}", r"selection\.json: classes: is missing"),
        ("round-1/student/provenance.json", '{"identity": 3}', r"provenance\.json: identity: input should be"),
    ],
)
def test_a_damaged_round_is_one_line(file: str, text: str, said: str, tmp_path: Path) -> None:
    arguments = a_finished_round(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        self_train._Loop(load_config("self_train", arguments)).round(1, None)  # type: ignore[arg-type]
    assert len(str(refused.value).splitlines()) == 1


def test_a_method_that_takes_no_pseudo_labels_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "alone.py").write_text(
        "from ray_fer.methods.config import MethodConfig\n"
        "from ray_fer.methods.supervised import SupervisedMethod\n\n\n"
        "class METHOD(SupervisedMethod):\n"
        "    class Config(SupervisedMethod.Config):\n"
        "        penalty: float = 1.0\n\n"
        "    takes = ('feedback',)\n"
    )
    (tmp_path / "face.png").write_bytes(b"")
    given = [
        "labeled=l",
        "val=v",
        f"source={tmp_path}",
        f"out={tmp_path}",
        "train.method=alone",
        "train.method.penalty=2",
    ]
    with pytest.raises(UserError, match=r"^self_train: student: method=alone: takes no pseudo=$"):
        self_train._Loop(load_config("self_train", given)).check()
    loop = self_train._Loop(load_config("self_train", [*given, "student.method=supervised"]))
    loop.check()
    assert loop.student_config(1, "teacher").method.model_extra == {}, "they are of another method"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.backbone=resnet1", "self_train: train: backbone=resnet1: timm has no such model (near it: "),
        ("student.backbone=resnet1", "self_train: student: backbone=resnet1: timm has no such model (near it: "),
        ("student.init=/nowhere", "self_train: student: /nowhere: "),
        ("label.device=cuda", "device=cuda: "),
    ],
)
def test_what_a_later_job_would_end_with_is_told_before_anything_is_trained(
    change: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "face.png").write_bytes(b"")
    given = ["labeled=l", "val=v", f"source={tmp_path}", f"out={tmp_path}"]
    with pytest.raises(UserError) as refused:
        self_train._Loop(load_config("self_train", [*given, change])).check()
    assert str(refused.value).startswith(said)
    self_train._Loop(load_config("self_train", [*given, "student.init=teacher"])).check()


def test_its_jobs_compute_where_it_is_told_to(tmp_path: Path) -> None:
    given = ["labeled=l", "val=v", "source=s", f"out={tmp_path}", "device=cuda", "workers=4"]

    def places(*sections: str) -> list[tuple[str, int | None]]:
        loop = self_train._Loop(load_config("self_train", [*given, *sections]))
        configs = loop.teacher_config(), loop.student_config(1, "teacher"), loop.label_config("teacher")
        return [(config.device, config.workers) for config in configs]

    assert places() == [("cuda", 4)] * 3
    assert places("train.workers=2", "label.actors=8") == [("cuda", 2), ("cuda", 2), ("cuda", 8)]
    assert places("student.device=cpu", "label.workers=null") == [("cuda", 4), ("cpu", 4), ("cuda", None)]


LOOP = ("labeled=/l.csv", "val=/v.csv", "source=s", "out=/o")


def test_further_teachers_are_trained_as_the_first_but_for_their_keys() -> None:
    teachers = "teachers=[{image_size: 64},{backbone: resnet18, pretrained: null},/net.onnx]"
    loop = self_train._Loop(load_config("self_train", [*LOOP, "pretrained=/p", "train={epochs: 3}", teachers]))
    first, (second, third, outside) = loop.teacher_config(), loop.other_configs()
    assert (first.pretrained, first.epochs, first.image_size) == ("/p", 3, None)
    assert not isinstance(second, str)
    assert not isinstance(third, str)
    assert (second.pretrained, second.epochs, second.image_size) == ("/p", 3, 64)
    assert (third.pretrained, third.epochs, third.backbone) == (None, 3, "resnet18")
    assert loop.labelled_by("/best") == ["/best", "/o/teacher-2", "/o/teacher-3", outside]
    assert loop.select_config(2, loop.labelled_by("/best")).teacher == [
        "/best",
        "/o/teacher-2",
        "/o/teacher-3",
        outside,
    ]


def test_a_student_starts_where_its_teacher_did_or_from_its_teacher() -> None:
    loop = self_train._Loop(load_config("self_train", [*LOOP, "pretrained=/p"]))
    assert loop.student_config(1, "/t").pretrained == "/p"
    loop = self_train._Loop(load_config("self_train", [*LOOP, "pretrained=/p", "student={init: teacher}"]))
    student = loop.student_config(1, "/t")
    assert (student.init, student.pretrained) == ("/t", None)


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        ("[{seed: 1, init: /x}]", r"^self_train: teachers\[0\].init: set by the loop$"),
        ("[{epoch: 1}]", r"^self_train: teachers\[0\]: epoch: no such key, did you mean epochs\?$"),
        ("[{epochs: 1},/nowhere.onnx]", r"^self_train: teachers\[1\]=.*nowhere.onnx"),
    ],
)
def test_a_wrong_teacher_is_named(teachers: str, said: str) -> None:
    loop = self_train._Loop(load_config("self_train", [*LOOP, f"teachers={teachers}"]))
    with pytest.raises(UserError, match=said):
        loop.check()


def test_a_round_of_other_teachers_is_not_gone_on_with(tmp_path: Path) -> None:
    arguments = a_finished_round(tmp_path)
    selection = tmp_path / "round-1" / "selection" / "selection.json"
    found = json.loads(selection.read_text()) | {"teacher_uris": ["/t", "/a.onnx"]}
    selection.write_text(json.dumps(found))
    same = self_train._Loop(load_config("self_train", [*arguments, "teachers=[/a.onnx]"]))
    assert same.round(1, None)["round"] == 1  # type: ignore[arg-type]
    loop = self_train._Loop(load_config("self_train", [*arguments, "teachers=[/b.onnx]"]))
    with pytest.raises(UserError, match=r"holds round 1 with teachers=/a\.onnx; choose another out"):
        loop.round(1, None)  # type: ignore[arg-type]
