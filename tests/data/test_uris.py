from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fer.data.sources.uris import FACE_FRAGMENT, Face, Row, split_face

PICTURES = ["photo.jpg", "s3://b/a b#1.jpg", "/f/shard.tar!/in/x.png", Row("/f/t.parquet", "im age#", 7).uri]
numbers = st.floats(-1e5, 1e5)


@given(numbers, numbers, st.floats(0.1, 1e5), st.floats(-180, 180), st.sampled_from(PICTURES))
def test_a_face_comes_back_from_its_uri(cx: float, cy: float, side: float, angle: float, picture: str) -> None:
    face = Face(cx, cy, side, angle).rounded()
    uri = face.uri_in(picture)
    assert split_face(uri) == (picture, face)
    assert re.sub(FACE_FRAGMENT, "", uri) == picture
    assert max(abs(face.cx - cx), abs(face.cy - cy), abs(face.side - side), abs(face.angle - angle)) < 0.0501


def test_there_is_one_spelling_of_zero() -> None:
    assert Face(-0.04, 0.0, 1.0, -0.01).rounded().uri_in("a") == "a#face=0.0,0.0,1.0,0.0"


@pytest.mark.parametrize(
    "uri",
    [
        *PICTURES,
        "a#face=1,2,3,4",
        "a#face=1.0,2.0,3.0",
        "a#face=1.0,2.0,-3.0,0.0",
        "a#face=1.0,2.0,0.0,0.0",
        "a#face=1.0,2.0,3.0,0.0 ",
        "a#face=1.0,2.0,3.0,0.0\n",
        "a#face=1.0,2.0,3.0,0.0.jpg",
        "a#face=nan,2.0,3.0,0.0",
    ],
)
def test_anything_else_is_a_picture(uri: str) -> None:
    assert split_face(uri) == (uri, None)
