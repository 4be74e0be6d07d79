import os
import shutil
from collections import Counter
from pathlib import Path

import botocore.exceptions
import pyarrow as pa
import pytest

from ray_fer import storage
from ray_fer.data.sources import check_sources, list_sources, pages
from ray_fer.data.sources.spec import resolve
from ray_fer.data.sources.walk import list_objects
from ray_fer.errors import UserError


def listed(*folders: Path, counts: Counter[str] | None = None) -> list[str]:
    pages = list_sources([str(folder) for folder in folders], Counter() if counts is None else counts)
    return sorted(Path(uri).name for page in pages for uri in page["uri"].to_pylist())


def test_images_are_listed_and_others_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "sub/c.webp", "sub/deep/d.tif", "notes.txt", "noextension"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    counts: Counter[str] = Counter()
    assert listed(tmp_path, counts=counts) == ["a.jpg", "b.PNG", "c.webp", "d.tif"]
    assert counts == {"listed": 4, "skipped": 2}


def test_pages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 3)
    for i in range(7):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    assert [page.num_rows for page in list_sources([str(tmp_path)], Counter())] == [3, 3, 1]


def test_identity_changes_with_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    (before,) = list_sources([str(tmp_path)], Counter())
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    (after,) = list_sources([str(tmp_path)], Counter())
    assert before["identity"] != after["identity"]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert listed(tmp_path / "a.jpg") == ["a.jpg"]


def test_overlapping_sources_are_listed_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    assert listed(tmp_path, tmp_path / "in", tmp_path) == ["a.jpg"]


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert listed(tmp_path) == ["a.jpg"]


def test_a_link_to_a_folder_is_not_followed_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert listed(tmp_path / "in") == ["a.jpg"]
    assert f"{tmp_path}/in/link is a link to a folder and is not followed" in caplog.text
    (tmp_path / "top").symlink_to(tmp_path / "elsewhere")
    assert listed(tmp_path / "top") == ["b.jpg"]


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://nowhere"),
        PermissionError("denied"),
    ],
)
def test_a_store_that_cannot_be_listed_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        def call_s3(self, *_: object, **__: object) -> None:
            raise error

    monkeypatch.setattr(storage, "filesystem", lambda uri: (Store(), uri.removeprefix("s3://")))
    with pytest.raises(UserError, match=r"^source=s3://bucket/faces: cannot be listed \(.+\)$"):
        check_sources(["s3://bucket/faces"])


def test_a_folder_that_goes_while_it_is_listed_is_counted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(b"x")
    counts: Counter[str] = Counter()
    keys = list_objects(resolve(str(tmp_path)), counts)
    assert next(keys)[0] == str(tmp_path / "a.jpg")
    shutil.rmtree(tmp_path / "sub")
    assert list(keys) == []
    assert counts == {"unlisted": 1}


def test_strange_names_are_listed(tmp_path: Path) -> None:
    names = ["a b.jpg", "ä%20#?.jpg", "new\nline.jpg", "quote\"'.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"x")
    uris = pa.concat_tables(list_sources([str(tmp_path)], Counter()))["uri"].to_pylist()
    assert sorted(Path(uri).name for uri in uris) == sorted([*names, "\\xff\\xfe.jpg"])


def test_an_empty_or_absent_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source=.*/nowhere: no such file or folder"):
        check_sources([str(tmp_path / "nowhere")])
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(UserError, match=f"source={tmp_path}: no image there"):
        check_sources([str(tmp_path)])
