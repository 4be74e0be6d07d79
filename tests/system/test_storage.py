"""Storage on a real S3 server."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.training import lease
from ray_fer.writable import check_writable
from tests.system.servers import KEY, SECRET, S3Server


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


def test_a_place_that_can_be_written_is_left_as_it_was(s3: str) -> None:
    check_writable("out", f"{s3}/new/folder")
    assert storage.list_dir(s3) == []
    with pytest.raises(UserError, match=r"^out=s3://Bad_Bucket!/x: cannot be written \(.*[Bb]ucket"):
        check_writable("out", "s3://Bad_Bucket!/x")


def test_a_key_that_may_not_write_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(UserError, match=rf"^out={s3}/new: cannot be written \(") as caught:
        check_writable("out", f"{s3}/new")
    assert "\n" not in str(caught.value)


def test_of_several_that_create_an_object_one_does(s3: str, tmp_path: Path) -> None:
    for uri in (f"{s3}/a/lock", str(tmp_path / "a" / "lock")):
        with ThreadPoolExecutor(8) as pool:
            created = list(pool.map(lambda number, uri=uri: storage.create(uri, b"%d" % number), range(8)))
        assert storage.read_bytes(uri) == b"%d" % created.index(True)
        assert created.count(True) == 1
        assert not storage.create(uri, b"later")
        storage.delete(uri)
        assert storage.create(uri, b"anew")


def test_one_run_at_a_time_in_a_bucket(s3: str) -> None:
    with lease.held(s3, beat=0.1) as held:
        with pytest.raises(UserError, match="a run is under way there since"):
            lease.held(s3).__enter__()
        time.sleep(0.5)
        held.check()
        (uri,) = (storage.join(s3, ".lease", name) for name in storage.list_dir(f"{s3}/.lease"))
        assert storage.read_json(uri)["beat"] >= 1
    assert not storage.exists(uri)
    dead = lease._holder() | {"pid": 2**22 + 1}
    storage.write_json(uri, dead)
    with lease.held(s3) as held:
        assert held.number == 2
        assert storage.list_dir(f"{s3}/.lease") == ["00000002.json"]


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


def test_a_profile_is_all_that_any_library_needs(
    s3: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    profile = f"[profile lab]\nregion = lab-1\nendpoint_url = {s3_server.endpoint}\n"
    (tmp_path / "config").write_text(f"{profile}aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    rows = pa.table({"n": [1, 2]})

    write_deltalake(f"{s3}/delta", rows, storage_options=storage.delta_options(s3))
    assert storage.list_dir(f"{s3}/delta/_delta_log")[0] == "00000000000000000000.json"
    (part,) = DeltaTable(f"{s3}/delta", storage_options=storage.delta_options(s3)).file_uris()
    assert pl.scan_parquet(part, **storage.polars_arguments(part)).collect()["n"].to_list() == [1, 2]
    lance.write_dataset(rows, f"{s3}/rows.lance", storage_options=storage.lance_options(s3))
    assert lance.dataset(f"{s3}/rows.lance", storage_options=storage.lance_options(s3)).count_rows() == 2
    fs, path = storage.arrow_filesystem(part)
    assert pq.read_table(path, filesystem=fs).num_rows == 2
