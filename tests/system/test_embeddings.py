"""Embeddings over Ray, on S3: added to what is labelled, read, and forgotten."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs

from ray_fer.labeling.embeddings import Embeddings
from ray_fer.labeling.table import open_table
from tests.images import picture, tiny_model
from tests.system.jobs import run_job
from tests.system.test_pseudo_label import QUICK, keys_of


@pytest.mark.slow
def test_embeddings_are_kept_once_and_forgotten_for_good(s3: str) -> None:
    fs, bucket, table = s3fs.S3FileSystem(), s3.removeprefix("s3://"), f"{s3}/tables/predictions"
    teacher = tiny_model(f"{s3}/models/teacher").uri
    fs.pipe({f"{bucket}/faces/{number:03}.jpg": picture(number) for number in range(20)})
    arguments = (f"source={s3}/faces", f"teacher={teacher}", f"table={table}", *QUICK)

    assert run_job("pseudo_label", *arguments)["labelled"] == 20
    fs.pipe({f"{bucket}/faces/{number:03}.jpg": picture(number) for number in range(20, 30)})
    done = run_job("pseudo_label", *arguments, "embed=true")
    assert (done["labelled"], done["already_labelled"]) == (30, 0)
    assert [facts["bytes_per_row"] for facts in done["embeddings"].values()] == [1792]
    assert run_job("pseudo_label", *arguments, "embed=true")["labelled"] == 0
    assert sorted(keys_of(table).values()) == [1] * 10 + [2] * 20

    def held() -> dict[str, np.ndarray]:
        opened = open_table(table)
        assert opened
        blocks = Embeddings(opened, done["model"])
        return {uri: vector for block in blocks for uri, vector in zip(block.uris, block.embeddings, strict=True)}

    before = held()
    assert sorted(before) == [f"{s3}/faces/{number:03}.jpg" for number in range(30)]
    fs.pipe(f"{bucket}/forget.txt", f"{s3}/faces/003.jpg\n".encode())
    assert run_job("vacuum", f"table={table}", f"forget=[{s3}/forget.txt,{s3}/faces/025.jpg]")["forgotten"] == 3
    after = held()
    assert before.keys() - after.keys() == {f"{s3}/faces/003.jpg", f"{s3}/faces/025.jpg"}
    assert all(np.array_equal(vector, before[uri]) for uri, vector in after.items())
    for path in fs.find(f"{bucket}/tables/predictions"):
        if path.endswith(".parquet") and "_delta_log" not in path:
            assert not (before.keys() - after.keys()) & {*pq.read_table(path, filesystem=fs)["uri"].to_pylist()}
