"""Storage on a real S3 server."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from ray_fer import storage


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_objects(s3: str) -> None:
    uri = f"{s3}/a/b é.json"
    assert not storage.exists(uri)
    assert storage.list_dir(f"{s3}/a") == []
    storage.write_json(uri, {"n": 1})
    storage.write_json(f"{s3}/a/c/d.json", {})
    assert storage.exists(uri)
    assert storage.read_json(uri) == {"n": 1}
    assert storage.is_dir(f"{s3}/a")
    assert not storage.is_dir(uri)
    assert storage.list_dir(f"{s3}/a/") == ["b é.json", "c"]
    fs, path = storage.arrow_filesystem(uri)
    with fs.open_input_stream(path) as stream:
        assert b'"n": 1' in stream.read()
    storage.delete(f"{s3}/a")
    assert not storage.exists(uri)
    storage.delete(f"{s3}/a")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)


def test_an_object_written_piece_by_piece_is_there_whole_or_not_at_all(s3: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with storage.open_output(f"{s3}/x") as file:
        file.write(b"first, ")
        assert not storage.exists(f"{s3}/x")
        file.write(b"second")
    assert storage.read_bytes(f"{s3}/x") == b"first, second"
    with pytest.raises(ZeroDivisionError), storage.open_output(f"{s3}/x") as file:
        file.write(bytes(1 // len(b"")))
    assert storage.read_bytes(f"{s3}/x") == b"first, second"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_goes_up_and_comes_down_once(s3: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("config.json", "model.bin", "sub/deep.txt"):
        storage.write_bytes(str(folder / name), name.encode())
    uri = f"{s3}/models/m"
    storage.upload_folder(folder, uri, last="config.json")
    storage.write_bytes(f"{s3}/models/m-other/x", b"a sibling whose name begins alike")

    first = storage.local_copy(uri)
    assert contents(first) == contents(folder)
    assert storage.local_copy(f"{uri}/") == first
    assert [path.name for path in first.parent.iterdir()] == [first.name], "no partial download stays"

    storage.write_bytes(f"{uri}/model.bin", b"new weights")
    second = storage.local_copy(uri)
    assert second != first
    assert contents(second) == contents(folder) | {"model.bin": b"new weights"}
    assert contents(first) == contents(folder), "who reads the old copy keeps it"


def test_one_file_of_a_folder(s3: str) -> None:
    for name in ("a.pth", "b.pth"):
        storage.write_bytes(f"{s3}/m/{name}", name.encode())
    assert contents(storage.local_copy(f"{s3}/m", only=["b.pth"])) == {"b.pth": b"b.pth"}


def test_nothing_to_copy_is_said_by_name(s3: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{s3}/none"):
        storage.local_copy(f"{s3}/none")
    storage.write_bytes(f"{s3}/m/a", b"")
    with pytest.raises(FileNotFoundError, match=f"{s3}/m/b"):
        storage.local_copy(f"{s3}/m", only=["b"])


def test_folder_markers_are_no_files(s3: str) -> None:
    """Consoles make an empty object ``folder/`` when a user makes a folder."""
    import s3fs

    s3fs.S3FileSystem().call_s3("put_object", Bucket=s3.removeprefix("s3://"), Key="m/", Body=b"")
    storage.write_bytes(f"{s3}/m/a", b"data")
    assert storage.list_dir(f"{s3}/m") == ["a"]
    assert contents(storage.local_copy(f"{s3}/m")) == {"a": b"data"}
