from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from ray_fer.selection.ensemble import ENSEMBLES, agreement, mean, named_otherwise_without

# Three teachers, three pictures, two classes.
PROBS = np.array(
    [
        [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]],
        [[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]],
        [[0.6, 0.4], [0.2, 0.8], [0.1, 0.9]],
    ],
    np.float32,
)
MEANS = [[0.7, 0.3], [0.3, 0.7], [0.2, 0.8]]


def test_mean_is_of_every_picture() -> None:
    combined = mean(list(PROBS))
    assert combined.rows.tolist() == [0, 1, 2]
    assert combined.probs == pytest.approx(np.array(MEANS))
    assert combined.probs.dtype == np.float32


def test_agreement_is_the_mean_where_all_name_one_class() -> None:
    combined = agreement(list(PROBS))
    assert combined.rows.tolist() == [0, 2]  # of picture 1 the first teacher says class 0, the others class 1
    assert combined.probs == pytest.approx(np.array(MEANS)[[0, 2]])


def test_agreement_is_of_the_likeliest_class_alone() -> None:
    """Of picture 0 they differ in the second likeliest, of picture 1 they agree on the least likely one alone."""
    first = np.array([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]], np.float32)
    second = np.array([[0.6, 0.1, 0.3], [0.3, 0.5, 0.2]], np.float32)
    combined = agreement([first, second])
    assert combined.rows.tolist() == [0]
    assert combined.probs == pytest.approx(np.array([[0.6, 0.2, 0.2]]))
    with pytest.raises(FrozenInstanceError):
        combined.rows = np.arange(1)  # type: ignore[misc]


def test_nobody_agrees() -> None:
    combined = agreement([np.array([[0.9, 0.1]], np.float32), np.array([[0.1, 0.9]], np.float32)])
    assert combined.rows.shape == (0,)
    assert combined.probs.shape == (0, 2)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_one_teacher_is_its_own_ensemble(name: str) -> None:
    combined = ENSEMBLES[name]([PROBS[0]])
    assert combined.rows.tolist() == [0, 1, 2]
    assert (combined.probs == PROBS[0]).all()


def test_what_a_teacher_adds_is_what_the_others_would_name_otherwise() -> None:
    first = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], np.float32)
    second = np.array([[0.6, 0.4], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], np.float32)
    # Together they name 0, 1, 1 and 1.
    assert named_otherwise_without([first, second]) == [0.0, 0.5]
