"""Objects that vanish and come back, on real runs: marked once, never dropped, and nothing is labelled for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.jobs.pseudo_label import pseudo_label
from tests.images import picture, write_pictures
from tests.system.jobs import failing_job, kill_job, run_job, start_job
from tests.system.test_pseudo_label import QUICK, keys_of, rows_of, wait_for_rows


def statuses_of(table: str) -> Counter[object]:
    return Counter(row["status"] for row in rows_of(table))


def assert_goes_and_comes_back(
    root: str, arguments: tuple[str, ...], remove: Callable[[int], None], restore: Callable[[int], None]
) -> None:
    """``arguments`` name a source of 12 pictures and a teacher."""
    table = f"{root}/table"
    arguments = (*arguments, f"table={table}", *QUICK)
    assert run_job("pseudo_label", *arguments)["gone"] == 0
    labelled = keys_of(table)
    for number in range(3):
        remove(number)
    dry = pseudo_label(load_config("pseudo_label", [*arguments, "dry_run=true"]))
    run = run_job("pseudo_label", *arguments)
    assert (run["labelled"], run["gone"], run["returned"]) == (0, 3, 0)
    assert statuses_of(table) == {"ok": 12, "gone": 3}
    again = run_job("pseudo_label", *arguments)
    assert (again["labelled"], again["gone"], again["version"]) == (0, 0, run["version"])
    later = pseudo_label(load_config("pseudo_label", [*arguments, "dry_run=true"]))
    assert later["counts"]["gone"] == dry["counts"]["gone"] == 3
    assert later["examples"]["gone"] == dry["examples"]["gone"]
    restore(0)
    back = run_job("pseudo_label", *arguments, f"select={root}/selection", "selection.threshold=0.01")
    assert (back["labelled"], back["gone"], back["returned"]) == (0, 0, 1)
    assert keys_of(table) == labelled
    assert statuses_of(table) == {"ok": 12, "gone": 3, "returned": 1}
    assert (back["selection"]["accepted"], back["selection"]["left_out"]["gone"]) == (10, 2)


def test_local_files_go_and_come_back(tmp_path: Path, model: str) -> None:
    source, aside = tmp_path / "in", tmp_path / "aside"
    write_pictures(source, range(12))
    aside.mkdir()
    paths = sorted(source.rglob("*.jpg"))

    def move(number: int, back: bool) -> None:
        places = paths[number], aside / paths[number].name
        os.rename(*(places[::-1] if back else places))

    arguments = (f"source={source}", f"teacher={model}")
    assert_goes_and_comes_back(str(tmp_path), arguments, lambda n: move(n, False), lambda n: move(n, True))


@pytest.mark.slow
def test_objects_on_s3_go_and_come_back(s3: str, model: str) -> None:
    fs, bucket = storage.filesystem(s3)

    def write(number: int) -> None:
        fs.pipe(f"{bucket}/faces/{number:03d}.jpg", picture(number))

    for number in range(12):
        write(number)
    arguments = (f"source={s3}/faces", f"teacher={model}")
    assert_goes_and_comes_back(s3, arguments, lambda number: fs.rm(f"{bucket}/faces/{number:03d}.jpg"), write)


@pytest.mark.slow
def test_only_a_complete_listing_marks(tmp_path: Path, s3: str, model: str) -> None:
    """One that ends with an error, and one that passes over a damaged shard; what it found new is labelled."""
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(12))
    arguments = (f"teacher={model}", f"table={table}", *QUICK)
    run_job("pseudo_label", f"source={source}", *arguments)
    shutil.rmtree(source / "part-0")
    write_pictures(source / "new", range(20, 22))

    fs, bucket = storage.filesystem(s3)
    fs.pipe(f"{bucket}/faces/030.jpg", picture(30))
    fs.pipe(f"{bucket}/inventory/a.csv", f'"{bucket}","faces/030.jpg"\n'.encode())
    files = [{"key": f"inventory/{name}.csv"} for name in ("a", "lost")]
    manifest = {"destinationBucket": f"arn:aws:s3:::{bucket}", "fileSchema": "Bucket, Key", "fileFormat": "CSV"}
    fs.pipe(f"{bucket}/inventory/manifest.json", json.dumps(manifest | {"files": files}).encode())
    late = f"{s3}/inventory/manifest.json"
    status, err = failing_job("pseudo_label", f"source=[{source},{{uri: {late}, format: inventory}}]", *arguments)
    assert status == 2, err[-3000:]
    assert f"source={s3}/inventory/lost.csv" in err.splitlines()[-1]
    assert statuses_of(table) == {"ok": 15}

    (source / "shard.tar").write_bytes(b"no tar at all" * 100)
    assert run_job("pseudo_label", f"source={source}", *arguments)["gone"] == 0
    (source / "shard.tar").unlink()
    assert run_job("pseudo_label", f"source={source}", *arguments)["gone"] == 4
    assert statuses_of(table) == {"ok": 15, "gone": 4}


@pytest.mark.slow
def test_watching_marks_what_goes_meanwhile(tmp_path: Path, model: str) -> None:
    """Also of what the same run has labelled."""
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(12))
    process = start_job("pseudo_label", f"source={source}", f"teacher={model}", f"table={table}", *QUICK, "watch=0.5")
    try:
        wait_for_rows(table, 12, process)
        paths = sorted(source.rglob("*.jpg"))
        os.rename(paths[0], tmp_path / "aside")
        paths[1].unlink()
        wait_for_rows(table, 14, process)
        os.rename(tmp_path / "aside", paths[0])
        wait_for_rows(table, 15, process)
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        kill_job(process)
    assert process.returncode == 0, err[-3000:]
    assert statuses_of(table) == {"ok": 12, "gone": 2, "returned": 1}
    assert '"gone": 2, "returned": 1' in out.splitlines()[-1]
