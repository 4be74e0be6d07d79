"""The table's upkeep on a real S3 server."""

from __future__ import annotations

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import Ledger
from ray_fer.labeling.maintenance import FEWEST_FILES, compact, vacuum
from ray_fer.labeling.table import create_table, files_of, scan_keys, write_file
from tests.labeling.test_table import CLASSES, rows
from tests.system.jobs import run_job


def test_compact_and_vacuum_on_s3(s3: str) -> None:
    """The ledger reads the same from many files, from one, and when the others are gone; runs and orphans apart."""
    uri = f"{s3}/my tables/é"
    table = create_table(uri, CLASSES)
    Committer(table, "m", "r").commit([write_file(uri, "m", rows(str(i)), "x") for i in range(FEWEST_FILES)])
    assert Ledger(scan_keys(table, "m"), 3).rows == FEWEST_FILES
    assert compact(table, "m") == {"joined": FEWEST_FILES, "files": 1}
    write_file(uri, "m", rows("lost"), "x")
    storage.write_json(f"{uri}/_runs/r/summary.json", {})

    assert vacuum(load_config("vacuum", [f"table={uri}"]))["removed"] == 0
    assert run_job("vacuum", f"table={uri}", "retain_hours=0")["removed"] == FEWEST_FILES + 1
    fs, path = storage.filesystem(f"{uri}/model=m")
    assert len(fs.find(path)) == len(files_of(table, "m")) == 1
    assert storage.exists(f"{uri}/_runs/r/summary.json")
    assert Ledger(scan_keys(create_table(uri, CLASSES), "m"), 3).rows == FEWEST_FILES
