"""Image columns of Lance datasets: named by row ids, whose identities outlive what leaves the image alone."""

from __future__ import annotations

import importlib
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from ray_fer.data.formats import parse
from ray_fer.data.loading import ImageLoader
from ray_fer.data.read import Item
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import check_sources, list_sources, pages
from ray_fer.data.sources.lance import LanceRow
from ray_fer.errors import UserError
from tests.data.test_sources_tar import items_of, read_all
from tests.images import picture
from tests.shards import hugging_face

PICTURES = [f"picture {i}".encode() * (1 + i % 3) for i in range(60)]
BLOB = pa.field("im age", pa.large_binary(), metadata={"lance-encoding:blob": "true"})


def table_of(pictures: list[bytes | None], first: int = 0) -> pa.Table:
    return pa.table({"n": range(first, first + len(pictures)), "image": hugging_face(pictures)})


def write(path: Path, pictures: list[bytes | None], mode: str = "create", stable: bool = False, first: int = 0) -> None:
    lance.write_dataset(table_of(pictures, first), path, mode=mode, enable_stable_row_ids=stable)


def keys(path: Path) -> set[tuple[str, str]]:
    return {(item.uri, item.identity) for item in items_of(path)}


@pytest.mark.parametrize(
    ("column", "version"),
    [
        (hugging_face(PICTURES), "2.1"),
        (pa.array(PICTURES, pa.binary()), "2.2"),
        (pa.array(PICTURES, pa.large_binary()), "2.0"),
        (BLOB, "2.1"),
        (lance.blob_array(PICTURES), "2.2"),
    ],
    ids=["hugging-face", "binary", "large-binary", "blob", "blob-v2"],
)
@pytest.mark.parametrize("stable", [False, True])
def test_the_only_image_column_is_found_listed_and_read(
    tmp_path: Path, column: pa.Array | pa.Field, version: str, stable: bool
) -> None:
    field = column if isinstance(column, pa.Field) else pa.field("im age", column.type)
    values = pa.array(PICTURES, column.type) if isinstance(column, pa.Field) else column
    table = pa.table([pa.array(range(60)), values], schema=pa.schema([pa.field("label", pa.int64()), field]))
    path = tmp_path / "faces.lance"
    lance.write_dataset(table, path, max_rows_per_file=25, data_storage_version=version, enable_stable_row_ids=stable)
    items = items_of(path)
    rows = range(60) if stable else [(i // 25 << 32) + i % 25 for i in range(60)]
    assert [item.uri for item in items] == [f"{path}#column=im%20age&rowid={row}" for row in rows]
    assert parse(items[1].uri) == LanceRow(str(path), "im age", 1)
    reads = read_all(items)
    assert [read.data for read in reads] == PICTURES
    assert [read.identity for read in reads] == [item.identity for item in items]
    assert all(item.size > 0 for item in items)
    if "blob" in str(column):
        assert [item.size for item in items] == [len(picture) for picture in PICTURES]


def test_rows_are_read_in_any_order_and_without_being_listed(tmp_path: Path) -> None:
    path = tmp_path / "faces.lance"
    write(path, [picture(i) for i in range(9)])
    numbers = random.Random(0).sample(range(9), 9)
    uris = [f"{path}#column=image&rowid={i}" for i in numbers]
    assert [read.data for read in read_all([Item(uri, "", 0) for uri in uris])] == [picture(i) for i in numbers]
    loader = ImageLoader(uris, 16)
    assert loader.batch(pa.array(range(9)).to_numpy())[1].all()


@pytest.mark.parametrize("stable", [False, True])
def test_what_is_appended_is_new_and_nothing_else(tmp_path: Path, stable: bool) -> None:
    path = tmp_path / "faces.lance"
    write(path, PICTURES[:10], stable=stable)
    before = keys(path)
    assert len(before) == 10
    write(path, PICTURES[10:13], "append", first=10)
    after = keys(path)
    assert len(after) == 13
    assert before < after
    lance.dataset(path).delete("n = 3")
    assert keys(path) < after
    assert len(keys(path)) == 12
    assert [read.data for read in read_all(items_of(path))] == [*PICTURES[:3], *PICTURES[4:13]]


@pytest.mark.parametrize("stable", [False, True])
def test_an_updated_row_is_new(tmp_path: Path, stable: bool) -> None:
    path = tmp_path / "faces.lance"
    write(path, PICTURES[:5], stable=stable)
    before = items_of(path)
    assert [read.status for read in read_all(before)] == ["ok"] * 5
    changed = pa.table({"n": [3], "image": hugging_face([b"CHANGED"])})
    lance.dataset(path).merge_insert("n").when_matched_update_all().execute(changed)
    after = items_of(path)
    new = [item for item in after if (item.uri, item.identity) not in {(old.uri, old.identity) for old in before}]
    assert [(read.data, read.identity) for read in read_all(new)] == [(b"CHANGED", new[0].identity)]
    assert len(after) == 5
    # A reader that has opened the dataset before sees what is listed now.
    assert {read.data for read in read_all(after)} == {*PICTURES[:3], PICTURES[4], b"CHANGED"}


def test_compaction_and_added_columns(tmp_path: Path) -> None:
    for stable in (False, True):
        path = tmp_path / f"{stable}.lance"
        write(path, PICTURES[:5], stable=stable)
        write(path, PICTURES[5:8], "append", first=5)
        before = keys(path)
        lance.dataset(path).optimize.compact_files()
        assert (keys(path) == before) == stable, "row ids and versions survive, places in files do not"
        listed = keys(path)
        lance.dataset(path).add_columns({"twice": "n * 2"})
        assert (keys(path) == listed) == (not stable), "a version says nothing of columns, a data file does"
        assert [read.data for read in read_all(items_of(path))] == PICTURES[:8]


@pytest.mark.parametrize("stable", [False, True])
def test_an_overwritten_dataset_is_new_as_a_whole(tmp_path: Path, stable: bool) -> None:
    path = tmp_path / "faces.lance"
    write(path, PICTURES[:5], stable=stable)
    before = items_of(path)
    write(path, PICTURES[:5], "overwrite", stable=stable)
    assert not {(item.uri, item.identity) for item in before} & keys(path)
    assert {read.status for read in read_all(before)} == {"missing"}
    if not stable:
        shutil.rmtree(path)
        write(path, PICTURES[:5])
        anew = items_of(path)
        assert [item.uri for item in anew] == [item.uri for item in before]
        assert not {item.identity for item in anew} & {item.identity for item in before}
        assert [(read.data, read.identity) for read in read_all(before)] == [
            (data, anew[0].identity) for data in PICTURES[:5]
        ]


def test_a_version_that_was_cleaned_away_is_opened_anew(tmp_path: Path) -> None:
    from datetime import timedelta

    path = tmp_path / "faces.lance"
    write(path, PICTURES[:4], stable=True)
    write(path, PICTURES[4:8], "append", first=4)
    items = items_of(path)
    assert read_all(items[:1])[0].data == PICTURES[0]
    dataset = lance.dataset(path)
    dataset.optimize.compact_files()
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    assert [read.data for read in read_all(items)] == PICTURES[:8]
    shutil.rmtree(path)
    assert {read.status for read in read_all(items)} <= {"missing", "unreadable"}


def test_null_too_large_and_absent(tmp_path: Path) -> None:
    path = tmp_path / "faces.lance"
    write(path, [b"ab", None, b"abcd"])
    absent = [
        f"{path}#column=image&rowid=9",
        f"{path}#column=other&rowid=0",
        f"{tmp_path}/no.lance#column=image&rowid=0",
    ]
    reads = read_all([*items_of(path), *(Item(uri, "", 0) for uri in absent)], max_bytes=3)
    assert [read.status for read in reads] == ["ok", "undecodable", "too_large", "missing", "unreadable", "missing"]
    assert "no column of images 'other'" in reads[4].error


def test_a_list_names_rows_of_datasets(tmp_path: Path) -> None:
    write(tmp_path / "faces.lance", PICTURES[:5])
    names = ["faces.lance#column=image&rowid=3", "faces.lance#column=image&rowid=9", "no.lance#column=image&rowid=1"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    items = items_of(tmp_path / "list.txt")
    assert [item.uri for item in items] == [f"{tmp_path}/{name}" for name in names]
    assert [bool(item.identity) for item in items] == [True, False, False]
    assert [read.data for read in read_all(items)] == [PICTURES[3], None, None]


def test_a_folder_of_any_name_and_one_inside_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 4)
    write(tmp_path / "faces", PICTURES[:9])
    (tmp_path / "a.jpg").write_bytes(b"x")
    entry = SourceConfig(uri=str(tmp_path / "faces"), format="lance", column="image")
    assert [page.num_rows for page in list_sources([entry], Counter())] == [4, 4, 1]
    assert [item.uri for item in items_of(tmp_path)] == [f"{tmp_path}/a.jpg"], "it has to be named"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"n": [1]}, {}, "no column of bytes; say which with column=…"),
        ({"a": [b"x"], "b": [b"x"]}, {}, r"several columns of bytes \(a, b\)"),
        ({"a": [b"x"]}, {"column": "image"}, "column=image: no such column, there are a"),
        ({"a": [1]}, {"column": "a"}, "column=a: holds int64, not the bytes of images"),
    ],
)
def test_what_holds_no_images_is_one_line(
    tmp_path: Path, columns: dict[str, list[object]], options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.lance"
    lance.write_dataset(pa.table(columns), path)
    with pytest.raises(UserError, match=f"^source={path}: .*{message}"):
        check_sources([SourceConfig(uri=str(path), **options)])


def test_what_is_no_dataset_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.lance").mkdir()
    with pytest.raises(UserError, match=rf"^source={tmp_path}/t.lance: cannot be read as Lance \(there is no dataset"):
        check_sources([str(tmp_path / "t.lance")])
    with pytest.raises(UserError, match="a pattern names objects, and a Lance dataset is a folder"):
        check_sources([f"{tmp_path}/*.lance"])
    with pytest.raises(UserError, match=r"t\.lance#column=image&rowid=1: a single image"):
        check_sources([f"{tmp_path}/t.lance#column=image&rowid=1"])
    plain = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "lance":
            raise ModuleNotFoundError("No module named 'lance'")
        return plain(name, package)

    monkeypatch.setattr("ray_fer.data.sources.lance_column.import_module", without)
    with pytest.raises(UserError, match=r"t.lance: to read Lance datasets, pip install 'ray-fer\[lance\]'$"):
        check_sources([str(tmp_path / "t.lance")])
