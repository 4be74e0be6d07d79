"""When a student becomes the teacher, and when the loop ends before its time."""

from typing import Any

import pytest

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
