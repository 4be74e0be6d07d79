from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from ray_fer import storage
from ray_fer.config import load_config
from ray_fer.data.uris import Face
from ray_fer.errors import UserError
from ray_fer.feedback.store import FeedbackStore
from ray_fer.jobs import select_pseudo_labels as selecting
from ray_fer.jobs.select_pseudo_labels import predicted_counts, select_pseudo_labels
from ray_fer.labeling import predictions
from ray_fer.labeling import select as labeling_select
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.config import SelectPseudoLabelsConfig
from ray_fer.labeling.exclusions import Exclusions
from ray_fer.labeling.predictions import Predictions, newest_predictions
from ray_fer.labeling.table import FILE_SCHEMA, create_table, open_table, write_file
from ray_fer.models.artifact import Artifact
from ray_fer.models.model_id import model_id
from ray_fer.selection import RULES
from ray_fer.selection.file import SCHEMA
from tests.images import CLASSES, picture, tiny_model

NOTHING = Exclusions()
START = datetime(2026, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("teacher") / "m"))


def ok(uri: str, probs: Sequence[float], identity: str = "v1", minute: int = 0, digest: bytes | None = None) -> Row:
    return {
        "uri": uri,
        "identity": identity,
        "digest": digest or xxhash.xxh3_128_digest(f"{uri} {identity}".encode()),
        "source": "s",
        "probs": list(probs),
        "label": CLASSES[int(np.argmax(probs))],
        "confidence": max(probs),
        "status": "ok",
        "run": "r",
        "labelled_at": START + timedelta(minutes=minute),
    }


def failed(uri: str, status: str = "unreadable", identity: str = "v1", minute: int = 0) -> Row:
    common = {"uri": uri, "identity": identity, "source": "s", "status": status, "error": "x", "run": "r"}
    return common | {"labelled_at": START + timedelta(minutes=minute)}


def write(uri: str, model: str, *files: list[Row], classes: tuple[str, ...] = CLASSES) -> None:
    """Each list of rows is a file of a run of its own, in the order in which they were committed."""
    table = create_table(uri, classes)
    # Straight to the log: the committer keeps rows of two runs from meeting, selection must not rely on it.
    for number, rows in enumerate(files):
        file = write_file(uri, model, pa.Table.from_pylist(rows, schema=FILE_SCHEMA), f"r{number}")
        Committer(create_table(uri, classes), model, f"r{number}")._try([file])
    table.update_incremental()


def newest(
    tmp_path: Path,
    *files: list[Row],
    excluded: Exclusions = NOTHING,
    model: str = "m",
) -> tuple[dict[str, Any], Any]:
    uri = str(tmp_path / "t")
    write(uri, model, *files)
    table = open_table(uri)
    assert table is not None
    found, left_out = newest_predictions(table, [model], excluded)
    return dict(zip(uris_of(found), found.probs(0, 3).tolist(), strict=True)), left_out


def uris_of(found: Predictions) -> list[str]:
    return [uri for _, part in found.column("uri") for uri in part]


A, B = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
NONE = {"superseded": 0, "gone": 0, "failed": 0, "duplicate": 0, "excluded": 0}


# --- which predictions count ---


def test_an_overwritten_object_counts_as_what_it_is_now(tmp_path: Path) -> None:
    found = newest(tmp_path, [ok("x", B, "v2", minute=5)], [ok("x", A, "v1"), ok("y", A)])
    assert found == ({"x": B, "y": A}, NONE | {"superseded": 1})


def test_what_became_of_an_object_counts_even_if_it_cannot_be_read(tmp_path: Path) -> None:
    """The prediction of the old content would be a wrong label for the new one."""
    found = newest(tmp_path, [ok("x", A, "v1")], [failed("x", "undecodable", "v2", minute=5)])
    assert found == ({}, NONE | {"superseded": 1, "failed": 1})


def mark(uri: str, status: str, identity: str = "v1", minute: int = 0) -> Row:
    return failed(uri, status, identity, minute) | {"error": None}


def test_what_is_gone_is_left_out(tmp_path: Path) -> None:
    found = newest(tmp_path, [ok("x", A), ok("y", A), ok("z", B)], [mark("x", "gone", minute=1)])
    assert found == ({"y": A, "z": B}, NONE | {"gone": 1})


@pytest.mark.parametrize("again", [mark("x", "returned", minute=2), ok("x", A, minute=2)])
def test_what_came_back_counts_again(again: Row, tmp_path: Path) -> None:
    found, left_out = newest(tmp_path, [ok("x", A)], [mark("x", "gone", minute=1)] * 2, [again])
    assert found == {"x": A}
    assert left_out["gone"] == 0


def test_a_mark_that_came_late_does_not_hide_what_was_labelled_after_it(tmp_path: Path) -> None:
    found, left_out = newest(tmp_path, [ok("x", A), ok("x", B, "v2", minute=5)], [mark("x", "gone", minute=1)])
    assert (found, left_out) == ({"x": B}, NONE | {"superseded": 1})


def test_a_content_that_returned_is_the_newest(tmp_path: Path) -> None:
    rows = [ok("x", A, "v1"), ok("x", B, "v2", minute=1), mark("x", "gone", "v2", minute=2)]
    found, left_out = newest(tmp_path, rows, [mark("x", "returned", "v1", minute=3)])
    assert (found, left_out) == ({"x": A}, NONE | {"superseded": 1})


@pytest.mark.parametrize("minute", [-5, 0, 5])
def test_of_members_with_one_name_the_last_in_its_shard_counts(minute: int, tmp_path: Path) -> None:
    """As tables hold them that were made when all members of a name were listed."""
    uris = [f"s.tar!/{i}.jpg" for i in range(9)]
    first = [ok(uri, A, f"v1@{512 + i}+9") for i, uri in enumerate(uris)]
    last = [ok(uri, B, f"v1@{10240 + i}+1", minute) for i, uri in enumerate(uris)]
    found, left_out = newest(tmp_path, [*first, *last, failed("s.tar!/x.jpg", "undecodable", "v1@99999+5", minute)], [])
    assert found == dict.fromkeys(uris, B)
    assert left_out == NONE | {"superseded": 9, "failed": 1}


def test_a_remade_shard_counts_as_it_is_now_wherever_its_members_lie(tmp_path: Path) -> None:
    rows = [ok("s.tar!/a.jpg", A, "v1@90000+9"), ok("s.tar!/a.jpg", B, "v2@512+9", 5)]
    assert newest(tmp_path, rows)[0] == {"s.tar!/a.jpg": B}
    rows = [ok("s.tar!/a.jpg", A, "v1@512+9"), failed("s.tar!/a.jpg", "undecodable", "v1@9999+9")]
    assert newest(tmp_path / "failed", rows) == ({}, NONE | {"superseded": 1, "failed": 1})


def test_what_a_list_names_twice_counts_as_what_could_be_had(tmp_path: Path) -> None:
    uris = [f"s3://b/{i}.jpg" for i in range(9)]
    rows = [row for uri in uris for row in (ok(uri, A, "v2"), failed(uri, "missing", "v1"))]
    assert newest(tmp_path, rows) == (dict.fromkeys(uris, A), NONE | {"superseded": 9})


@pytest.mark.parametrize("minute", [-5, 0, 5])
def test_a_success_supersedes_a_failure_of_the_same_content(minute: int, tmp_path: Path) -> None:
    found = newest(tmp_path, [failed("x", minute=minute), failed("x", minute=minute + 1)], [ok("x", A)])
    assert found == ({"x": A}, NONE | {"superseded": 2})


def test_a_late_failure_of_the_same_content_still_tells_that_it_is_the_newest(tmp_path: Path) -> None:
    found = newest(tmp_path, [ok("x", A, "v1", 0), ok("x", B, "v2", 5), failed("x", "unreadable", "v1", 9)])
    assert found == ({"x": A}, NONE | {"superseded": 2})


def test_the_newest_of_two_successes_counts(tmp_path: Path) -> None:
    found = newest(tmp_path, [ok("x", B, minute=5), ok("x", A, minute=0)])
    assert found == ({"x": B}, NONE | {"superseded": 1})


def test_only_failures(tmp_path: Path) -> None:
    assert newest(tmp_path, [failed("x"), failed("y", "missing")]) == ({}, NONE | {"failed": 2})


def test_the_same_picture_counts_once(tmp_path: Path) -> None:
    rows = [ok("b", A, digest=b"1"), ok("a", A, digest=b"1"), ok("c", B, digest=b"2")]
    assert newest(tmp_path, rows) == ({"a": A, "c": B}, NONE | {"duplicate": 1})


def test_excluded_pictures_are_left_out(tmp_path: Path) -> None:
    rows = [ok("a", A, digest=b"1"), ok("b", B, digest=b"2"), ok("c", B, digest=b"2")]
    assert newest(tmp_path, rows, excluded=Exclusions(digests=frozenset({b"2", b"3"}))) == (
        {"a": A},
        NONE | {"duplicate": 1, "excluded": 1},
    )


@pytest.mark.parametrize("model", ["m", model_id("0123456789abcdef", "float32", False, True)])
def test_a_picture_is_excluded_by_name_whatever_it_held_when_it_was_labelled(model: str, tmp_path: Path) -> None:
    uris = {"a": A, "b": B} if model == "m" else {face("a", 1)["uri"]: A, face("b", 1)["uri"]: B}
    found, left_out = newest(
        tmp_path, [ok(*row) for row in uris.items()], excluded=Exclusions(frozenset({"a", "c"})), model=model
    )
    assert list(found.values()) == [B]
    assert left_out["excluded"] == 1


def test_other_models_do_not_count(tmp_path: Path) -> None:
    write(str(tmp_path / "t"), "other", [ok("x", A), ok("z", A)])
    assert newest(tmp_path, [ok("x", B)])[0] == {"x": B}


def manifest(folder: Path, rows: dict[str, str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows.items()))
    return str(folder / "m.csv")


# --- the job ---

PROBS = [[0.9, 0.05, 0.05], [0.15, 0.7, 0.15], [0.1, 0.85, 0.05], [0.2, 0.2, 0.6], [0.34, 0.33, 0.33]]


def config(tmp_path: Path, teacher: Artifact, *arguments: str) -> SelectPseudoLabelsConfig:
    given = (f"table={tmp_path}/t", f"teacher={teacher.uri}", f"out={tmp_path}/out", *arguments)
    return load_config("select_pseudo_labels", given)  # type: ignore[no-any-return]


def select(tmp_path: Path, teacher: Artifact, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if not (tmp_path / "t").exists():
        rows = [ok(f"u{number}", probs) for number, probs in enumerate(PROBS)]
        write(str(tmp_path / "t"), teacher.model_id("float32"), rows)
    summary = select_pseudo_labels(config(tmp_path, teacher, *arguments))
    table = pq.read_table(tmp_path / "out" / "selection.parquet")
    assert table.schema.equals(SCHEMA)
    assert storage.read_json(f"{tmp_path}/out/selection.json") == {
        key: value for key, value in summary.items() if key != "selection"
    }
    return summary, table.to_pylist()


def test_soft_targets_are_the_predictions(tmp_path: Path, teacher: Artifact) -> None:
    summary, rows = select(tmp_path, teacher)
    assert [(row["uri"], row["label"]) for row in rows] == [("u0", "neutral"), ("u2", "anger")]
    np.testing.assert_allclose([row["target"] for row in rows], [PROBS[0], PROBS[2]], rtol=1e-6)
    np.testing.assert_allclose([row["confidence"] for row in rows], [0.9, 0.85], rtol=1e-6)
    assert [row["weight"] for row in rows] == [1, 1]
    assert summary["accepted"] == 2
    assert summary["considered"] == 5
    assert summary["counts"] == {"neutral": 1, "anger": 1, "happiness": 0}
    assert summary["predicted"] == {"neutral": 2, "anger": 2, "happiness": 1}
    assert summary["thresholds"] == dict.fromkeys(CLASSES, 0.8)
    assert summary["feedback_version"] == 0
    assert summary["left_out"] == NONE
    assert summary["model"] == teacher.model_id("float32")


def test_hard_targets_are_the_class(tmp_path: Path, teacher: Artifact) -> None:
    _, rows = select(tmp_path, teacher, "selection.targets=hard", "selection.threshold=0.6")
    assert [row["label"] for row in rows] == ["neutral", "anger", "anger", "happiness"]
    assert [row["target"] for row in rows] == np.eye(3)[[0, 1, 1, 2]].tolist()


def test_nothing_accepted_is_an_empty_selection(tmp_path: Path, teacher: Artifact) -> None:
    summary, rows = select(tmp_path, teacher, "selection.threshold=1")
    assert rows == []
    assert summary["accepted"] == 0


def test_feedback_moves_the_thresholds_around_the_config_s(tmp_path: Path, teacher: Artifact) -> None:
    confusion = [[80, 20, 0], [2, 98, 0], [60, 0, 40]]
    store = FeedbackStore(str(tmp_path / "feedback"), CLASSES)
    version = 0
    for epoch in range(5):
        version = store.update(confusion, f"epoch-{epoch}").version
    snapshot = store.snapshot()
    moves = snapshot.thresholds - 0.8
    assert np.ptp(moves) > 0.01
    summary, rows = select(tmp_path, teacher, f"feedback={tmp_path}/feedback", "selection.threshold=0.6")
    assert summary["feedback_version"] == version == 5
    np.testing.assert_allclose(list(summary["thresholds"].values()), 0.6 + moves, atol=1e-4)
    tilted = np.array(PROBS) / np.exp(snapshot.log_debiasing_prior)
    debiased = {f"u{k}": p / p.sum() for k, p in enumerate(tilted)}
    assert {row["uri"] for row in rows} == {uri for uri, p in debiased.items() if p.max() >= 0.6 + moves[p.argmax()]}
    for row in rows:
        np.testing.assert_allclose(row["target"], debiased[row["uri"]], rtol=1e-5)
        weight = snapshot.sampling_weights[CLASSES.index(row["label"])]
        assert row["weight"] == pytest.approx(weight, rel=1e-5)


def test_neutral_feedback_changes_nothing(tmp_path: Path, teacher: Artifact) -> None:
    without = select(tmp_path, teacher)
    assert select(tmp_path, teacher, f"feedback={tmp_path}/none")[1] == without[1]


def test_either_number_format_is_found(tmp_path: Path, teacher: Artifact) -> None:
    write(str(tmp_path / "t"), teacher.model_id("bfloat16"), [ok("x", A)])
    assert select(tmp_path, teacher)[0]["model"] == teacher.model_id("bfloat16")
    with pytest.raises(UserError, match="holds no prediction of teacher="):
        select(tmp_path, teacher, "precision=float32")


def test_what_is_in_the_validation_set_is_not_selected(tmp_path: Path, teacher: Artifact) -> None:
    val = manifest(tmp_path / "val", {"a.jpg": "anger"})
    (tmp_path / "val" / "a.jpg").write_bytes(picture(1))
    rows = [ok("leak", A, digest=xxhash.xxh3_128_digest(picture(1))), ok("fine", A)]
    write(str(tmp_path / "t"), teacher.model_id("float32"), rows)
    summary, selected = select(tmp_path, teacher, f"selection.exclude=[{val}]")
    assert [row["uri"] for row in selected] == ["fine"]
    assert summary["left_out"]["excluded"] == 1


def test_the_class_mix_is_of_what_is_selected_from(tmp_path: Path, teacher: Artifact) -> None:
    val = manifest(tmp_path / "val", {"a.jpg": "anger"})
    (tmp_path / "val" / "a.jpg").write_bytes(picture(1))
    held_out = ok("held out", A, digest=xxhash.xxh3_128_digest(picture(1)))
    twice = [ok(uri, B, digest=b"2") for uri in "xy"]
    rows = [held_out, *twice, ok("was", A, "v1"), ok("went", A), failed("bad")]
    now = [ok("was", B, "v2", minute=5), mark("went", "gone", minute=5), ok("fine", A)]
    write(str(tmp_path / "t"), teacher.model_id("float32"), rows, now)
    given = config(tmp_path, teacher, f"selection.exclude=[{val}]")
    assert predicted_counts(given).tolist() == [1, 2, 0]
    assert list(select_pseudo_labels(given)["predicted"].values()) == [1, 2, 0]


def test_what_cannot_be_selected_from_is_one_line(tmp_path: Path, teacher: Artifact) -> None:
    with pytest.raises(UserError, match=f"table={tmp_path}/t: no predictions table there"):
        select_pseudo_labels(config(tmp_path, teacher))
    create_table(str(tmp_path / "t"), CLASSES)
    with pytest.raises(UserError, match=f"table={tmp_path}/t: holds no prediction of teacher={teacher.uri}"):
        select_pseudo_labels(config(tmp_path, teacher))
    write(str(tmp_path / "t"), teacher.model_id("float32"), [failed("x")])
    with pytest.raises(UserError, match=f"table={tmp_path}/t: no usable prediction of teacher={teacher.uri}"):
        select_pseudo_labels(config(tmp_path, teacher))
    assert not (tmp_path / "out").exists()


def test_a_table_of_other_classes_is_refused(tmp_path: Path, teacher: Artifact) -> None:
    write(str(tmp_path / "t"), "m", [ok("x", A)], classes=CLASSES[::-1])
    with pytest.raises(UserError, match="its classes are happiness, anger, neutral; the model's are neutral, anger"):
        select_pseudo_labels(config(tmp_path, teacher))


# --- the rules ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A teacher that says what it was trained on."""
    metrics = {"labelled_counts": [4, 100, 25], "val": {"confidence_of_correct": [0.7, None, 0.95]}}
    return tiny_model(str(tmp_path_factory.mktemp("told") / "m"), 2, metrics=metrics)


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ("threshold", {"u0": 1, "u2": 1}),
        ("top_k", {"u0": 1, "u2": 1, "u3": 1}),  # 2 of 5 pass, so one of each class, of happiness the only one
        ("ada_cm", {"u0": 1, "u2": 1}),  # .8, .8 and .9215
        ("crest", {"u0": 1, "u4": 1, "u2": 0.684, "u3": 0.63}),  # (4/100)^⅓ · 2, and (25/100)^⅓ · 1
        ("flexmatch", {"u0": 1, "u1": 1, "u2": 1, "u3": 1}),  # two of five are sure: thresholds are at their floor
        ("freematch", {"u0": 1, "u1": 1, "u2": 1, "u3": 1}),  # .678 · [.79, 1, .55], and no less than .5
        # Mean [.338, .426, .236], labelled [5, 101, 26] / 132: · [.335, 1.34, .914], normalised.
        ("alignment", {"u1": 1, "u2": 1}),
        ("debiaspl", {"u0": 1, "u2": 1}),
    ],
)
def test_every_rule_selects(rule: str, weights: dict[str, float], tmp_path: Path, trained: Artifact) -> None:
    summary, rows = select(tmp_path, trained, f"selection.rule={rule}")
    assert {row["uri"]: row["weight"] for row in rows} == pytest.approx(weights, abs=1e-3)
    assert summary["accepted"] == len(rows)
    for row in rows:
        assert row["confidence"] == pytest.approx(max(row["target"]))
        assert row["label"] == CLASSES[int(np.argmax(row["target"]))]


def test_softmatch_weighs_every_prediction(tmp_path: Path, trained: Artifact) -> None:
    _, rows = select(tmp_path, trained, "selection.rule=softmatch")
    weights = {row["uri"]: row["weight"] for row in rows}
    assert set(weights) == {f"u{n}" for n in range(5)}
    # Aligned by the mean [.338, .426, .236] their confidences are .89, .60, .80, .71, .44, and .69 in the mean.
    assert weights["u0"] == weights["u2"] == weights["u3"] == 1
    assert weights["u4"] < weights["u1"] < 1


@pytest.mark.parametrize("rule", ["alignment", "ada_cm", "crest"])
def test_a_rule_that_needs_what_the_teacher_does_not_say_is_one_line(
    rule: str, tmp_path: Path, teacher: Artifact
) -> None:
    with pytest.raises(UserError, match=f"selection.rule={rule}: teacher={teacher.uri} does not say the labelled_"):
        select(tmp_path, teacher, f"selection.rule={rule}")
    assert not (tmp_path / "out").exists()


def test_selection_goes_batch_by_batch(tmp_path: Path, trained: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics and cuts do not depend on where the batches end, nor the order on the files in which the rows lie."""
    rng = np.random.default_rng(0)
    rows = [ok(f"u{n:03d}", p) for n, p in enumerate(rng.dirichlet(np.full(3, 0.4), 200).astype(np.float32).tolist())]
    write(str(tmp_path / "t"), trained.model_id("float32"), rows[75:], rows[:70], rows[70:75])
    for rule in RULES:
        at_once = select(tmp_path, trained, f"selection.rule={rule}")[1]
        for module in (predictions, labeling_select, selecting):
            monkeypatch.setattr(module, "BATCH_ROWS", 16)
        parts = select(tmp_path, trained, f"selection.rule={rule}")[1]
        monkeypatch.undo()
        assert [row["uri"] for row in parts] == sorted(row["uri"] for row in at_once)
        np.testing.assert_allclose([row["weight"] for row in parts], [row["weight"] for row in at_once], rtol=1e-4)
        assert at_once
    groups = pq.ParquetFile(tmp_path / "out" / "selection.parquet").num_row_groups
    assert groups > 1


# --- several teachers ---


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_model(str(tmp_path_factory.mktemp("other") / "m"), 1)


def test_only_what_all_have_predicted_counts(tmp_path: Path) -> None:
    """By content: not where one is behind, failed, or has never been."""
    uri = str(tmp_path / "t")
    first = [ok("both", A), ok("mine", A), ok("behind", A, "v1"), ok("behind", A, "v2", minute=5), ok("fails", A)]
    write(uri, "m", first)
    write(uri, "n", [ok("both", B), ok("theirs", B), ok("behind", B, "v1"), failed("fails")])
    table = open_table(uri)
    assert table is not None
    found, left_out = newest_predictions(table, ["m", "n"], NOTHING)
    assert (uris_of(found), found.probs(0, 3).tolist(), found.probs(1, 3).tolist()) == (["both"], [A], [B])
    # Of mine, theirs, behind and fails there is nothing to combine.
    assert left_out == NONE | {"superseded": 1, "failed": 1, "incomplete": 4}


def test_a_picture_that_lies_there_twice_counts_where_all_have_it(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    write(
        uri, "m", [ok("a", A, digest=b"1"), ok("b", A, digest=b"1"), ok("c", A, digest=b"2"), ok("d", A, digest=b"2")]
    )
    write(uri, "n", [ok("b", B, digest=b"1"), ok("c", B, digest=b"2"), ok("d", B, digest=b"2")])
    table = open_table(uri)
    assert table is not None
    found, left_out = newest_predictions(table, ["m", "n"], Exclusions(digests=frozenset({b"2"})))
    assert uris_of(found) == ["b"]
    assert left_out == NONE | {"incomplete": 1, "duplicate": 1, "excluded": 1}


OTHERS = [[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]


@pytest.mark.parametrize(
    ("ensemble", "accepted", "disagreed"), [("mean", ["u0", "u1"], 0), ("agreement", ["u0", "u1"], 1)]
)
def test_an_ensemble_is_selected_from_by_its_own_confidence(
    ensemble: str, accepted: list[str], disagreed: int, tmp_path: Path, teacher: Artifact, other: Artifact
) -> None:
    for model, probs in ((teacher, PROBS), (other, OTHERS)):
        write(str(tmp_path / "t"), model.model_id("float32"), [ok(f"u{n}", p) for n, p in enumerate(probs)])
    both = f"teacher=[{teacher.uri},{other.uri}]"
    summary, rows = select(tmp_path, teacher, both, f"selection.ensemble={ensemble}", "selection.threshold=0.75")
    # u0: 0.8, u1: 0.8; u2, of which one says anger at 0.85 and one neutral, 0.575; u3: 0.6, u4: 0.62.
    assert [row["uri"] for row in rows] == accepted
    np.testing.assert_allclose(rows[0]["target"], [0.8, 0.125, 0.075], rtol=1e-5)
    np.testing.assert_allclose(rows[1]["target"], [0.1, 0.8, 0.1], rtol=1e-5)
    assert summary["considered"] == 5 - disagreed
    assert summary["left_out"] == NONE | {"incomplete": 0, "disagreed": disagreed}
    assert summary["teachers"] == [teacher.id, other.id]
    assert summary["models"] == [teacher.model_id("float32"), other.model_id("float32")]
    assert summary["rule"]["ensemble"] == ensemble
    assert not {"teacher", "model"} & set(summary)
    lower = select(tmp_path, teacher, both, f"selection.ensemble={ensemble}", "selection.threshold=0.55")[1]
    assert [row["uri"] for row in lower] == [f"u{n}" for n in range(5) if n != 2 or not disagreed]


def test_feedback_applies_to_what_the_teachers_say_together(tmp_path: Path, teacher: Artifact, other: Artifact) -> None:
    for model, probs in ((teacher, PROBS), (other, OTHERS)):
        write(str(tmp_path / "t"), model.model_id("float32"), [ok(f"u{n}", p) for n, p in enumerate(probs)])
    store = FeedbackStore(str(tmp_path / "feedback"), CLASSES)
    store.update([[80, 20, 0], [2, 98, 0], [60, 0, 40]], "epoch-0")
    together = (np.array(PROBS) + OTHERS) / 2 / np.exp(store.snapshot().log_debiasing_prior)
    wanted = together / together.sum(axis=1, keepdims=True)
    both = (f"teacher=[{teacher.uri},{other.uri}]", f"feedback={tmp_path}/feedback", "selection.threshold=0.05")
    _, rows = select(tmp_path, teacher, *both)
    assert len(rows) == 5
    np.testing.assert_allclose([row["target"] for row in rows], wanted, rtol=1e-5)


def test_an_ensemble_of_what_is_not_there_is_one_line(tmp_path: Path, teacher: Artifact, other: Artifact) -> None:
    both = f"teacher=[{teacher.uri},{other.uri}]"
    write(str(tmp_path / "t"), teacher.model_id("float32"), [ok("x", A)])
    with pytest.raises(UserError, match=f"table={tmp_path}/t: holds no prediction of teacher={other.uri}"):
        select(tmp_path, teacher, both)
    write(str(tmp_path / "t"), other.model_id("float32"), [ok("y", A)])
    with pytest.raises(UserError) as nothing:
        select(tmp_path, teacher, both)
    assert str(nothing.value) == f"table={tmp_path}/t: no usable prediction of {both}"
    with pytest.raises(UserError, match=f"teacher={teacher.uri}: the same model as teacher={teacher.uri}"):
        select(tmp_path, teacher, f"teacher=[{teacher.uri},{teacher.uri}]")


FACES = model_id("0123456789abcdef", "float32", False, True)


def face(picture: str, number: int, probs: Sequence[float] = A, **rest: Any) -> Row:
    digest = rest.pop("digest", xxhash.xxh3_128_digest(f"{picture} {rest.get('identity')}".encode()))
    return ok(Face(50.0, 50.0, float(number), 0.0).uri_in(picture), probs, digest=digest, **rest)


def test_all_faces_of_the_newest_content_count(tmp_path: Path) -> None:
    old = [face("x", 1), face("x", 2), face("y", 1), face("z", 1), failed("w", "no_face")]
    new = [
        face("x", 3, B, identity="v2", minute=1),
        face("x", 4, B, identity="v2", minute=1),
        failed("y", "no_face", identity="v2", minute=1),
        failed("z", minute=2),  # another run could not read what is labelled
    ]
    found, left_out = newest(tmp_path, old, new, model=FACES)
    wanted = [face("x", 3)["uri"], face("x", 4)["uri"], face("z", 1)["uri"]]
    assert set(found) == set(wanted)
    assert left_out == NONE | {"superseded": 4, "no_face": 2}


def test_a_picture_at_two_places_counts_once_with_all_its_faces(tmp_path: Path) -> None:
    rows = [face("a", 1, digest=b"1"), face("a", 2, digest=b"1"), face("b", 1, digest=b"1"), face("b", 2, digest=b"1")]
    found, left_out = newest(
        tmp_path, [*rows, face("c", 1, digest=b"2")], excluded=Exclusions(digests=frozenset({b"2"})), model=FACES
    )
    assert list(found) == [face("a", 1)["uri"], face("a", 2)["uri"]]
    assert left_out == NONE | {"duplicate": 2, "excluded": 1, "no_face": 0}


def test_the_faces_of_a_teacher_are_another_model(tmp_path: Path, teacher: Artifact) -> None:
    write(str(tmp_path / "t"), teacher.model_id("float32", faces=True), [face("x", 1)])
    assert select(tmp_path, teacher)[0]["model"] == teacher.model_id("float32", faces=True)
    assert select(tmp_path, teacher, "faces=detect")[0]["accepted"] == 1
    with pytest.raises(UserError, match="holds no prediction"):
        select(tmp_path, teacher, "faces=none")
