"""Image columns of Parquet files, listed from footers and read in the order of their rows."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_fer.data.read import Item, read_objects
from ray_fer.data.source_config import SourceConfig
from ray_fer.data.sources import check_sources, list_sources, pages
from ray_fer.errors import UserError
from tests.data.test_sources_tar import items_of, read_all
from tests.shards import hugging_face, parquet_of

PICTURES = [f"picture {i}".encode() * (1 + i % 3) for i in range(60)]


def with_column(path: Path, column: str | None = None) -> SourceConfig:
    return SourceConfig(uri=str(path), format="parquet", column=column)


@pytest.mark.parametrize(
    "column",
    [hugging_face(PICTURES), pa.array(PICTURES, pa.binary()), pa.array(PICTURES, pa.large_binary())],
    ids=["hugging-face", "binary", "large-binary"],
)
def test_the_only_image_column_is_found_listed_and_read(tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_of({"label": list(range(60)), "im age": column}, rows_per_group=25))
    items = items_of(path)
    assert [item.uri for item in items] == [f"{path}#column=im%20age&row={i}" for i in range(60)]
    assert [read.data for read in read_all(items)] == PICTURES
    assert {read.identity for read in read_all(items)} == {items[0].identity}


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_of({"image": hugging_face(PICTURES)}, rows_per_group=7))
    numbers = random.Random(0).sample(range(60), 60)
    reads = read_all([Item(f"{path}#column=image&row={i}", "", 0) for i in numbers])
    assert [read.data for read in reads] == [PICTURES[i] for i in numbers]


def test_the_next_unit_goes_on_where_the_last_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_of({"image": hugging_face(PICTURES)}))
    items = items_of(path)
    begun: list[int] = []
    plain = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *arguments: object, **options: object) -> object:
        begun.append(1)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    data = [read.data for start in range(0, 60, 8) for read in read_objects(items[start : start + 8], 1000)]
    assert data == PICTURES
    assert len(begun) == 1


def test_null_too_large_and_beyond_the_end(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_of({"image": hugging_face([b"ab", None, b"abcd"])}))
    items = [*items_of(path), Item(f"{path}#column=image&row=3", "", 0), Item(f"{path}#column=other&row=0", "", 0)]
    reads = read_all(items, max_bytes=3)
    assert [read.status for read in reads] == ["ok", "undecodable", "too_large", "missing", "unreadable"]
    assert "no column of images 'other'" in reads[-1].error


def test_an_overwritten_file_is_recorded_as_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_of({"image": hugging_face([b"one", b"two"])}))
    before = items_of(path)
    assert [read.data for read in read_all(before)] == [b"one", b"two"]
    path.write_bytes(parquet_of({"image": hugging_face([b"ONE", b"TWO", b"THREE"])}))
    os.utime(path, ns=(1, 1))
    after = items_of(path)
    assert before[0].identity != after[0].identity
    reads = read_all(before)
    assert [(read.data, read.identity) for read in reads] == [(b"ONE", after[0].identity), (b"TWO", after[0].identity)]
    path.write_bytes(b"no table")
    assert [read.status for read in read_all(after)] == ["unreadable"] * 3
    path.unlink()
    assert [read.status for read in read_all(after)] == ["missing"] * 3


def test_pages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 4)
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_of({"image": hugging_face(PICTURES[:12])}, rows_per_group=6))
    assert [page.num_rows for page in list_sources([str(path)], Counter())] == [4, 2, 4, 2]


def test_a_folder_of_files_must_be_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table of predictions, say, may lie inside the source that it was made from."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "t.parquet").write_bytes(parquet_of({"image": hugging_face(PICTURES)}))
    (tmp_path / "u.parquet").write_bytes(parquet_of({"image": hugging_face(PICTURES[:5])}))
    (tmp_path / "bad.parquet").write_bytes(b"x")
    assert [item.uri for item in items_of(tmp_path)] == [str(tmp_path / "a.jpg")]
    counts: Counter[str] = Counter()
    assert len(items_of(with_column(tmp_path), counts=counts)) == 65
    assert counts == {"listed": 65, "skipped": 2, "unlisted": 1}
    assert f"{tmp_path}/bad.parquet: cannot be read as Parquet" in caplog.text


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ({"n": [1], "url": ["s3://b/a.jpg"]}, None, "no column of bytes; say which with column=…, or format=list"),
        ({"a": [b"x"], "b": [b"x"]}, None, r"several columns of bytes \(a, b\)"),
        ({"a": [b"x"]}, "image", "column=image: no such column, there are a"),
        ({"a": [b"x"], "url": ["s3://b/a.jpg"]}, "url", "column=url: holds string, .*say format=list"),
    ],
)
def test_what_holds_no_images_is_one_line(
    tmp_path: Path, columns: dict[str, list[object]], column: str | None, message: str
) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(parquet_of(columns))
    with pytest.raises(UserError, match=f"^source={path}: .*{message}"):
        check_sources([with_column(path, column)])


def test_a_file_that_is_no_parquet_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=f"^source={tmp_path}/t.parquet: cannot be read as Parquet"):
        check_sources([str(tmp_path / "t.parquet")])


def test_a_large_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.parquet"
    noise = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    pictures = pa.array([i.to_bytes(4, "big") + noise for i in range(4000)], pa.binary())
    pq.write_table(pa.table({"image": pictures}), path, compression="none", write_batch_size=64)
    script = (
        "import re, sys\n"
        "from collections import Counter\n"
        "from ray_fer.data.read import Item, read_objects\n"
        "from ray_fer.data.sources import list_sources\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10\n"
        "items = [Item(*row) for page in list_sources([sys.argv[1]], Counter())\n"
        "         for row in zip(*(page[name].to_pylist() for name in ('uri', 'identity', 'size')))]\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = peak()\n"
        "for number, read in enumerate(read_objects(items, 1 << 20)):\n"
        "    assert read.data[:4] == number.to_bytes(4, 'big')\n"
        "print(number + 1, peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, grown = map(int, done.stdout.split())
    assert rows == 4000
    assert grown < 60, "MiB, of the 76 that the row group holds"


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("statistics", [True, False])
def test_pictures_that_a_column_only_names_are_listed_where_they_are(tmp_path: Path, statistics: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"one")
    (tmp_path / "b.jpg").write_bytes(b"two")
    paths = ["in/a.jpg", str(tmp_path / "b.jpg"), None]
    column = pa.array([{"bytes": None, "path": path} for path in paths], STRUCT)
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet", write_statistics=statistics)
    counts: Counter[str] = Counter()
    items = items_of(tmp_path / "t.parquet", counts=counts)
    assert [(read.item.uri, read.data) for read in read_all(items)] == [
        (f"{tmp_path}/in/a.jpg", b"one"),
        (f"{tmp_path}/b.jpg", b"two"),
    ]
    assert counts == {"listed": 2, "skipped": 1}


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int32(), pa.binary()),
        pa.dictionary(pa.int8(), pa.large_binary()),
        pa.struct([("bytes", pa.dictionary(pa.int32(), pa.binary())), ("path", pa.string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
        pa.binary_view(),
    ],
    ids=str,
)
def test_bytes_in_other_encodings_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    pictures = [b"one", b"two", b"one", b"three"]
    if pa.types.is_struct(kind):
        inner = [pa.array(pictures).cast(f.type) if f.name == "bytes" else pa.nulls(4, f.type) for f in kind]
        column = pa.StructArray.from_arrays(inner, fields=list(kind))
    else:
        column = (
            pa.array(pictures).dictionary_encode().cast(kind)
            if pa.types.is_dictionary(kind)
            else pa.array(pictures, kind)
        )
    (tmp_path / "t.parquet").write_bytes(parquet_of({"n": list("abcd"), "image": column}, rows_per_group=3))
    assert [read.data for read in read_all(items_of(tmp_path / "t.parquet"))] == pictures


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ([("image", [b"x"]), ("image", [b"y"])], "image", "column=image: 2 columns are called that"),
        ([("image", [b"x"]), ("image", [b"y"])], None, r"several columns of bytes \(image, image\)"),
        ([("image", [None, None])], None, "no column of bytes"),
        ([("image", pa.array([None, None], pa.binary()))], None, "column=image: holds nothing but nulls"),
        ([("image", pa.array([None], pa.struct([("bytes", pa.binary())])))], None, "holds nothing but nulls"),
        ([("image", [[b"x"]])], "image", r"column=image: holds list<\w+: binary>, not the bytes of images"),
        ([("image", pa.array([[b"x"]], pa.large_list(pa.binary())))], "image", "holds large_list<"),
        ([("image", pa.array([b"xyz"], pa.binary(3)))], "image", r"holds fixed_size_binary\[3\], not the bytes"),
        ([("image", pa.array([[1, 2]], pa.list_(pa.uint8())))], "image", r"holds list<\w+: uint8>, not the bytes"),
        ([("image", pa.array([[{"bytes": b"x"}]]))], "image", "holds list<"),
        ([("image", pa.array([{"image": {"bytes": b"x"}}]))], "image.image", "no such column, there are image"),
        ([("image", pa.array(["a.jpg"]).dictionary_encode())], "image", "holds dictionary<.*say format=list"),
        ([("image", pa.array([{"bytes": "text"}]))], "image", "holds struct<bytes: string>, not the bytes"),
    ],
)
def test_what_cannot_be_read_as_images_is_one_line(
    tmp_path: Path, columns: list[tuple[str, Any]], column: str | None, message: str
) -> None:
    path = tmp_path / "t.parquet"
    arrays = [values if isinstance(values, pa.Array) else pa.array(values) for _, values in columns]
    pq.write_table(pa.Table.from_arrays(arrays, names=[name for name, _ in columns]), path)
    with pytest.raises(UserError, match=f"^source={path}: .*{message}") as refused:
        check_sources([with_column(path, column)])
    assert len(str(refused.value).splitlines()) == 1


def test_a_name_twice_among_other_columns_does_no_harm(tmp_path: Path) -> None:
    arrays = [pa.array(["a"]), pa.array([b"x"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["n", "image", "n"]), tmp_path / "t.parquet")
    assert [read.data for read in read_all(items_of(tmp_path / "t.parquet"))] == [b"x"]
