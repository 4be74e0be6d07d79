"""The main job when the world around it fails: what the table holds afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.images import deadly_picture, write_deadly_decoder, write_pictures
from tests.system.jobs import ROOT, run_job
from tests.system.test_pseudo_label import keys_of, rows_of


@pytest.mark.slow
def test_an_object_that_kills_its_decoder_is_one_failure_row(tmp_path: Path, model: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(150))
    victims = [source / "part-0" / "00000.jpg", source / "part-1" / "00100.jpg"]
    for path in victims:
        path.write_bytes(deadly_picture())
    env = {"PYTHONPATH": os.pathsep.join([write_deadly_decoder(tmp_path / "deadly"), str(ROOT)])}
    arguments = (f"source={source}", f"teacher={model}", f"table={table}", "engine=torch")
    summary = run_job("pseudo_label", *arguments, env=env)
    assert summary["statuses"] == {"crashed": 2, "ok": 148}
    assert {row["uri"] for row in rows_of(table) if row["status"] == "crashed"} == {str(path) for path in victims}
    assert set(keys_of(table).values()) == {1}
    assert run_job("pseudo_label", *arguments, env=env)["labelled"] == 0
