"""What the driver does between units, in this process; whole runs are in ``tests/system``."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.manifests import read_manifest
from ray_fer.data.sources import list_sources
from ray_fer.errors import UserError
from ray_fer.jobs import pseudo_label as job
from ray_fer.labeling import run as labeling_run
from ray_fer.labeling.dispatch import Dispatcher
from ray_fer.labeling.embeddings import Embeddings
from ray_fer.labeling.run import LabelingRun
from ray_fer.labeling.work import UnitResult, WorkUnit, joint_stats
from ray_fer.labeling.worker import Labeller, Plan
from tests.images import tiny_model, write_pictures
from tests.onnx_nets import FERPLUS_SIDECAR, write_net, write_sidecar

SLOWEST_SECONDS = 60.0


def rows_in(table: str) -> int:
    return int(DeltaTable(table).to_pyarrow_table().num_rows)


def arguments_for(folder: Path, pictures: int, *more: str) -> list[str]:
    write_pictures(folder / "in", range(pictures))
    teacher = tiny_model(str(folder / "model")).uri
    return [f"source={folder / 'in'}", f"teacher={teacher}", f"table={folder / 'table'}", "engine=torch", *more]


def test_what_is_finished_is_committed_while_the_last_unit_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = str(tmp_path / "table")
    seen = []

    def units(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
        keys = dispatcher.take_few(9, SLOWEST_SECONDS)
        assert keys is not None
        dispatcher.finished(0, keys.num_rows, 1.0)
        labeller = Labeller(plan)
        done = [labeller.label(WorkUnit(number, keys.slice(2 * number, 2)), isolated=False) for number in range(3)]
        # The first may be committed at once, for the run has been going on for long enough; the second is too early.
        yield from done[:2]
        deadline = time.monotonic() + SLOWEST_SECONDS
        while rows_in(table) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        seen.append(rows_in(table))
        yield done[2]

    monkeypatch.setattr(labeling_run, "label_few", units)
    monkeypatch.setattr(labeling_run, "TICK_SECONDS", 0.1)
    job.pseudo_label(load_config("pseudo_label", arguments_for(tmp_path, 6, "commit_seconds=2")))
    assert (seen, rows_in(table)) == ([4], 6)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_finished_is_committed_when_a_run_is_stopped(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def units(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
        keys = dispatcher.take_few(9, SLOWEST_SECONDS)
        assert keys is not None
        yield Labeller(plan).label(WorkUnit(0, keys.slice(0, 2)), isolated=False)
        raise error("stopped")

    monkeypatch.setattr(labeling_run, "label_few", units)
    with pytest.raises(error, match="stopped"):
        job.pseudo_label(load_config("pseudo_label", arguments_for(tmp_path, 3, "commit_seconds=600")))
    assert rows_in(str(tmp_path / "table")) == 2


def test_a_commit_that_fails_meanwhile_is_tried_again_by_the_run_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, failed = LabelingRun._commit, Counter[str]()

    def failing(run: LabelingRun, patience: float) -> None:
        if patience and any(teacher.pending for teacher in run.teachers) and not failed["once"]:
            failed["once"] += 1
            raise RuntimeError("no commit in 30 tries")
        commit(run, patience)

    def units(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
        keys = dispatcher.take_few(9, SLOWEST_SECONDS)
        assert keys is not None
        dispatcher.finished(0, keys.num_rows, 1.0)
        done = Labeller(plan).label(WorkUnit(0, keys), isolated=False)
        run.progress.add(joint_stats(done.statuses, list(done.stats.values())))
        run.teachers[0].add(done.files[plan.models[0]], done.stats[plan.models[0]], watch=False)
        run._commit_meanwhile()
        return
        yield

    config = load_config("pseudo_label", arguments_for(tmp_path, 3))
    run = LabelingRun(config, job._checked(config))
    monkeypatch.setattr(LabelingRun, "_commit", failing)
    monkeypatch.setattr(labeling_run, "label_few", units)
    run.go()
    assert "not committed yet: no commit in 30 tries" in caplog.text
    assert (failed["once"], rows_in(str(tmp_path / "table"))) == (1, 3)


def test_a_run_in_which_nothing_could_be_labelled_says_so_and_keeps_its_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"bad-{number}.jpg").write_bytes(b"no picture")
    arguments = arguments_for(tmp_path, 0)
    with pytest.raises(
        UserError, match=r"nothing could be labelled: 3 of 3 images failed \(3 undecodable\), most often: \w"
    ):
        job.pseudo_label(load_config("pseudo_label", arguments))
    table = str(tmp_path / "table")
    assert rows_in(table) == 3
    (run,) = storage.list_dir(f"{table}/_runs")
    summary = json.loads(storage.read_bytes(f"{table}/_runs/{run}/summary.json"))
    assert summary["statuses"] == {"undecodable": 3}
    with pytest.raises(UserError, match="nothing could be labelled: earlier runs failed on all 3 images"):
        job.pseudo_label(load_config("pseudo_label", arguments))
    assert rows_in(table) == 3


def test_an_image_is_labelled_once_whatever_identity_it_is_listed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table, arguments = str(tmp_path / "table"), arguments_for(tmp_path, 6)
    prefix = ""

    def listed(sources: list[str], counts: Counter[str]) -> Iterator[pa.Table]:
        for page in list_sources(sources, counts):
            yield page.set_column(1, "identity", pc.binary_join_element_wise(prefix, page["identity"], ""))

    monkeypatch.setattr(labeling_run, "list_sources", listed)

    def run(said: str) -> tuple[int, ...]:
        nonlocal prefix
        prefix = said
        summary = job.pseudo_label(load_config("pseudo_label", arguments))
        names = ("already_labelled", "labelled", "read_otherwise", "gone", "returned")
        return (*(summary[name] for name in names), rows_in(table))

    assert run("a") == (0, 6, 6, 0, 0, 6)
    assert f"6 of 6 {labeling_run.READ_OTHERWISE}" in caplog.text
    assert run("a") == (6, 0, 0, 0, 0, 6)
    assert run("") == (6, 0, 0, 0, 0, 6)
    assert run("b") == (6, 0, 6, 0, 0, 12)  # a mark for each
    assert run("b") == run("a") == run("") == (6, 0, 0, 0, 0, 12)
    rows = DeltaTable(table).to_pyarrow_table().to_pylist()
    assert Counter(row["status"] for row in rows) == {"ok": 6, "known": 6}
    assert {row["listed_identity"][:1] + row["identity"] for row in rows} == {
        f"{said}{row['identity']}" for row in rows for said in "ab"
    }
    gone = Path(str(rows[0]["uri"]))
    gone.unlink()
    assert run("b") == (5, 0, 0, 1, 0, 13)


def test_embeddings_come_to_what_is_labelled_once_and_change_no_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, arguments = str(tmp_path / "table"), arguments_for(tmp_path, 5)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")

    def label(*more: str) -> dict[str, Any]:
        return job.pseudo_label(load_config("pseudo_label", [*arguments, *more]))

    def stopped(dispatcher: Dispatcher, plan: Plan) -> Iterator[UnitResult]:
        keys = dispatcher.take_few(9, SLOWEST_SECONDS)
        assert keys is not None
        yield Labeller(plan).label(WorkUnit(0, keys.slice(0, 2)), isolated=False)
        raise RuntimeError("stopped")

    assert label()["labelled"] == 6
    dry = label("embed=true", "dry_run=true")
    assert (dry["to_label"], dry["counts"]["without_embedding"], dry["counts"]["failed_permanent"]) == (5, 5, 1)
    with monkeypatch.context() as patch:
        patch.setattr(labeling_run, "label_few", stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            label("embed=true", "commit_seconds=600")
    rest = label("embed=true")
    assert (rest["labelled"], rest["already_labelled"]) == (3, 3)
    facts = {"depths": [2, 3, 4], "dimension": 896, "dtype": "float16", "bytes_per_row": 1792}
    assert rest["embeddings"] == {rest["model"]: facts}
    assert [label("embed=true")["labelled"], label()["labelled"]] == [0, 0]
    probs: dict[str, list[list[float]]] = {}
    for row in DeltaTable(table).to_pyarrow_table().to_pylist():
        probs.setdefault(row["uri"], []).append(row["probs"])
    assert sorted(map(len, probs.values())) == [1, 2, 2, 2, 2, 2]
    assert all(each[0] == each[-1] for each in probs.values())
    found = Embeddings(DeltaTable(table), rest["model"])
    assert (len(found), found.left_out["superseded"], found.left_out["without_embedding"]) == (5, 5, 0)


def test_the_pictures_of_a_manifest_are_embedded_once(tmp_path: Path) -> None:
    table, teacher = str(tmp_path / "table"), tiny_model(str(tmp_path / "model")).uri
    write_pictures(tmp_path / "in", range(3))
    lines = [f"in/part-{number}/{number:05}.jpg,anger" for number in range(3)]
    (tmp_path / "labeled.csv").write_text("\n".join(["path,label", *lines]))
    manifest = read_manifest(f"{tmp_path}/labeled.csv")
    assert job.embed_pictures(manifest.uris, teacher, table, engine="torch")["labelled"] == 3
    arguments = [f"source={tmp_path}/labeled.csv", f"teacher={teacher}", f"table={table}", "embed=true"]
    again = job.pseudo_label(load_config("pseudo_label", arguments))
    assert (again["labelled"], again["already_labelled"]) == (0, 3)
    (block,) = Embeddings(DeltaTable(table), again["model"])
    assert sorted(block.uris) == sorted(manifest.uris)
    assert block.embeddings.shape == (3, 896)
    assert len(np.unique(block.embeddings, axis=0)) == 3


def test_other_layers_of_a_labelled_net_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    """The layers are no part of the model's id."""
    write_net(tmp_path / "net.onnx", ["n", 1, 64, 64], 8, gain=0.05)
    write_pictures(tmp_path / "in", range(2))
    arguments = [f"source={tmp_path}/in", f"teacher={tmp_path}/net.onnx", f"table={tmp_path}/table", "embed=true"]
    for layer, said in (
        ("flat", None),
        ("output", r"^table=\S+: its embeddings of model \w+ are {'depths': \['flat'\]"),
    ):
        write_sidecar(tmp_path / "net.onnx", FERPLUS_SIDECAR | {"embedding": layer})
        with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
            job.pseudo_label(load_config("pseudo_label", arguments))
    assert rows_in(str(tmp_path / "table")) == 2
