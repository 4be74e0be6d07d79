from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_fer.synthetic import geometry
from ray_fer.synthetic.action_units import AUS, RECIPES, neutral_vector, sample_action_units
from ray_fer.synthetic.face import render_face
from ray_fer.synthetic.geometry import Pose, landmarks, project
from ray_fer.synthetic.identity import draw_identity
from ray_fer.synthetic.nuisance import Nuisance, draw_nuisance
from tests.synthetic.reference import PARTS, au_vector, part_region, sample_at_letter

PERSON = draw_identity(np.random.default_rng(0))
PLAIN = replace(PERSON, hair_style="short", glasses=False, beard=0.0, skin=(236, 196, 164))
EXPRESSIVE = [label for label in RECIPES if label not in ("neutral", "other")]


def _grey(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    return image.astype(np.int64).mean(axis=2)


def test_a_face_is_a_function_of_its_arguments() -> None:
    nuisance = draw_nuisance(np.random.default_rng(1), 1.0)
    vector = sample_action_units("fear", np.random.default_rng(2))
    first, again = render_face(PLAIN, vector, nuisance), render_face(PLAIN, vector, nuisance)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)


def test_at_zero_intensity_all_classes_are_the_same_neutral_face() -> None:
    rest = render_face(PLAIN, neutral_vector(), Nuisance())
    for label in RECIPES:
        vector = 0.0 * sample_action_units(label, np.random.default_rng(0))
        np.testing.assert_array_equal(render_face(PLAIN, vector, Nuisance()), rest)


@pytest.mark.parametrize("au", AUS)
def test_every_au_shows_and_only_where_it_acts(au: int) -> None:
    rest = _grey(render_face(PLAIN, neutral_vector(), Nuisance()))
    moved = _grey(render_face(PLAIN, au_vector({au: 1.0}), Nuisance()))
    changed = np.abs(moved - rest) >= 8
    allowed = np.any([part_region(part, Pose(), 64) for part in PARTS[au]], axis=0)
    assert changed.sum() >= 6
    assert not (changed & ~allowed).any()


def test_one_sided_movement_leaves_the_other_corner_at_rest() -> None:
    vector = au_vector({12: 1.0})
    vector[1] = 0
    rest, moved = landmarks(PLAIN, neutral_vector()), landmarks(PLAIN, vector)
    np.testing.assert_array_equal(moved[54], rest[54])
    np.testing.assert_allclose(moved[48] - rest[48], (-0.12, -0.1))


def test_neutral_landmarks_are_symmetric() -> None:
    points = landmarks(PLAIN, neutral_vector())
    assert points.shape == (68, 2)
    mirror = points * (-1, 1)
    np.testing.assert_allclose(mirror[geometry.JAW][::-1], points[geometry.JAW])
    np.testing.assert_allclose(mirror[geometry.BROW_L][::-1], points[geometry.BROW_R])
    lips = points[geometry.LIPS_OUTER]
    np.testing.assert_allclose(np.sort(lips * (-1, 1), axis=0), np.sort(lips, axis=0))


@pytest.mark.parametrize(
    ("au", "point", "direction"),
    [(1, 22, -1), (2, 25, -1), (4, 22, 1), (5, 43, -1), (7, 47, -1), (12, 54, -1), (15, 54, 1), (26, 8, 1)],
)
def test_direction_of_movement(au: int, point: int, direction: int) -> None:
    shift = landmarks(PLAIN, au_vector({au: 1.0}))[point, 1] - landmarks(PLAIN, neutral_vector())[point, 1]
    assert np.sign(shift) == direction
    assert abs(shift) > 0.02


def test_closed_eyes_have_no_aperture() -> None:
    points = landmarks(PLAIN, au_vector({43: 1.0}))
    assert np.abs(points[44, 1] - points[46, 1]) < 0.02


def test_project_places_the_eyes() -> None:
    eyes = np.array([[-0.5, 0.0], [0.5, 0.0]])
    np.testing.assert_allclose(project(eyes, Pose(iod=0.4, x=0.5, y=0.25), 100), [[30, 25], [70, 25]])


def _landmark_sets(letter: str, per_class: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Landmarks of other people each, every AU at one letter, found to within 0.01 IOD: shapes (N, 136) and (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(EXPRESSIVE, per_class)
    vectors = [sample_at_letter(str(label), rng, letter) for label in labels]
    points = np.array([landmarks(draw_identity(rng), vector).ravel() for vector in vectors])
    return points + rng.normal(0, 0.01, points.shape), labels


def _centroid_accuracy(letter: str) -> float:
    """Of a nearest-centroid classifier on landmarks, whitened: people differ more than expressions move them."""
    (train, train_labels), (test, test_labels) = _landmark_sets(letter, 60, 0), _landmark_sets(letter, 30, 1)
    centroids = np.stack([train[train_labels == label].mean(axis=0) for label in EXPRESSIVE])
    values, vectors = np.linalg.eigh(np.cov((train - np.repeat(centroids, 60, axis=0)).T))
    white = vectors / np.sqrt(values)
    distance = np.linalg.norm((test @ white)[:, None] - (centroids @ white)[None], axis=2)
    return float(np.mean(np.array(EXPRESSIVE)[distance.argmin(axis=1)] == test_labels))


def test_landmarks_separate_classes_when_marked_but_not_at_a_trace() -> None:
    assert _centroid_accuracy("C") > 0.65
    assert _centroid_accuracy("A") < 0.45
