"""Copies of pictures are found by their bytes, and no more is read than may be one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_fer.data.digests import contents_of
from ray_fer.data.read import Item, Read, read_objects


def item(path: Path, data: bytes, size: int | None = None) -> Item:
    path.write_bytes(data)
    return Item(str(path), "", len(data) if size is None else size)


def test_a_copy_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [item(tmp_path / name, data).uri for name, data in (("a", b"one"), ("b", b"three"), ("c", b"one"))]
    contents = contents_of([*mine, str(tmp_path / "gone")])
    assert (len(contents.digests), sorted(contents.sizes)) == (2, [3, 5])
    assert [(read.item.uri, read.status) for read in contents.unread] == [(str(tmp_path / "gone"), "missing")]
    others = {
        "copy": item(tmp_path / "copy", b"one"),
        "like it": item(tmp_path / "like", b"two"),
        "longer": item(tmp_path / "longer", b"longer"),
        "of unknown size": item(tmp_path / "unknown", b"three", 0),
        "gone": Item(str(tmp_path / "gone"), "", 3),
        "locked": Item(str(tmp_path / "folder"), "", 3),
    }
    (tmp_path / "folder").mkdir()
    read = list[Item]()

    def watched(items: Iterable[Item], max_bytes: int) -> Iterator[Read]:
        read.extend(kept := list(items))
        return read_objects(kept, max_bytes)

    monkeypatch.setattr("ray_fer.data.digests.read_objects", watched)
    assert list(contents.copies(others.values())) == [others[name] for name in ("copy", "of unknown size", "locked")]
    assert read == [each for name, each in others.items() if name != "longer"]


def test_the_size_of_a_row_is_not_its_own(tmp_path: Path) -> None:
    contents = contents_of([item(tmp_path / "a", b"one").uri])
    pq.write_table(pa.table({"image": [b"two and more", b"one"]}), tmp_path / "faces.parquet")
    rows = [Item(f"{tmp_path}/faces.parquet#column=image&row={number}", "", 7) for number in range(2)]
    assert list(contents.copies(rows)) == rows[1:]
