"""Features of ONNX nets: layers that the sidecar names, pooled and side by side, beside the same outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from ray_fer.errors import UserError
from ray_fer.models.engines import describe_embedding, make_engine
from ray_fer.models.teacher import open_teacher
from tests.onnx_nets import FERPLUS_SIDECAR, write_net, write_sidecar

HOW = {"batch_size": 3, "device": "cpu", "precision": "float32"}
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
SIDECAR = FERPLUS_SIDECAR | {"colour": "rgb", "image_size": 8}


def net(folder: Path, **sidecar: object) -> str:
    """A net of integers over eight by eight pixels, whose layer ``floats`` is a map and ``flat`` a vector."""
    write_net(folder / "net.onnx", ["n", 3, 8, 8], 8, kind=TensorProto.UINT8, gain=0.01)
    write_sidecar(folder / "net.onnx", SIDECAR | sidecar)
    return str(folder / "net.onnx")


def test_named_layers_are_pooled_side_by_side_and_make_no_other_model(tmp_path: Path) -> None:
    plain = open_teacher(net(tmp_path))
    logits = make_engine(plain, "auto", **HOW)(PIXELS)
    inner = open_teacher(net(tmp_path, embedding=["floats", "flat"]))
    assert inner.id == plain.id
    assert describe_embedding(inner) == {"depths": ["floats", "flat"], "dimension": 3 + 192, "dtype": "float16"}
    for flip in (False, True):
        ours, features = make_engine(inner, "auto", embed=True, flip=flip, **HOW).embed(PIXELS)
        if not flip:
            np.testing.assert_array_equal(ours, logits)
        planes = PIXELS.transpose(0, 3, 1, 2).astype(np.float32)
        wanted = np.concatenate([planes.mean(axis=(2, 3)), planes.reshape(5, -1)], axis=1)
        np.testing.assert_allclose(features, wanted, rtol=1e-5)


def test_an_output_may_be_the_embedding(tmp_path: Path) -> None:
    teacher = open_teacher(net(tmp_path, embedding="output", map={"contempt": "contempt"}))
    logits, features = make_engine(teacher, "auto", embed=True, **HOW).embed(PIXELS)
    assert sorted(features[0].tolist()) == sorted(logits[0].tolist())


@pytest.mark.parametrize(
    ("embedding", "said"), [({}, "required for embed=true"), ({"embedding": "no"}, "'no' is no layer")]
)
def test_without_a_layer_that_is_there_the_message_names_those_that_are(
    embedding: dict[str, str], said: str, tmp_path: Path
) -> None:
    teacher = open_teacher(net(tmp_path, **embedding))
    message = (
        rf"^{tmp_path}/net\.yaml: embedding: {said}.*; its outputs are output, its last layers floats, flat, output$"
    )
    with pytest.raises(UserError, match=message):
        describe_embedding(teacher)
