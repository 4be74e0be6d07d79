"""The halves of a validation set: nothing straddles, classes are spread, the rows alone decide."""

from typing import Any

import numpy as np
import pytest

from ray_fer.data.manifests import Manifest
from ray_fer.data.splits import feedback_half, join_validation, missing_in_a_half
from ray_fer.errors import UserError

CLASSES = ("neutral", "anger", "disgust")


def manifest(labels: list[int], folder: str = "/faces", **columns: Any) -> Manifest:
    uris = [f"{folder}/{number}.png" for number in range(len(labels))]
    return Manifest(uris, np.array(labels, np.int64), CLASSES, **columns)


def per_half(faces: Manifest, rows: np.ndarray) -> list[list[int]]:
    return [faces.take(rows).counts().tolist(), faces.take(~rows).counts().tolist()]


def test_rows_that_stand_alone_are_halved_within_every_class() -> None:
    faces = manifest([0] * 301 + [1] * 40 + [2] * 3)
    one, other = per_half(faces, feedback_half(faces))
    assert sorted([one[0], other[0]]) == [150, 151]
    assert one[1] == other[1] == 20
    assert sorted([one[2], other[2]]) == [1, 2]


def test_the_half_is_no_matter_of_order_or_folder() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 200).tolist()
    faces = manifest(labels)
    rows = feedback_half(faces)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(feedback_half(faces.take(order)), rows[order])
    np.testing.assert_array_equal(feedback_half(manifest(labels, "s3://elsewhere/a/b")), rows)
    assert 0 < rows[:50].sum() < 50, "by hash, not by position"


@pytest.mark.parametrize("column", ["subjects", "groups", "videos"])
def test_a_group_never_straddles(column: str) -> None:
    rng = np.random.default_rng(2)
    names = [f"s{number}" if number else "" for number in rng.integers(0, 40, 600)]
    faces = manifest(rng.choice(3, 600, p=[0.8, 0.15, 0.05]).tolist(), **{column: names})
    rows = feedback_half(faces)
    inside = {name for name, chosen in zip(names, rows, strict=True) if chosen and name}
    outside = {name for name, chosen in zip(names, rows, strict=True) if not chosen and name}
    assert inside
    assert outside
    assert not inside & outside
    one, other = np.array(per_half(faces, rows))
    assert (np.abs(one - other) <= [4, 2, 1]).all(), "as even as forty subjects allow"


def test_what_is_connected_over_several_columns_stays_together() -> None:
    # 0 and 1 share a subject, 1 and 2 a video, 2 and 3 a group; 4 and 5 are faces of one picture.
    faces = Manifest(
        [*(f"/f/{n}.png" for n in range(4)), "/f/p.jpg#face=9.0,9.0,9.0,0.0", "/f/p.jpg#face=30.0,9.0,9.0,0.0"],
        np.array([0, 0, 0, 0, 1, 2]),
        CLASSES,
        subjects=["a", "a", "", "", "", ""],
        videos=["", "v", "v", "", "", ""],
        groups=["", "", "g", "g", "", ""],
    )
    rows = feedback_half(faces)
    assert len(set(rows[:4])) == len(set(rows[4:])) == 1
    assert rows[0] != rows[4]


def test_a_rare_class_of_few_subjects_is_spread_before_a_frequent_one() -> None:
    # Two subjects hold all of disgust; each also has neutral faces, which others can even out.
    subjects = ["a"] * 30 + ["b"] * 10 + [f"s{n}" for n in range(40)]
    faces = manifest([2] * 4 + [0] * 26 + [2] * 4 + [0] * 6 + [0] * 40, subjects=subjects)
    one, other = per_half(faces, feedback_half(faces))
    assert one[2] == other[2] == 4
    assert one[0] == other[0] == 36


def test_one_subject_cannot_be_halved() -> None:
    with pytest.raises(UserError, match=r"val: all pictures are of one subject, group or video, .*give feedback_val"):
        feedback_half(manifest([0, 1, 2], subjects=["a"] * 3))


def test_classes_without_examples_in_a_half_are_named() -> None:
    faces = manifest([0] * 10 + [1] * 4 + [2])
    assert missing_in_a_half(faces, feedback_half(faces)) == ["disgust"]
    assert missing_in_a_half(manifest([0] * 10), np.arange(10) < 5) == []


def test_two_sets_are_taken_as_they_are() -> None:
    both, rows = join_validation(manifest([0, 1]), manifest([2, 0, 1], "/more"))
    assert both.uris == ["/faces/0.png", "/faces/1.png", "/more/0.png", "/more/1.png", "/more/2.png"]
    assert both.labels.tolist() == [0, 1, 2, 0, 1]
    assert rows.tolist() == [False, False, True, True, True]
