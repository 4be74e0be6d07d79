import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact
from ray_fer.models.softmax import softmax
from ray_fer.video.artifact import TemporalArtifact, is_temporal, load_encoder, open_temporal, save_temporal
from ray_fer.video.encoder import TemporalEncoder, clip_logits, sinusoids
from tests.images import tiny_model

D, K, T = 5, 3, 8


def make_encoder(seed: int = 0, trained: bool = True, **sizes: Any) -> TemporalEncoder:
    """An encoder with random weights, its head too unless it is to be untrained."""
    torch.manual_seed(seed)
    encoder = TemporalEncoder(
        **{"dim": D, "n_classes": K, "window": T, "width": 16, "layers": 2, "heads": 2, "dropout": 0.3, **sizes}
    )
    if trained:
        torch.nn.init.normal_(encoder.head.weight)
    return encoder.eval()


def clip(frames: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(frames), D)).astype(np.float32)
    return np.array(frames), features, rng.dirichlet([1] * K, len(frames)).astype(np.float32)


def tensors(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    _, features, probs = clip(list(range(count)), seed)
    return torch.from_numpy(features)[None], torch.from_numpy(probs)[None]


@pytest.mark.parametrize(
    "frames", [[0], [4, 5, 6], list(range(T)), list(range(21)), [0, 1, 5, 6, 30, 31], list(range(0, 100, 5))]
)
@pytest.mark.parametrize("stride", [1, 3, T])
def test_untrained_it_is_the_frame_classifier(frames: list[int], stride: int) -> None:
    numbers, features, probs = clip(frames)
    logits = clip_logits(make_encoder(trained=False), numbers, features, probs, stride)
    assert logits.shape == (len(frames), K)
    np.testing.assert_allclose(softmax(logits), probs, atol=1e-5)


def test_one_window_over_a_short_clip_is_the_encoder_itself() -> None:
    encoder = make_encoder()
    numbers, features, probs = clip(list(range(T)))
    direct = encoder(torch.from_numpy(features)[None], torch.from_numpy(probs)[None], torch.ones(1, T, dtype=bool))
    logits = clip_logits(encoder, numbers, features, probs, 2)
    np.testing.assert_allclose(logits, direct[0].detach(), atol=1e-6)


def test_overlapping_windows_are_averaged() -> None:
    encoder = make_encoder()
    numbers, features, probs = clip(list(range(T + 2)))
    parts = [clip_logits(encoder, numbers[:T], features[s : s + T], probs[s : s + T], T) for s in (0, 2)]
    logits = clip_logits(encoder, numbers, features, probs, 2)
    np.testing.assert_allclose(logits[:2], parts[0][:2], atol=1e-5)
    np.testing.assert_allclose(logits[2:T], (parts[0][2:] + parts[1][:-2]) / 2, atol=1e-5)
    np.testing.assert_allclose(logits[T:], parts[1][-2:], atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e6, math.nan])
def test_absent_frames_are_not_looked_at(value: float) -> None:
    encoder = make_encoder()
    features, probs = tensors(T)
    mask = torch.tensor([[True, True, False, True, False, True, True, False]])
    logits = encoder(features, probs, mask)
    features[~mask], probs[~mask] = value, 0.5
    assert torch.equal(encoder(features, probs, mask)[mask], logits[mask])
    assert torch.isfinite(logits).all()


def test_a_window_without_any_frame_is_finite() -> None:
    features, probs = tensors(T)
    assert torch.isfinite(make_encoder()(features, probs, torch.zeros(1, T, dtype=bool))).all()


def test_padding_changes_nothing() -> None:
    """A short clip in a padded window gives what the encoder gives without padding."""
    encoder = make_encoder()
    numbers, features, probs = clip([0, 1, 2])
    direct = encoder(torch.from_numpy(features)[None], torch.from_numpy(probs)[None], torch.ones(1, 3, dtype=bool))
    np.testing.assert_allclose(clip_logits(encoder, numbers, features, probs, 2), direct[0].detach(), atol=1e-5)


def test_without_positions_it_does_not_know_the_order() -> None:
    encoder = make_encoder()
    features, probs = tensors(T)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, T, dtype=bool)
    moved = encoder(features[:, order], probs[:, order], mask)
    assert not torch.allclose(moved, encoder(features, probs, mask)[:, order], atol=1e-3)
    encoder.positions.zero_()
    moved = encoder(features[:, order], probs[:, order], mask)
    assert torch.allclose(moved, encoder(features, probs, mask)[:, order], atol=1e-5)


def test_neighbours_matter_once_trained() -> None:
    encoder = make_encoder()
    features, probs = tensors(T)
    mask = torch.ones(1, T, dtype=bool)
    before = encoder(features, probs, mask)[0, 0]
    features[0, 5] += 1
    assert not torch.allclose(encoder(features, probs, mask)[0, 0], before, atol=1e-4)


def test_normalisation_by_hand() -> None:
    encoder = make_encoder()
    _, features, probs = clip(list(range(50)))
    features[:, 1] = 7.0  # never varies
    features[:, 2] = 10 * features[:, 2] + 100
    encoder.normalise_inputs(features, probs)
    assert encoder.mean[1].item() == 7.0
    assert encoder.scale[1].item() == 1.0
    assert encoder.mean[2].item() == pytest.approx(features[:, 2].mean(), rel=1e-5)
    assert encoder.scale[2].item() == pytest.approx(1 / features[:, 2].std(), rel=1e-4)
    assert encoder.mean[D].item() == pytest.approx(np.log(np.maximum(probs[:, 0], 1e-6)).mean(), rel=1e-4)


def test_sinusoids_by_hand() -> None:
    table = sinusoids(3, 4)
    assert table[2].tolist() == pytest.approx([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)])
    assert sinusoids(3, 5).shape == (3, 5)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("backbone")))


def save(folder: Path, encoder: TemporalEncoder, backbone: Artifact, smoothing: int = 5) -> TemporalArtifact:
    return save_temporal(
        *(str(folder), encoder, backbone),
        stride=2,
        frame_step=3,
        smoothing=smoothing,
        frame_smoothing=10,
        metrics={"val": 1},
        provenance={"who": "test"},
    )


def test_saved_and_opened(backbone: Artifact, tmp_path: Path) -> None:
    encoder = make_encoder()
    encoder.normalise_inputs(*clip(list(range(50)))[1:])
    saved = save(tmp_path / "a", encoder, backbone)
    assert is_temporal(saved.uri)
    assert not is_temporal(backbone.uri)
    assert (saved.stride, saved.frame_step, saved.smoothing, saved.frame_smoothing) == (2, 3, 5, 10)
    assert saved.classes == backbone.classes
    assert saved.backbone.id == backbone.id
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == {"val": 1}
    inputs = clip(list(range(20)), seed=4)
    assert np.array_equal(clip_logits(load_encoder(saved), *inputs, 2), clip_logits(encoder, *inputs, 2))


def test_the_id_is_that_of_the_content(backbone: Artifact, tmp_path: Path) -> None:
    first, again = (save(tmp_path / name, make_encoder(), backbone) for name in "ab")
    others = [save(tmp_path / "c", make_encoder(seed=1), backbone), save(tmp_path / "d", make_encoder(), backbone, 6)]
    assert first.id == again.id
    assert len({first.id, *(other.id for other in others)}) == 3


def test_another_backbone_or_none(backbone: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "a", make_encoder(), backbone)
    tiny_model(str(tmp_path / "a" / "backbone"), seed=1)
    with pytest.raises(UserError, match=r"its backbone is .*, but it was trained with"):
        open_temporal(str(tmp_path / "a"))
    with pytest.raises(UserError, match="no temporal model there"):
        open_temporal(backbone.uri)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"not JSON \(the file is empty\)"),
        ("[]", "input should be a valid dictionary"),
        ('{"classes": ["a"]}', "encoder: is missing"),
    ],
)
def test_a_damaged_one_is_one_line(text: str, said: str, backbone: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "a", make_encoder(), backbone)
    (tmp_path / "a" / "temporal.json").write_text(text)
    with pytest.raises(UserError, match=rf"^{tmp_path}/a/temporal\.json: {said}"):
        open_temporal(str(tmp_path / "a"))
