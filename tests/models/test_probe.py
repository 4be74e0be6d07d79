from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ray_fer.errors import UserError
from ray_fer.models.probe import check_outputs, probe_pictures, share_of
from ray_fer.models.sidecar import OnnxSidecar
from ray_fer.models.softmax import softmax

NAMES = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear"]
Net = Callable[[np.ndarray], np.ndarray]


def logits(pixels: np.ndarray) -> np.ndarray:
    weights = np.random.default_rng(0).normal(size=(pixels[0].size, len(NAMES))) / 60
    return np.asarray(pixels.reshape(len(pixels), -1) / 255 @ weights, np.float32) * 10


def quantised(pixels: np.ndarray) -> np.ndarray:
    return np.round(softmax(logits(pixels)) * 255) / np.float32(255)


def black_is_nan(pixels: np.ndarray) -> np.ndarray:
    out = logits(pixels)
    out[pixels.max(axis=(1, 2, 3)) == 0] = np.nan
    return out


RNG = np.random.default_rng(0)


def noise(pixels: np.ndarray) -> np.ndarray:
    return logits(pixels) + RNG.normal(size=(len(pixels), len(NAMES)))


def check(net: Net, output: str) -> None:
    facts: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "scale": 1, "colour": "rgb", "layout": "nchw"}
    sidecar = OnnxSidecar(classes=NAMES, image_size=20, output=output, **facts)  # type: ignore[arg-type]
    check_outputs(net, sidecar, "net.onnx", "net.yaml")


def test_the_pictures_vary() -> None:
    for side in (1, 7, 48):
        pictures = probe_pictures(side)
        assert pictures.shape == (8, side, side, 3)
        assert pictures.dtype == np.uint8
        assert len(np.unique(pictures.reshape(8, -1), axis=0)) >= 5
    assert {0, 255} <= {picture.mean() for picture in pictures}
    np.testing.assert_array_equal(pictures, probe_pictures(48))


@pytest.mark.parametrize(
    ("net", "output"),
    [
        (logits, "logits"),
        (black_is_nan, "logits"),
        (lambda pixels: np.abs(logits(pixels)), "logits"),
        (lambda pixels: np.log(softmax(logits(pixels))), "logits"),
        (lambda pixels: softmax(logits(pixels)), "probabilities"),
        (quantised, "probabilities"),
        (lambda pixels: softmax(logits(pixels)).astype(np.float16).astype(np.float32), "probabilities"),
        (lambda pixels: np.where(np.arange(7) == 3, -np.inf, logits(pixels)), "logits"),
    ],
)
def test_what_a_net_puts_out_is_what_is_said(net: Net, output: str) -> None:
    check(net, output)


@pytest.mark.parametrize(
    ("net", "output", "message"),
    [
        (quantised, "logits", "net.yaml: output: logits: by what net.onnx puts out, they are probabilities$"),
        (lambda pixels: softmax(logits(pixels)), "logits", "they are probabilities$"),
        (lambda pixels: softmax(logits(pixels)) * 100, "logits", "they are neither .* but shares of 100$"),
        (lambda pixels: softmax(logits(pixels)) * 100, "probabilities", "with sums from 100 to 100$"),
        (logits, "probabilities", "output: probabilities: .* they are not probabilities but numbers from -"),
        (lambda pixels: 1 / (1 + np.exp(-logits(pixels))), "probabilities", "they are not probabilities but numbers"),
        (
            lambda pixels: logits(pixels) * np.nan,
            "logits",
            "net.onnx: the model puts out NaN for every class, whatever",
        ),
        (
            lambda pixels: logits(pixels)[:, :5],
            "logits",
            r"net.yaml: classes: 7 names: net.onnx puts out \(5,\) numbers",
        ),
        (noise, "logits", "net.onnx: puts out something else for the same pictures: .* training mode"),
    ],
)
def test_what_a_net_puts_out_is_something_else(net: Net, output: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(net, output)


def test_a_net_that_sees_nothing_is_no_share() -> None:
    assert share_of(np.tile(np.array([2.0, 3.0], np.float32), (8, 1))) is None
    assert share_of(np.tile(np.array([0.25, 0.75], np.float32), (8, 1))) == 1
    assert share_of(np.zeros((0, 2), np.float32)) is None
