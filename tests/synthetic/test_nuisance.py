import numpy as np

from ray_fer.synthetic.geometry import Pose
from ray_fer.synthetic.nuisance import SURVEILLANCE, Nuisance, draw_nuisance, encode_jpeg, expose


def test_difficulty_zero_is_a_frontal_sharp_even_photo() -> None:
    for seed in range(20):
        nuisance = draw_nuisance(np.random.default_rng(seed), 0.0)
        assert nuisance.pose == Pose(iod=0.355, y=0.41)
        assert (nuisance.blur, nuisance.noise, nuisance.light, nuisance.occluder) == (0, 0, 0, None)


def test_same_generator_same_circumstances() -> None:
    assert draw_nuisance(np.random.default_rng(4), 0.8) == draw_nuisance(np.random.default_rng(4), 0.8)


def test_light_gradient_gain_and_grey() -> None:
    scene = np.full((9, 9, 3), 100, np.float32)
    lit = expose(scene.copy(), Nuisance(light=0.5, gain=0.8))
    np.testing.assert_array_equal(lit[4, :, 0], [40, 50, 60, 70, 80, 90, 100, 110, 120])
    scene[:] = (200, 100, 0)
    grey = expose(scene.copy(), Nuisance(grey=True))
    assert (grey == 119).all()  # 0.299 * 200 + 0.587 * 100 = 118.5


def test_noise_has_the_sigma_asked_for() -> None:
    noisy = expose(np.full((64, 64, 3), 128, np.float32), Nuisance(noise=10, seed=1))
    assert abs(noisy.std() - 10) < 0.3


def test_a_style_shifts_every_difficulty() -> None:
    drawn = [draw_nuisance(np.random.default_rng(seed), 0.0, SURVEILLANCE) for seed in range(200)]
    assert 0.5 < np.mean([n.grey for n in drawn]) < 0.7
    assert {n.blur for n in drawn} == {SURVEILLANCE.extra_blur}


def test_jpeg_quality_costs_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert len(encode_jpeg(image, 30)) < len(encode_jpeg(image, 90))
