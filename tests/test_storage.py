from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fer import storage
from ray_fer.errors import UserError

# --- names ---


@pytest.mark.parametrize(
    ("uri", "remote"),
    [("/a", False), ("a/b", False), ("file:///a", False), ("s3://b/k", True), ("gs://b", True), ("a:b", False)],
)
def test_what_is_remote(uri: str, remote: bool) -> None:
    assert storage.is_remote(uri) == remote


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
    assert storage.normalise(uri) == wanted
    assert storage.normalise(wanted) == wanted
    assert storage.is_absolute(uri)


@pytest.mark.parametrize("name", ["file:a", "a%20b", "~a.jpg", "a:b", "s3:/b", "a!/b", "x/file:///a"])
def test_names_that_are_no_uris(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not storage.is_absolute(name)
    assert not storage.is_remote(name)
    assert storage.normalise(name) == f"{tmp_path}/{name.replace('///', '/')}"


def test_a_nul_byte_is_refused() -> None:
    for uri in ("/a\0b", "file:///a%00b", "s3://b/a\0b"):
        with pytest.raises(UserError, match="a NUL byte in a path"):
            storage.normalise(uri)


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.normalise("a") == str(tmp_path / "a")
    assert storage.normalise("~/a") == "/home/someone/a"


@pytest.mark.parametrize(
    "uri",
    [
        *("gs://bucket/key", "http://host/x", "s3://", "s3:///", "s3:///key", "S3://bucket/key", "s3a://bucket/key"),
        *("file://host/x", "file://x"),
    ],
)
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match=f"^{uri}: not a local path and not an s3://bucket/key URI$"):
        storage.normalise(uri)


def test_join() -> None:
    assert storage.join("s3://b/", "a", "/c/") == "s3://b/a/c"
    assert storage.join("/", "a") == "/a"
    assert storage.join("x") == "x"
    assert storage.join("file:///a%20b/", "c%25d") == "/a b/c%25d"


segments = st.lists(st.text("abc.-_ é", min_size=1, max_size=5), min_size=1, max_size=4)


@settings(deadline=None)
@given(segments, segments)
def test_joining_is_associative(ours: list[str], theirs: list[str]) -> None:
    assert storage.join("s3://b", *ours, *theirs) == storage.join(storage.join("s3://b", *ours), *theirs)


# --- local files ---


def test_what_was_written_is_read(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/new/folder/x.bin"
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.exists(uri)
    assert not storage.is_dir(uri)
    assert storage.is_dir(f"{tmp_path}/new")
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_dir(f"{tmp_path}/new/folder") == ["x.bin"]


def test_json(tmp_path: Path) -> None:
    document = {"é": [1, None, 0.5]}
    storage.write_json(str(tmp_path / "x.json"), document)
    assert storage.read_json(str(tmp_path / "x.json")) == document
    assert (tmp_path / "x.json").read_text().endswith("}\n")


def test_nothing_there(tmp_path: Path) -> None:
    uri = str(tmp_path / "none")
    assert storage.list_dir(uri) == []
    storage.delete(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)


def test_names_are_sorted_and_not_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        storage.write_bytes(str(tmp_path / name), b"")
    assert storage.list_dir(str(tmp_path)) == ["a.txt", "b.txt", "sub"]


def test_delete(tmp_path: Path) -> None:
    for name in ("a", "sub/b", "sub/c"):
        storage.write_bytes(str(tmp_path / name), b"")
    storage.delete(str(tmp_path / "sub"))
    storage.delete(str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(str(target), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert target.read_bytes() == b"old"


def test_a_file_written_piece_by_piece_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    uri = str(tmp_path / "sub" / "x")
    with storage.open_output(uri) as file:
        file.write(b"first, ")
        assert not storage.exists(uri)
        file.write(b"second")
    assert storage.read_bytes(uri) == b"first, second"
    with pytest.raises(ZeroDivisionError), storage.open_output(uri) as file:
        file.write(bytes(1 // len(b"")))
    assert storage.read_bytes(uri) == b"first, second"
    assert storage.list_dir(str(tmp_path / "sub")) == ["x"]


def test_a_folder_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        storage.write_bytes(str(tmp_path / "x"), b"")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    seen = []
    replace = Path.replace

    def watched(self: Path, other: Path) -> Path:
        seen.append((target.read_bytes() if target.exists() else None, self.read_bytes()))
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", watched)
    storage.write_bytes(str(target), b"one")
    storage.write_bytes(str(target), b"two")
    assert seen == [(None, b"one"), (b"one", b"two")]


# --- folders ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.bin", "sub/config.json", "zzz"):
        storage.write_bytes(str(tmp_path / "folder" / name), name.encode())
    return tmp_path / "folder"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_marker_of_an_upload_comes_last(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    storage.write_bytes(str(target / "config.json"), b"of an older copy")
    order = []
    replace = Path.replace

    def watched(self: Path, other: Path) -> Path:
        order.append((other.relative_to(target).as_posix(), (target / "config.json").exists()))
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", watched)
    storage.upload_folder(folder, str(target), last="config.json")
    assert order == [(name, False) for name in ("model.bin", "sub/config.json", "zzz", "config.json")]
    assert contents(target) == contents(folder)


def test_a_local_folder_is_its_own_copy(folder: Path) -> None:
    assert storage.local_copy(f"file://{folder}/") == folder


def test_local_files_need_no_options() -> None:
    assert storage.delta_options("/a") == storage.lance_options("/a") == storage.polars_arguments("/a") == {}


def test_arrow_reads_the_same_file(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"data")
    fs, path = storage.arrow_filesystem(f"file://{tmp_path}/x")
    assert isinstance(fs, pyarrow.fs.LocalFileSystem)
    with fs.open_input_stream(path) as stream:
        assert stream.read() == b"data"


def test_json_has_no_nan(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    document = {"a": [nan, 1.5, (inf, "NaN")], "b": {"c": -inf, "d": np.float64("nan")}, "e": 1e308}
    storage.write_json(str(tmp_path / "x.json"), document)
    wanted = {"a": [None, 1.5, [None, "NaN"]], "b": {"c": None, "d": None}, "e": 1e308}
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == wanted


@pytest.mark.parametrize("place", ["new/er/folder", "new.ext/folder", "old"])
def test_a_place_that_can_be_written_is_left_as_it_was(place: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").write_text("here")
    storage.check_writable("out", str(tmp_path / place))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["old", "old/kept"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/x", "file/x/y"):
        with pytest.raises(UserError, match=rf"^out={tmp_path}/{place}: cannot be written \(") as caught:
            storage.check_writable("out", str(tmp_path / place))
        assert "\n" not in str(caught.value)
    storage.check_writable("out", str(tmp_path / "file"), folder=False)
    with pytest.raises(UserError, match=rf"^out={tmp_path}: is a folder, not a file$"):
        storage.check_writable("out", str(tmp_path), folder=False)
    with pytest.raises(UserError, match=r"^out=ftp://x: not a local path"):
        storage.check_writable("out", "ftp://x")
    with pytest.raises(UserError, match=r"^out=s3:/b/x: an s3 URI has two slashes, s3://bucket/key$"):
        storage.check_writable("out", "s3:/b/x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
