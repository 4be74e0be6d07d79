"""A few images are labelled without Ray, with the same rows and the same guarantees."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_fer.labeling.dispatch import FEW_IMAGES
from tests.images import deadly_picture, write_deadly_decoder, write_pictures
from tests.system.jobs import ROOT, run_job
from tests.system.test_pseudo_label import QUICK, keys_of, rows_of


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie in it, whose paths must not be long."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_ray_is_started_for_many_images_only(tmp_path: Path, short_folder: Path, model: str) -> None:
    source, table, sessions = tmp_path / "in", str(tmp_path / "table"), short_folder / "ray"
    path = os.pathsep.join([write_deadly_decoder(tmp_path / "deadly"), str(ROOT)])
    env = {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(sessions), "PYTHONPATH": path}
    arguments = (f"source={source}", f"teacher={model}", "engine=torch")
    write_pictures(source, range(38))
    (source / "deadly.jpg").write_bytes(deadly_picture())
    (source / "broken.jpg").write_bytes(b"no picture")

    few = run_job("pseudo_label", *arguments, f"table={table}", env=env)
    assert few["statuses"] == {"crashed": 1, "ok": 38, "undecodable": 1}
    assert run_job("pseudo_label", *arguments, f"table={table}", env=env)["labelled"] == 0
    assert not sessions.exists()

    run_job("pseudo_label", *arguments, *QUICK, f"table={tmp_path}/over-ray", env=env)
    assert sessions.exists()
    columns = ("uri", "identity", "digest", "source", "label", "confidence", "status", "error", "model")
    ours, expected = (
        sorted(tuple(str(row[column]) for column in columns) for row in rows_of(name))
        for name in (table, f"{tmp_path}/over-ray")
    )
    assert ours == expected

    for number in range(FEW_IMAGES + 1):
        (source / f"{number}.jpg").write_bytes(b"no picture either")
    many = run_job("pseudo_label", *arguments, f"table={table}", "max_failure_share=1", env=env)
    assert (many["labelled"], many["already_labelled"]) == (FEW_IMAGES + 1, 40)
    assert Path(many["report"]).exists()
    assert set(keys_of(table).values()) == {1}
