import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from botocore.exceptions import BotoCoreError
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from ray_fer.data.uris import Face
from ray_fer.errors import UserError
from ray_fer.labeling import tombstones
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.ledger import DONE, sort_out
from ray_fer.labeling.maintenance import FEWEST_FILES, compact
from ray_fer.labeling.table import (
    FILE_SCHEMA,
    MARKERS,
    NO_FACE,
    WrittenFile,
    create_table,
    files_of,
    open_table,
    read_keys,
    scan_keys,
    table_classes,
    write_file,
)
from ray_fer.models.model_id import model_id

CLASSES = ("neutral", "anger")


def rows(*names: str, status: str = "ok", identity: str = "v1") -> pa.Table:
    common = {"identity": identity, "status": status, "run": "r", "labelled_at": datetime.now(UTC)}
    good = {"probs": [0.25, 0.75], "label": "anger", "confidence": 0.75} if status == "ok" else {}
    return pa.Table.from_pylist([{"uri": name, **common, **good} for name in names], schema=FILE_SCHEMA)


def held(uri: str) -> Counter[str]:
    return Counter(DeltaTable(uri).to_pyarrow_table()["uri"].to_pylist())


def test_a_file_is_invisible_until_it_is_committed(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES)
    file = write_file(uri, "m", rows("a", "b"), "x")
    assert held(uri) == {}
    assert Committer(table, "m", "r").commit([file]) == 0
    assert held(uri) == {"a": 1, "b": 1}
    assert table_classes(DeltaTable(uri)) == CLASSES


def test_polars_and_pyarrow_read_the_probabilities(tmp_path: Path) -> None:
    import polars as pl

    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES)
    Committer(table, "m", "r").commit([write_file(uri, "m", rows("a"), "x")])
    assert pl.read_delta(uri)["probs"].to_list() == [[0.25, 0.75]]
    assert DeltaTable(uri).to_pyarrow_table()["model"].to_pylist() == ["m"]


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "face.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=f"table={tmp_path}: no table is there but other files, like 'face.jpg'"):
        create_table(str(tmp_path), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["face.jpg"]
    with pytest.raises(UserError, match=f"table={tmp_path}/face.jpg: cannot be opened "):
        create_table(str(tmp_path / "face.jpg"), CLASSES)


def test_keys_of_one_model_only(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES)
    Committer(table, "m", "r").commit([write_file(uri, "m", rows("a"), "x")])
    Committer(table, "n", "r").commit([write_file(uri, "n", rows("b"), "x")])
    assert [batch["uri"].to_pylist() for batch in read_keys(table, "n")] == [["b"]]


def test_two_runs_at_once_hold_every_image_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    ours, theirs = (Committer(create_table(uri, CLASSES), "m", run) for run in ("ours", "theirs"))
    theirs.commit([write_file(uri, "m", rows("a", "b"), "x")])
    assert ours.commit([write_file(uri, "m", rows("b", "c"), "y"), write_file(uri, "m", rows("a"), "z")]) == 2
    theirs.commit([write_file(uri, "m", rows("d"), "x")])
    assert ours.commit([write_file(uri, "m", rows("e"), "y")]) == 0
    assert ours.commit([write_file(uri, "m", rows("d"), "y")]) == 1
    version = DeltaTable(uri).version()
    assert theirs.commit([write_file(uri, "m", rows("c"), "x")]) == 1
    assert theirs.commit([]) == 0
    assert DeltaTable(uri).version() == version, "nothing is left to be committed"
    assert held(uri) == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}


def test_a_file_of_which_something_is_left_out_is_written_anew_and_others_are_not(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    ours, theirs = (Committer(create_table(uri, CLASSES), "m", run) for run in ("ours", "theirs"))
    theirs.commit([write_file(uri, "m", rows("a"), "x")])
    all_known, partly = write_file(uri, "m", rows("b"), "y"), write_file(uri, "m", rows("a", "c"), "name-of-it")
    assert ours.commit([all_known, partly]) == 1
    paths = {Path(path).name.rsplit("-", 1)[0]: path for path in files_of(DeltaTable(uri), "m")}
    assert sorted(paths) == ["name-of-it", "x", "y"]
    assert paths["y"].endswith(all_known.path)
    assert not paths["name-of-it"].endswith(partly.path)


def test_an_entry_of_the_log_describes_the_file_and_names_the_run(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    committer = Committer(create_table(uri, CLASSES), "m", "the run")
    file = write_file(uri, "m", rows("a", "b"), "x")
    before = int(time.time() * 1000)
    committer.commit([file])
    log = (tmp_path / "t" / "_delta_log" / f"{committer.table.version():020}.json").read_text()
    entry = {name: action for line in log.splitlines() for name, action in json.loads(line).items()}
    assert entry["commitInfo"]["run"] == "the run"
    assert entry["commitInfo"]["operationParameters"]["mode"] == "Append"
    assert json.loads(entry["commitInfo"]["operationParameters"]["partitionBy"]) == ["model"]
    added = entry["add"]
    assert (added["path"], added["partitionValues"], added["dataChange"]) == (file.path, {"model": "m"}, True)
    assert (added["size"], json.loads(added["stats"])) == (
        (tmp_path / "t" / file.path).stat().st_size,
        {"numRecords": 2},
    )
    assert before <= added["modificationTime"] <= time.time() * 1000


@pytest.mark.parametrize("error", [CommitFailedError, OSError, DeltaError, BotoCoreError])
def test_a_commit_that_fails_is_tried_again(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first try has left out counts, and is left out of the second one."""
    uri = str(tmp_path / "t")
    ours, theirs = (Committer(create_table(uri, CLASSES), "m", run) for run in ("ours", "theirs"))
    theirs.commit([write_file(uri, "m", rows("a", "b"), "x")])
    land, fails = ours._try, [error()]

    def once(files: Sequence[WrittenFile]) -> None:
        if fails:
            raise fails.pop()
        land(files)

    monkeypatch.setattr(ours, "_try", once)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert ours.commit([write_file(uri, "m", rows("b", "c"), "y")]) == 1
    assert len(waits) == 1
    assert held(uri) == {"a": 1, "b": 1, "c": 1}


def test_a_commit_whose_answer_is_lost_has_landed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are not taken for those of another run."""
    uri = str(tmp_path / "t")
    committer = Committer(create_table(uri, CLASSES), "m", "r")
    land = committer._try

    def lose(files: Sequence[WrittenFile]) -> None:
        land(files)
        raise OSError("no answer")

    monkeypatch.setattr(committer, "_try", lose)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert committer.commit([write_file(uri, "m", rows("a", "b"), "x")]) == 0
    assert committer.commit([write_file(uri, "m", rows("c"), "x")]) == 0
    assert not len(committer._by_others)
    assert held(uri) == {"a": 1, "b": 1, "c": 1}


def test_tries_to_commit_wait_ever_longer_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait is of half to one and a half times its length, so that two runs do not meet again and again."""
    uri = str(tmp_path / "t")
    committer = Committer(create_table(uri, CLASSES), "m", "r")

    def fail(files: Sequence[WrittenFile]) -> None:
        raise CommitFailedError

    waits: list[float] = []
    monkeypatch.setattr(committer, "_try", fail)
    monkeypatch.setattr(time, "sleep", waits.append)
    for chance in (0.5, 0.0):
        monkeypatch.setattr(np.random, "random", lambda chance=chance: chance)
        with pytest.raises(RuntimeError, match=r"/t: no commit in 30 tries$"):
            committer.commit([write_file(uri, "m", rows("a"), "x")])
    assert waits[:29] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2] + [5.0] * 23
    assert waits[29:] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6] + [2.5] * 23
    assert held(uri) == {}


def test_many_runs_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    # All of them have read the ledger before the first commits.
    committers = [Committer(create_table(uri, CLASSES), "m", run) for run in "abcd"]
    names = [f"{number:02d}" for number in range(24)]

    def run(committer: Committer) -> int:
        files = [rows(*names[start : start + 4]) for start in range(0, 24, 4)]
        return sum(committer.commit([write_file(uri, "m", file, committer.run)]) for file in files)

    with ThreadPoolExecutor(4) as pool:
        left_out = sum(pool.map(run, committers))
    assert held(uri) == dict.fromkeys(names, 1)
    assert left_out == 3 * 24


def test_another_model_or_identity_of_the_other_run_is_no_conflict(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    committer, theirs = Committer(create_table(uri, CLASSES), "m", "ours"), create_table(uri, CLASSES)
    Committer(theirs, "n", "theirs").commit([write_file(uri, "n", rows("a"), "x")])
    Committer(theirs, "m", "theirs").commit([write_file(uri, "m", rows("b", identity="v0"), "x")])
    Committer(theirs, "m", "theirs").commit([write_file(uri, "m", rows("c", status="missing"), "x")])
    assert committer.commit([write_file(uri, "m", rows("a", "b", "c"), "y")]) == 0
    assert held(uri) == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize("mark", MARKERS)
def test_marks_and_labelled_rows_do_not_meet(mark: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    ours, theirs = (Committer(create_table(uri, CLASSES), "m", run) for run in ("ours", "theirs"))
    theirs.commit([write_file(uri, "m", rows("a", status=mark), "x")])
    assert ours.commit([write_file(uri, "m", rows("a"), "y")]) == 0
    theirs.commit([write_file(uri, "m", rows("b", "c"), "x")])
    assert ours.commit([write_file(uri, "m", rows("b", status=mark), "y")]) == 0
    assert held(uri) == {"a": 2, "b": 2, "c": 1}


def test_other_classes_are_refused(tmp_path: Path) -> None:
    create_table(str(tmp_path / "t"), CLASSES)
    with pytest.raises(UserError, match=r"its classes are neutral, anger; the model's are anger, neutral"):
        open_table(str(tmp_path / "t"), ("anger", "neutral"))


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), pa.table({"uri": ["a"]}))
    with pytest.raises(UserError, match="without the column 'identity'"):
        open_table(str(tmp_path / "t"))


def test_no_table(tmp_path: Path) -> None:
    assert open_table(str(tmp_path / "t")) is None


@pytest.mark.parametrize("folder", ["t", "a b é*"])
def test_a_run_knows_its_own_files(folder: str, tmp_path: Path) -> None:
    uri = str(tmp_path / folder)
    committer = Committer(create_table(uri, CLASSES), "m", "r")
    files = [write_file(uri, "m", rows(name), "x") for name in "abc"]
    for file in files:
        assert committer.commit([file]) == 0
    assert not len(committer._by_others)
    # As after a commit that landed although its answer was lost.
    assert committer.commit([files[-1]]) == 0
    assert held(uri) == {"a": 1, "b": 1, "c": 1}


FACES = model_id("0123456789abcdef", "float32", False, True)


def faces(picture: str, *sides: float) -> list[str]:
    return [Face(9.0, 9.0, side, 0.0).uri_in(picture) for side in sides]


def test_faces_are_keys_of_their_picture(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES)
    names = ["a", *faces("b", 1.0, 2.0), *faces("c#1", 3.0)]
    Committer(table, FACES, "r").commit([write_file(uri, FACES, rows(*names), "x")])
    Committer(table, "m", "r").commit([write_file(uri, "m", rows(*faces("b", 5.0)), "x")])
    assert scan_keys(table, FACES).collect()["uri"].to_list() == ["a", "b", "b", "c#1"]
    assert scan_keys(table, "m").collect()["uri"].to_list() == faces("b", 5.0)  # that run labelled crops


def test_two_runs_at_once_hold_the_faces_of_every_image_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    ours, theirs = (Committer(create_table(uri, CLASSES), FACES, run) for run in ("ours", "theirs"))
    first, second = faces("a", 1.0, 2.0), faces("a", 1.1, 2.0, 3.0)  # another processor may round otherwise
    theirs.commit([write_file(uri, FACES, rows(*first), "x")])
    assert ours.commit([write_file(uri, FACES, rows(*second, *faces("b", 4.0)), "y")]) == 1
    assert held(uri) == dict.fromkeys([*first, *faces("b", 4.0)], 1)


def test_what_has_no_face_is_done(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES)
    written = write_file(uri, FACES, rows("a", status=NO_FACE), "x")
    Committer(table, FACES, "r").commit([written])
    outcomes = sort_out(scan_keys(table, FACES), max_attempts=3)
    assert {name: len(keys) for name, keys in outcomes.settled.items() if len(keys)} == {DONE: 1}


def read_otherwise(*names: str, identity: str = "read", listed: str = "listed", status: str = "ok") -> pa.Table:
    held = rows(*names, identity=identity, status=status)
    place = held.schema.get_field_index("listed_identity")
    return held.set_column(place, FILE_SCHEMA.field(place), pa.array([listed] * len(names), pa.string()))


def rows_in(uri: str) -> list[tuple[str, ...]]:
    table = DeltaTable(uri).to_pyarrow_table().select(["uri", "identity", "listed_identity", "status"])
    return sorted(tuple(map(str, row.values())) for row in table.to_pylist())


def test_what_is_known_by_the_identity_it_was_read_with_becomes_a_marker(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    committer = Committer(create_table(uri, CLASSES), "m", "r")
    file = write_file(uri, "m", pa.concat_tables([read_otherwise("a", "b"), rows("c", "d")]), "x")
    all_known = write_file(uri, "m", read_otherwise("e"), "x")
    assert committer.commit([file, all_known], {file.path: {("b", "listed"), ("d", None), ("e", "listed")}}) == 0
    assert rows_in(uri) == [
        ("a", "read", "listed", "ok"),
        ("b", "read", "listed", "known"),
        ("c", "v1", "None", "ok"),
        ("e", "read", "listed", "ok"),
    ]
    (mark,) = (row for row in DeltaTable(uri).to_pyarrow_table().to_pylist() if row["status"] == "known")
    assert (mark["run"], mark["probs"], mark["attempt"]) == ("r", None, None)


def test_a_known_picture_with_several_faces_becomes_one_mark(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    committer = Committer(create_table(uri, CLASSES), FACES, "r")
    names = [*faces("a", 1.0, 2.0), *faces("b", 3.0)]
    file = write_file(uri, FACES, read_otherwise(*names), "x")
    assert committer.commit([file], {file.path: {("a", "listed")}}) == 0
    assert rows_in(uri) == [("a", "read", "listed", "known"), (*faces("b", 3.0), "read", "listed", "ok")]


def test_two_runs_at_once_that_listed_one_content_differently(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    ours, theirs = (Committer(create_table(uri, CLASSES), "m", run) for run in ("ours", "theirs"))
    theirs.commit([write_file(uri, "m", read_otherwise("a", "b", listed="theirs"), "x")])
    file = pa.concat_tables([read_otherwise("a", listed="ours"), rows("b", identity="theirs")])
    assert ours.commit([write_file(uri, "m", file, "y")]) == 2
    assert rows_in(uri) == [
        ("a", "read", "ours", "known"),
        ("a", "read", "theirs", "ok"),
        ("b", "read", "theirs", "ok"),
    ]


def old_table(uri: str, *names: str) -> None:
    """As the version before the column ``listed_identity`` has left it."""
    columns = [name for name in FILE_SCHEMA.names if name != "listed_identity"]
    held = rows(*names).select(columns).append_column("model", pa.array(["m"] * len(names)))
    configuration = {"ray_fer.classes": json.dumps(list(CLASSES))}
    DeltaTable.create(
        uri, held.schema, partition_by=["model"], configuration=configuration, raise_if_key_not_exists=False
    )
    for name in names:
        write_deltalake(uri, held.filter(pc.equal(held["uri"], name)), mode="append")


def test_a_table_of_an_earlier_version_is_read_and_appended_to(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    old_table(uri, *(f"old-{i:02d}" for i in range(FEWEST_FILES)))
    opened = open_table(uri, CLASSES)
    assert opened
    assert scan_keys(opened, "m").select("uri", "listed_identity").collect().null_count().row(0) == (0, FEWEST_FILES)
    assert [batch["listed_identity"].null_count for batch in read_keys(opened, "m")] == [1] * FEWEST_FILES
    stale = Committer(opened, "m", "stale")  # it was opened before the column was there
    committers = [Committer(create_table(uri, CLASSES), "m", run) for run in "ab"]
    committers[0].commit([write_file(uri, "m", read_otherwise("new"), "x")])
    assert committers[1].commit([write_file(uri, "m", rows("old-00", "newer"), "x")]) == 0
    assert stale.commit([write_file(uri, "m", rows("new", identity="listed"), "x")]) == 1
    table = create_table(uri, CLASSES)
    for _ in range(2):
        assert rows_in(uri).count(("new", "read", "listed", "ok")) == 1
        assert len(scan_keys(table, "m").collect()) == len(rows_in(uri)) == FEWEST_FILES + 3
        assert len(sort_out(scan_keys(table, "m"), 3).aliases) == 1
        compact(table, "m")
    assert len(files_of(table, "m")) == 1
    tombstones.write_markers(
        Committer(table, "m", "g"), ["/in"], lambda keys: (keys[0] > 0, keys[0] > 0), datetime.now(UTC)
    )


def test_an_etag_that_an_earlier_version_kept_weakened_is_known_in_its_plain_spelling(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    table = create_table(uri, CLASSES)
    Committer(table, "m", "r").commit([write_file(uri, "m", rows("a", identity='W/"abc'), "x")])
    assert scan_keys(table, "m").collect()["identity"].to_list() == ["abc"]
