from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from ray_fer import storage

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
