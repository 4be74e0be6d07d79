from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fer.data.formats import parse
from ray_fer.data.sources.lance import LanceRow
from ray_fer.data.sources.parquet import Row
from ray_fer.data.uris import FACE_FRAGMENT, Face, resolve, split_face
from ray_fer.errors import UserError

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


@pytest.mark.parametrize(
    ("folder", "given", "expected"),
    [
        ("/a/b", "c.png", "/a/b/c.png"),
        ("/a/b", "./c.png", "/a/b/c.png"),
        ("/a/b", "../c.png", "/a/c.png"),
        ("/a/b", "../../../c.png", "/c.png"),
        ("/a/b", "d/./e//../c.png", "/a/b/d/c.png"),
        ("/a/b", "d/../c.png", "/a/b/c.png"),
        ("/a/b", "dir.d/c.png", "/a/b/dir.d/c.png"),
        ("/a/b", ".c/d.png", "/a/b/.c/d.png"),
        ("/a/b", "c.png/", "/a/b/c.png"),
        ("", "c.png", "/c.png"),
        ("/a/b", "/c.png", "/c.png"),
        ("/a/b", "//c//d/../e.png", "/c/e.png"),
        ("/a/b", "file:///c%20d/e.png", "/c d/e.png"),
        ("/a/b", "file:/c/e.png", "/c/e.png"),
        ("/a/b", "~c.png", "/a/b/~c.png"),
        ("/a/b", "a:b.png", "/a/b/a:b.png"),
        ("/a/b", "100%25#1 !ä a\u0308.png", "/a/b/100%25#1 !ä a\u0308.png"),
        ("/a/b", "s3://x/b/../c//d/", "s3://x/b/../c//d/"),
        ("s3://x/b", "../c//d.png", "s3://x/c/d.png"),
        ("s3://x/b", "./c.png", "s3://x/b/c.png"),
        ("s3://x", "c.png", "s3://x/c.png"),
        ("s3://x/b", "d/./e/../c.png", "s3://x/b/d/c.png"),
        ("s3://x/b", "s3://y/./c.png", "s3://y/./c.png"),
        ("s3://x/b", "/c.png", "/c.png"),
        ("s3://x/b//../e", "./c.png", "s3://x/b//../e/c.png"),  # the folder's own key is literal
        ("s3://x/b", "a/%2e%2e/c.png", "s3://x/b/a/%2e%2e/c.png"),
        # The file around a picture is a file, the picture's name is the shard's.
        ("/a/b", "f.tar!/./a//0.jpg", "/a/b/f.tar!/./a//0.jpg"),
        ("/a/b", "../f.TAR!/../0.jpg", "/a/f.TAR!/../0.jpg"),
        ("/a/b", "/a/./f.tar!/http://x/0.jpg", "/a/f.tar!/http://x/0.jpg"),
        ("/a/b", "file:///a%20b/f.tar!/a%20b.jpg", "/a b/f.tar!/a%20b.jpg"),
        ("s3://x/b", "../f.tar!/./0.jpg", "s3://x/f.tar!/./0.jpg"),
        ("s3://x/b", "s3://x/./f.tar!/./0.jpg", "s3://x/./f.tar!/./0.jpg"),
        ("/a/b", "./t.parquet#column=im%61ge&row=03", "/a/b/t.parquet#column=image&row=3"),
        ("s3://x/b", "../t.parquet#column=a%20b&row=3", "s3://x/t.parquet#column=a%20b&row=3"),
        ("/a/b", "./f.lance#column=image&rowid=3", "/a/b/f.lance#column=image&rowid=3"),
        ("/a/b", "./c.png#face=1.0,-0.5,3.0,4.0", "/a/b/c.png#face=1.0,-0.5,3.0,4.0"),
        ("/a/b", "./f.tar!/./c.png#face=01.0,2.0,3.0,4.0", "/a/b/f.tar!/./c.png#face=1.0,2.0,3.0,4.0"),
        (
            "/a/b",
            "./t.parquet#column=image&row=3#face=1.0,2.0,3.0,4.0",
            "/a/b/t.parquet#column=image&row=3#face=1.0,2.0,3.0,4.0",
        ),
    ],
)
def test_resolve(folder: str, given: str, expected: str) -> None:
    assert resolve(folder, given) == expected
    assert resolve("/elsewhere", expected) == expected


@pytest.mark.parametrize(
    ("folder", "given", "message"),
    [
        ("s3://x/b", "../../c.png", "../../c.png leads out of the bucket x"),
        ("s3://x/b", "..", "'..' names no object"),
        ("/a", "s3://x", "'s3://x' names no object"),
        ("/a", "s3:///c.png", "'s3:///c.png' names no object"),
        ("/a", "s3a://x/c.png", "s3a://x/c.png: not a local path and not an s3://bucket/key URI"),
        ("/a", "gs://x/f.tar!/c.png", "gs://x/f.tar: not a local path"),
        ("/a", "file://host/c.png", "file://host/c.png: not a local path"),
        ("/a", "b\0c.png", "'/a/b\\x00c.png': a NUL byte in a path"),
        ("s3://x/b", "b\0c.png", "'b\\x00c.png' names no object"),
    ],
)
def test_what_names_no_object_is_refused(folder: str, given: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        resolve(folder, given)


def test_home_is_that_of_who_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for folder in ("/a", "s3://x/b"):
        assert resolve(folder, "~/c.png") == "/home/someone/c.png"
        assert resolve(folder, "~/f.tar!/~/c.png") == "/home/someone/f.tar!/~/c.png"


names = st.text("abc.-_ é%!#~:\\", min_size=1, max_size=6).filter(lambda name: name not in (".", "..", "~"))


@given(st.lists(names, min_size=1, max_size=4), st.lists(st.sampled_from(["./", "x/../", "/"]), max_size=3))
def test_detours_change_nothing(parts: list[str], detours: list[str]) -> None:
    """Whatever a file is called, what leads to it by a detour is one picture."""
    path = "/".join(parts)
    if parse(path) is None and not path.startswith("file:"):
        wanted = f"/d/{path}"
        assert (
            resolve("/d", path)
            == resolve("/", wanted)
            == resolve("/d", f"./{''.join(detours).lstrip('/')}{path}")
            == wanted
        )
        assert resolve("s3://b/d", f"./{''.join(detours).lstrip('/')}{path}") == f"s3://b{wanted}"


def test_a_lance_row_stays_one() -> None:
    assert isinstance(parse(resolve("/a", "f.lance#column=image&rowid=3")), LanceRow)
