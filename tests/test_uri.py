from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fer.errors import UserError
from ray_fer.uri import is_absolute, is_remote, join, normalise


@pytest.mark.parametrize(
    ("uri", "remote"),
    [("/a", False), ("a/b", False), ("file:///a", False), ("s3://b/k", True), ("gs://b", True), ("a:b", False)],
)
def test_what_is_remote(uri: str, remote: bool) -> None:
    assert is_remote(uri) == remote


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("/a/b/", "/a/b"),
        ("/a/../b//c", "/b/c"),
        ("file:///a/b", "/a/b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/key//", "s3://bucket/key"),
        ("s3://bucket/a/../b", "s3://bucket/a/../b"),
        ("//a//b", "/a/b"),
        ("/a/b://c", "/a/b:/c"),
        ("/a%20b/c%", "/a%20b/c%"),
        ("file:/a/b", "/a/b"),
        ("file:////a/b", "/a/b"),
        ("FILE://localhost/a//./b", "/a/b"),
        ("file:///a%20b/%C3%A4/50%25.jpg", "/a b/ä/50%.jpg"),
        ("file:///a%2520b", "/a%20b"),
        ("file:///a/%2e%2e/b", "/b"),
        ("file:///a%FFb", "/a\\xffb"),
        ("file:///a/b#c?d", "/a/b#c?d"),
    ],
)
def test_one_spelling(uri: str, wanted: str) -> None:
    assert normalise(uri) == wanted
    assert normalise(wanted) == wanted
    assert is_absolute(uri)


@pytest.mark.parametrize("name", ["file:a", "a%20b", "~a.jpg", "a:b", "s3:/b", "a!/b", "x/file:///a"])
def test_names_that_are_no_uris(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_absolute(name)
    assert not is_remote(name)
    assert normalise(name) == f"{tmp_path}/{name.replace('///', '/')}"


def test_a_nul_byte_is_refused() -> None:
    for uri in ("/a\0b", "file:///a%00b", "s3://b/a\0b"):
        with pytest.raises(UserError, match="a NUL byte in a path"):
            normalise(uri)


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert normalise("a") == str(tmp_path / "a")
    assert normalise("~/a") == "/home/someone/a"


@pytest.mark.parametrize(
    "uri",
    [
        *("gs://bucket/key", "http://host/x", "s3://", "s3:///", "s3:///key", "S3://bucket/key", "s3a://bucket/key"),
        *("file://host/x", "file://x"),
    ],
)
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match=f"^{uri}: not a local path and not an s3://bucket/key URI$"):
        normalise(uri)


def test_join() -> None:
    assert join("s3://b/", "a", "/c/") == "s3://b/a/c"
    assert join("/", "a") == "/a"
    assert join("x") == "x"
    assert join("file:///a%20b/", "c%25d") == "/a b/c%25d"


segments = st.lists(st.text("abc.-_ é", min_size=1, max_size=5), min_size=1, max_size=4)


@settings(deadline=None)
@given(segments, segments)
def test_joining_is_associative(ours: list[str], theirs: list[str]) -> None:
    assert join("s3://b", *ours, *theirs) == join(join("s3://b", *ours), *theirs)
