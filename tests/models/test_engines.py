from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from ray_fer.errors import UserError
from ray_fer.models.artifact import Artifact, load_model, save_artifact
from ray_fer.models.backbone import build_backbone
from ray_fer.models.depth_net import pooled_depths
from ray_fer.models.engines import Engine, describe_embedding, make_engine
from ray_fer.models.openvino_engine import OpenVINOEngine
from ray_fer.models.softmax import softmax
from ray_fer.models.torch_engine import Normalised, TorchEngine

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, BATCH = 32, 4
BACKBONES = ["test_resnet", "test_vit", "test_efficientnet"]
# Probabilities; both compute in float32 and differ by the order of their sums.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    made = {}
    for name in BACKBONES:
        torch.manual_seed(3)
        model = build_backbone(name, 4, SIZE)
        with torch.no_grad():
            model.get_classifier().weight.mul_(20)
        made[name] = save_artifact(
            str(tmp_path_factory.mktemp("models") / name),
            model,
            classes=("a", "b", "c", "d"),
            image_size=SIZE,
            mean=MEAN,
            std=STD,
            metrics={},
            provenance={},
        )
    return made


@pytest.fixture(scope="module")
def engines(artifacts: dict[str, Artifact]) -> dict[str, Engine]:
    return {
        name: make_engine(artifact, "auto", batch_size=BATCH, device="cpu", precision="float32")
        for name, artifact in artifacts.items()
    }


@pytest.fixture(scope="module")
def openvino(engines: dict[str, Engine]) -> Engine:
    return engines["test_resnet"]


def pictures(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2))


def test_pixels_are_scaled_and_normalised() -> None:
    seen = Normalised(torch.nn.Flatten(), MEAN, STD)(torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8))
    by_hand = [(0 - MEAN[0]) / STD[0], (128 / 255 - MEAN[1]) / STD[1], (1 - MEAN[2]) / STD[2]]
    torch.testing.assert_close(seen, torch.tensor([by_hand]))


def test_torch_is_what_timm_computes(artifacts: dict[str, Artifact]) -> None:
    pixels = pictures(3)
    for name in BACKBONES:
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
            STD
        ).view(3, 1, 1)
        with torch.no_grad():
            wanted = load_model(artifacts[name])(x).numpy()
        logits = TorchEngine(artifacts[name])(pixels)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(softmax(logits), softmax(wanted), atol=TOLERANCE)


@pytest.mark.parametrize("name", BACKBONES)
def test_openvino_is_what_torch_computes(name: str, artifacts: dict[str, Artifact], engines: dict[str, Engine]) -> None:
    pixels = pictures(BATCH, seed=1)
    ours = softmax(engines[name](pixels))
    theirs = softmax(TorchEngine(artifacts[name])(pixels))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()
    assert np.ptp(theirs, axis=0).max() > 100 * TOLERANCE, "predictions that do not differ would prove nothing"


@pytest.mark.parametrize("name", BACKBONES)
def test_features_come_with_logits_that_are_the_same_to_the_bit(name: str, artifacts: dict[str, Artifact]) -> None:
    """The features of a flipped crop are those of the crop itself; a batch may be smaller or larger than the net's."""
    artifact, pixels = artifacts[name], pictures(BATCH + 1, seed=1)
    facts = describe_embedding(artifact)
    net = Normalised(torch.nn.Identity(), MEAN, STD)
    with torch.no_grad():
        wanted = pooled_depths(load_model(artifact), net(torch.from_numpy(pixels)), facts["depths"]).numpy()
    assert facts == {"depths": facts["depths"], "dimension": wanted.shape[1], "dtype": "float16"}
    for engine, flip in itertools.product(("torch", "openvino"), (False, True)):
        how = {"batch_size": BATCH, "device": "cpu", "precision": "float32", "flip": flip}
        logits, features = make_engine(artifact, engine, embed=True, **how).embed(pixels)
        np.testing.assert_array_equal(logits, make_engine(artifact, engine, **how)(pixels))
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, wanted, atol=1e-4)


def test_a_net_of_depths_gives_what_its_own_classifier_takes(tmp_path: Path) -> None:
    net = timm.create_model("depth_net", backbone="resnet10t", depths=[2, 4], num_classes=2).eval()
    torch.nn.init.normal_(net.fc.weight)
    normal = {"mean": MEAN, "std": STD}
    artifact = save_artifact(
        str(tmp_path), net, classes=("a", "b"), image_size=SIZE, metrics={}, provenance={}, **normal
    )
    assert describe_embedding(artifact) == {"depths": [2, 4], "dimension": 640, "dtype": "float16"}
    how = {"batch_size": BATCH, "device": "cpu", "precision": "float32"}
    logits, features = make_engine(artifact, "auto", embed=True, **how).embed(pictures(BATCH))
    with torch.no_grad():
        np.testing.assert_allclose(net.forward_head(torch.from_numpy(features)).numpy(), logits, atol=1e-3)


def test_a_small_batch_is_padded_without_a_trace(openvino: Engine) -> None:
    pixels = pictures(BATCH)
    whole = openvino(pixels)
    for rows in range(1, BATCH):
        part = openvino(pixels[:rows])
        assert part.shape == (rows, 4)
        np.testing.assert_allclose(part, whole[:rows], atol=1e-5)


def test_results_are_the_caller_s_to_keep(openvino: Engine) -> None:
    first = openvino(pictures(BATCH, seed=1))
    kept = first.copy()
    openvino(pictures(BATCH, seed=2))
    assert (first == kept).all()


def test_pictures_need_not_lie_in_a_row(openvino: Engine) -> None:
    pixels = pictures(2 * BATCH)
    np.testing.assert_allclose(openvino(pixels[::2]), openvino(np.ascontiguousarray(pixels[::2])), atol=1e-6)


def test_bfloat16_is_close_and_another_model(artifacts: dict[str, Artifact]) -> None:
    artifact, pixels = artifacts["test_resnet"], pictures(BATCH)
    exact, rough = (softmax(TorchEngine(artifact, precision=p)(pixels)) for p in ("float32", "bfloat16"))
    assert rough.dtype == np.float32
    assert (exact != rough).any()
    np.testing.assert_allclose(rough, exact, atol=0.1)


def test_the_engine_follows_the_device_and_the_format(artifacts: dict[str, Artifact], openvino: Engine) -> None:
    assert isinstance(openvino, OpenVINOEngine), "auto in float32 on a CPU"
    for name, precision in (("auto", "bfloat16"), ("torch", "float32")):
        engine = make_engine(artifacts["test_resnet"], name, batch_size=1, device="cpu", precision=precision)
        assert isinstance(engine, TorchEngine)
        assert engine.autocast == (precision == "bfloat16")


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bfloat16"), ("cuda", "float32")])
def test_openvino_does_not_pass_for_what_it_is_not(device: str, precision: str, artifacts: dict[str, Artifact]) -> None:
    message = f"engine=openvino: computes in float32 on the CPU, not in {precision} on {device}"
    with pytest.raises(UserError, match=message):
        make_engine(artifacts["test_resnet"], "openvino", batch_size=1, device=device, precision=precision)


def test_a_kept_graph_needs_no_torch_and_gives_the_same(artifacts: dict[str, Artifact]) -> None:
    artifact, batch = artifacts["test_vit"], pictures(BATCH)
    first = make_engine(artifact, "auto", batch_size=BATCH, device="cpu", precision="float32")(batch)
    script = (
        "import sys, numpy\n"
        "from ray_fer.models.artifact import open_artifact\n"
        "from ray_fer.models.engines import make_engine\n"
        "facts = {'device': 'cpu', 'precision': 'float32'}\n"
        f"engine = make_engine(open_artifact(sys.argv[1]), 'auto', batch_size={BATCH}, **facts)\n"
        "pixels = numpy.frombuffer(sys.stdin.buffer.read(), numpy.uint8)\n"
        f"sys.stdout.buffer.write(engine(pixels.reshape(-1, {SIZE}, {SIZE}, 3)).tobytes())\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, artifact.uri]
    out = subprocess.run(command, input=batch.tobytes(), capture_output=True, check=True).stdout
    assert (np.frombuffer(out, np.float32).reshape(first.shape) == first).all()
