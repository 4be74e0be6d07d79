from pathlib import Path

import numpy as np
import pytest
import torch

from ray_fer.models.artifact import Artifact, load_model
from ray_fer.video.frame_encoder import FrameEncoder
from tests.images import tiny_model

SIZE = 32


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("model")), image_size=SIZE)


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_features_are_what_the_classifier_sees(artifact: Artifact) -> None:
    encoder = FrameEncoder(artifact)
    features, probs = encoder(pixels(5))
    model = load_model(artifact)
    with torch.inference_mode():
        inputs = torch.from_numpy(pixels(5)).permute(0, 3, 1, 2).float() / 255
        logits = model((inputs - 0.5) / 0.5)
        from_features = model.get_classifier()(torch.from_numpy(features))
    assert features.shape == (5, encoder.dim) == (5, 512)
    np.testing.assert_allclose(probs, logits.softmax(dim=1), atol=1e-5)
    np.testing.assert_allclose(from_features.softmax(dim=1), probs, atol=1e-5)
    assert (features.dtype, probs.dtype) == (np.float32, np.float32)


def test_probabilities_are_calibrated(artifact: Artifact, tmp_path: Path) -> None:
    _, probs = FrameEncoder(artifact)(pixels(3))
    _, calibrated = FrameEncoder(tiny_model(str(tmp_path), image_size=SIZE, temperature=2.0))(pixels(3))
    np.testing.assert_allclose(calibrated, np.sqrt(probs) / np.sqrt(probs).sum(axis=1, keepdims=True), rtol=1e-4)


def test_a_clip_does_not_depend_on_its_batches_or_bad_frames(artifact: Artifact) -> None:
    encoder = FrameEncoder(artifact)
    frames = list(enumerate(pixels(7), start=3))
    mixed = [*frames[:4], (90, "missing: vanished"), *frames[4:]]
    whole, cut = encoder.encode_clip(frames, 64), encoder.encode_clip(mixed, 3)
    assert whole.frames.tolist() == cut.frames.tolist() == list(range(3, 10))
    assert (whole.problems, cut.problems) == ({}, {90: "missing: vanished"})
    np.testing.assert_allclose(whole.features, cut.features, atol=1e-4)
    np.testing.assert_allclose(whole.probs, cut.probs, atol=1e-5)


def test_a_clip_without_a_readable_frame(artifact: Artifact) -> None:
    found = FrameEncoder(artifact).encode_clip([(0, "not a picture")], 4)
    assert (found.features.shape, found.probs.shape, found.frames.shape) == ((0, 512), (0, 3), (0,))
    assert found.problems == {0: "not a picture"}


def test_a_frame_without_finite_numbers_is_a_problem(artifact: Artifact) -> None:
    encoder = FrameEncoder(artifact)
    found = encoder.encode_clip(enumerate(pixels(4)), 4)
    net = encoder._model

    class PerBrightness(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            bright = batch.amax(dim=(1, 2, 3), keepdim=True).float()
            out: torch.Tensor = net(batch) * (bright / bright).reshape(-1, 1)
            out[batch.float().mean(dim=(1, 2, 3)) == 255, -1] = torch.inf
            return out

    encoder._model = PerBrightness()  # type: ignore[assignment]
    black, white = np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)
    frames = [*enumerate(pixels(4)), (4, black), (5, white)]
    for batch_size in (1, 3, 6):
        again = encoder.encode_clip(frames, batch_size)
        assert again.problems == {
            4: "the model puts out NaN for every class",
            5: "the model's features are not finite",
        }
        assert again.frames.tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(again.features, found.features, atol=1e-4)
