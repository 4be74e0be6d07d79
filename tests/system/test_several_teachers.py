"""Several teachers in one pass: images are read once, every teacher has each exactly once, whatever dies on the way."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ray_fer.config import load_config
from ray_fer.data.decode import decode
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.models.artifact import open_artifact
from ray_fer.models.softmax import softmax
from ray_fer.models.torch_engine import TorchEngine
from tests.images import CLASSES, tiny_model, write_pictures
from tests.system.faults import dying_commits
from tests.system.jobs import failing_job, refusal, run_job, start_job
from tests.system.test_faults import BUSY, assert_as_if_undisturbed, on_path
from tests.system.test_pseudo_label import QUICK, keys_of, rows_of, wait_for_rows


@pytest.fixture
def smaller(tmp_path: Path) -> str:
    """A teacher of smaller crops than those of ``model``."""
    return tiny_model(str(tmp_path / "smaller"), 4, image_size=24).uri


def id_of(teacher: str) -> str:
    return open_artifact(teacher).model_id("float32")


def probs_of(table: str, model: str) -> dict[str, Any]:
    return {str(row["uri"]): row["probs"] for row in rows_of(table) if row["model"] == model}


def rows_per_model(table: str) -> Counter[object]:
    assert set(keys_of(table).values()) == {1}
    return Counter(row["model"] for row in rows_of(table))


def test_one_pass_gives_the_rows_of_each_alone(tmp_path: Path, model: str, smaller: str) -> None:
    source, both = tmp_path / "in", str(tmp_path / "both")
    write_pictures(source, range(30))
    (source / "bad.jpg").write_bytes(b"no picture")
    places = (f"source={source}", *QUICK)
    summary = run_job("pseudo_label", *places, f"teacher=[{smaller},{model}]", f"table={both}")
    assert [summary[key] for key in ("listed", "already_labelled", "labelled")] == [31, 0, 31]
    assert summary["statuses"] == {"ok": 30, "undecodable": 1}
    assert "model" not in summary
    assert sum(summary["predicted"].values()) == 60
    alone = run_job("pseudo_label", *places, f"teacher={model}", f"table={tmp_path / 'alone'}")
    assert list(summary["models"]) == [id_of(smaller), id_of(model)]
    mine = summary["models"][id_of(model)]
    assert mine["teacher"] == model
    for key in ("labelled", "labelled_by_others", "already_labelled", "statuses", "predicted", "sure_share"):
        assert mine[key] == alone[key]
    assert summary["models"][id_of(smaller)]["labelled"] == 31
    page = Path(summary["report"]).read_text()
    assert all(page.count(each) >= 2 for each in summary["models"])  # in the heading and in a table

    columns = ("uri", "identity", "digest", "source", "probs", "label", "confidence", "status", "error", "model")
    ours = sorted(tuple(str(row[c]) for c in columns) for row in rows_of(both) if row["model"] == id_of(model))
    assert ours == sorted(tuple(str(row[c]) for c in columns) for row in rows_of(str(tmp_path / "alone")))
    found = probs_of(both, id_of(smaller))
    assert found.pop(str(source / "bad.jpg")) is None
    # The crop that it sees alone is made from a JPEG that was shrunk further: by 0.7 grey levels another on average.
    crops = np.stack([decode(Path(uri).read_bytes(), 24) for uri in found])
    wanted = softmax(TorchEngine(open_artifact(smaller))(crops))
    np.testing.assert_allclose(list(found.values()), wanted, atol=0.01)


def test_a_second_teacher_labels_what_it_lacks_and_the_first_nothing(tmp_path: Path, model: str, smaller: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(30))
    places = (f"source={source}", f"table={table}")
    first = run_job("pseudo_label", *places, *QUICK, f"teacher={model}")
    assert (first["model"], first["labelled"]) == (id_of(model), 30)
    both = f"teacher=[{model},{smaller}]"
    write_pictures(source, range(30, 40))
    explained = pseudo_label(load_config("pseudo_label", [*places, both, "dry_run=true"]))
    assert explained["to_label"] == 40
    counts = {each: {kind: n for kind, n in explained["models"][each]["counts"].items() if n} for each in id_pair(both)}
    assert counts == {id_of(model): {"new": 10, "done": 30}, id_of(smaller): {"new": 40}}

    chosen = ("selection.ensemble=agreement", "selection.threshold=0.01", f"select={tmp_path / 's'}")
    second = run_job("pseudo_label", *places, *QUICK, both, *chosen)
    assert [second[key] for key in ("listed", "already_labelled", "labelled")] == [40, 0, 40]
    labelled = {each: (part["already_labelled"], part["labelled"]) for each, part in second["models"].items()}
    assert labelled == {id_of(model): (30, 10), id_of(smaller): (0, 40)}
    assert rows_per_model(table) == {id_of(model): 40, id_of(smaller): 40}

    explained = pseudo_label(load_config("pseudo_label", [*places, f"teacher=[{smaller},{model}]", "dry_run=true"]))
    assert explained["to_label"] == 0

    assert second["selection"]["models"] == [id_of(model), id_of(smaller)]
    agreed = {}
    for uri, ours in probs_of(table, id_of(model)).items():
        theirs = probs_of(table, id_of(smaller))[uri]
        if np.argmax(ours) == np.argmax(theirs):
            agreed[uri] = (np.array(ours) + theirs) / 2
    assert 0 < len(agreed) < 40
    selection = pl.read_parquet(tmp_path / "s" / "selection.parquet")
    assert selection["uri"].to_list() == sorted(agreed)
    np.testing.assert_allclose(selection["target"].to_list(), [agreed[uri] for uri in sorted(agreed)], atol=1e-6)


def id_pair(argument: str) -> list[str]:
    return [id_of(teacher) for teacher in argument.removeprefix("teacher=").strip("[]").split(",")]


def test_each_teacher_counts_its_own_tries(tmp_path: Path, model: str, smaller: str) -> None:
    """Of what cannot be read now, in this process and over Ray."""
    table, sources = str(tmp_path / "table"), tmp_path / "list.txt"
    write_pictures(tmp_path / "in", range(1))
    (good,) = (tmp_path / "in").rglob("*.jpg")
    sources.write_text(f"{good}\nnot-there.jpg\n")
    places = (f"source={sources}", f"table={table}", "engine=torch")
    for each in ((f"teacher={model}",), (f"teacher=[{smaller},{model}]", "actors=1"), (f"teacher={smaller}",)):
        run_job("pseudo_label", *places, *each)
    rows = sorted((row["uri"] == str(good), row["model"] == id_of(model), row["attempt"]) for row in rows_of(table))
    failures = [(False, ours, attempt) for ours in (False, True) for attempt in (1, 2)]
    assert rows == [*failures, (True, False, 1), (True, True, 1)]


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(tmp_path: Path, model: str, smaller: str) -> None:
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(600))
    arguments = (f"source={source}", f"teacher=[{model},{smaller}]", *BUSY)
    process = start_job("pseudo_label", *arguments, f"table={table}")
    wait_for_rows(table, 128, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 128 <= len(rows_of(table)) < 1200
    run_job("pseudo_label", *arguments, f"table={table}")
    assert rows_per_model(table) == {id_of(model): 600, id_of(smaller): 600}
    assert_as_if_undisturbed(table, *arguments)


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_driver_dies_between_the_commits_of_two_teachers(
    when: str, tmp_path: Path, model: str, smaller: str
) -> None:
    """What one teacher has and the other lacks is read once more, for the other alone."""
    source, table = tmp_path / "in", str(tmp_path / "table")
    write_pictures(source, range(300))
    arguments = (f"source={source}", f"teacher=[{model},{smaller}]", *BUSY)
    deadly = on_path(dying_commits(tmp_path / "deadly", when, after=3 if when == "before" else 2))
    status, _ = failing_job("pseudo_label", *arguments, f"table={table}", env=deadly)
    assert status == -signal.SIGKILL
    survived = rows_per_model(table)
    assert survived[id_of(model)] > survived[id_of(smaller)] > 0
    summary = run_job("pseudo_label", *arguments, f"table={table}")
    assert summary["already_labelled"] == survived[id_of(smaller)]
    assert {each: part["already_labelled"] for each, part in summary["models"].items()} == survived
    assert {each: part["labelled"] for each, part in summary["models"].items()} == {
        each: 300 - count for each, count in survived.items()
    }
    assert_as_if_undisturbed(table, *arguments)


def test_teachers_that_do_not_go_together_are_one_line(
    tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "in", range(1))
    other = tiny_model(str(tmp_path / "other"), 1, classes=CLASSES[::-1]).uri
    places = [f"source={tmp_path / 'in'}", f"table={tmp_path / 't'}"]
    said = refusal("pseudo_label", pseudo_label, [*places, f"teacher=[{model},{other}]"], caplog)
    theirs, ours = ", ".join(CLASSES[::-1]), ", ".join(CLASSES)
    assert said == f"teacher={other}: its classes are {theirs}; those of teacher={model} are {ours}"
    said = refusal("pseudo_label", pseudo_label, [*places, f"teacher=[{model},{model}/]"], caplog)
    assert said == f"teacher={model}: the same model as teacher={model}"
    assert not (tmp_path / "t").exists()
