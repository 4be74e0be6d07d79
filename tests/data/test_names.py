from __future__ import annotations

import pyarrow as pa
import pytest

from ray_fer.data.names import are_hidden, is_hidden

MEANT = [
    *("a.jpg", "a/b.jpg", "./a.jpg", "././a/b.jpg", "../a.jpg", "a/../b.jpg", "/a.jpg", "a//b.jpg", "a./b.jpg"),
    *("a/_DSC1234.JPG", "_unsorted/a.jpg", "_/a.jpg", "__a.jpg", "a.b/c.jpg", "a.jpg/b.jpg", "@me/a.jpg", "#1/a.jpg"),
    *(".jpg", "a/.JPG", "..jpg", "a/...tiff", "~.jpg", "-._a.jpg", "_temporary.jpg", "my_delta_log/a.jpg"),
    *("macosx/a.jpg", "a\n.jpg", "", "a/"),
]
COMPANIONS = [
    *("._a.jpg", "a/._b.jpg", "./._a.jpg", "._.jpg", "a/.b.jpg", ".jpg.jpg", "..a.jpg", ".png/a.jpg", "a/..../b.jpg"),
    *(".ipynb_checkpoints/a-checkpoint.png", "a/.ipynb_checkpoints/b.png", ".Trash-1000/files/a.jpg", ".DS_Store"),
    *("__MACOSX/a/._b.jpg", "__MACOSX/b.jpg", "a/__MACOSX/b.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"),
    *("_temporary/0/a.jpg", "a/_delta_log/b.png", "_spark_metadata/0", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg"),
    *("_change_data/a.jpg", "\n/.a.jpg"),
]


@pytest.mark.parametrize("path", MEANT)
def test_pictures_that_are_meant(path: str) -> None:
    assert not is_hidden(path)


@pytest.mark.parametrize("path", COMPANIONS)
def test_files_that_are_nobodys_pictures(path: str) -> None:
    assert is_hidden(path)


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        *((path, True) for path in ("_a.parquet", "a/_b.parquet", "_temporary/0/a.parquet", "_delta_log/1.parquet")),
        *((path, True) for path in (".a.parquet", "a/._b.parquet", "_metadata", "_SUCCESS", ".part=1/a.parquet")),
        *((path, True) for path in ("__a.csv", "_/a.parquet", "x=1/_temporary/a.parquet", ".parquet", "_a")),
        *((path, False) for path in ("a.parquet", "./a.parquet", "../a.parquet", "_part=1/a.parquet", "a_b/c_d.csv")),
        *((path, False) for path in ("year=2024/_month=1/a.parquet", "_k=.v/a.parquet", "a=_b/c.parquet", "")),
    ],
)
def test_files_that_are_no_part_of_a_table(path: str, hidden: bool) -> None:
    assert is_hidden(path, table=True) == hidden


def test_a_column_of_paths_is_judged_as_its_paths_are() -> None:
    paths = [*MEANT, *COMPANIONS]
    assert are_hidden(pa.chunked_array([paths, MEANT])).to_pylist() == [is_hidden(path) for path in [*paths, *MEANT]]
    assert are_hidden(pa.array([], pa.string())).to_pylist() == []
