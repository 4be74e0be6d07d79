"""What a model is validated on is not what it is trained on, whatever the pictures are called."""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from ray_fer.data.digests import Contents
from ray_fer.data.read import Item, Read, read_objects
from ray_fer.data.uris import Face
from ray_fer.errors import UserError
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.jobs.held_out import check_selection, list_unlabeled, read_unlabeled, warn_of_copies
from ray_fer.labeling.commit import Committer
from ray_fer.labeling.table import FILE_SCHEMA, create_table, write_file
from tests.shards import parquet_of, tar_of
from tests.training.toy import CLASSES, PLACES, config, write_faces, write_selection


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    for seed, name in enumerate(("train", "val", "halves", "more")):
        write_faces(tmp_path / name, (4, 4, 4), seed)
    return tmp_path


def unlabeled(faces: Path, *sources: Path) -> list[str]:
    """Names of the faces that a run would be given."""
    places = f"unlabeled=[{','.join(map(str, sources))}]"
    inputs = open_inputs(config(faces, "method=online", places, f"feedback_val={faces / 'halves' / 'manifest.csv'}"))
    count, _ = list_unlabeled(inputs, str(faces / "run"))
    listed, _ = read_unlabeled(str(faces / "run"))
    assert len(listed) == count
    return [Path(uri).name for uri in listed]


def test_the_digest_is_that_of_what_is_listed(faces: Path) -> None:
    def listed(*sources: str) -> str:
        places = f"unlabeled=[{','.join(str(faces / source) for source in sources)}]"
        return list_unlabeled(open_inputs(config(faces, "method=online", places)), str(faces / "run"))[1]

    both = listed("more", "halves")
    assert listed("halves", "more") == both != listed("more")
    table = pq.read_table(faces / "run" / "unlabeled.parquet")
    assert table.column_names == ["uri", "identity", "domain"]
    assert all(table["identity"].to_pylist())
    (faces / "more" / "anger-0.png").write_bytes(b"another picture")
    assert listed("more", "halves") != both


def test_a_face_that_is_named_several_times_is_one(faces: Path) -> None:
    once = unlabeled(faces, faces / "more")
    (faces / "list.txt").write_text("more/anger-0.png\nmore/anger-0.png\nmore/anger-1.png\n")
    assert sorted(unlabeled(faces, faces / "list.txt", faces / "more", faces / "m*" / "anger-0.png")) == sorted(once)


@pytest.mark.parametrize("classes", [(), ("classes=[neutral]",)])
def test_one_class_is_nothing_to_learn(classes: tuple[str, ...], tmp_path: Path) -> None:
    """A loss of 0 and a macro-F1 of 1 would pass for a success."""
    write_faces(tmp_path / "train", (3, 0, 0), seed=1)
    write_faces(tmp_path / "val", (2, 0, 0), seed=2)
    with pytest.raises(UserError, match=r"^labeled=.*/train/manifest\.csv: one class, neutral; there is nothing to"):
        open_inputs(config(tmp_path, *classes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("labeled={}/no.csv", "labeled={}/no.csv: cannot read the manifest"),
        ("labeled=rafdb:{}/no", "labeled=rafdb:{}/no: {}/no: there is no EmoLabel/list_patition_label.txt"),
        ("val={}/no", "val={}/no: no .csv or .parquet file and no folder"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_key(arguments: str, message: str, faces: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_inputs(config(faces, arguments.replace("{}", str(faces))))
    assert str(caught.value).startswith(message.replace("{}", str(faces)))


def test_copies_of_labelled_faces_are_not_unlabeled(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    expected = unlabeled(faces, faces / "more")
    assert len(expected) == 12
    assert "copies" not in caplog.text
    for name in ("train", "val", "halves"):
        shutil.copy(faces / name / "anger-0.png", faces / "more" / f"as-if-new-{name}.png")
    assert unlabeled(faces, faces / "more") == expected
    assert "unlabeled: 3 faces that are copies of faces of labeled or val are left out" in caplog.text


def test_copies_in_a_table_are_found(faces: Path) -> None:
    pictures = [faces / "more" / "anger-1.png", faces / "val" / "anger-1.png"]
    pq.write_table(pa.table({"image": [path.read_bytes() for path in pictures]}), faces / "faces.parquet")
    assert unlabeled(faces, faces / "faces.parquet") == ["faces.parquet#column=image&row=0"]


def test_nothing_but_copies(faces: Path) -> None:
    shutil.copytree(faces / "val", faces / "copy")
    with pytest.raises(UserError, match="unlabeled: no face beside those with a label"):
        unlabeled(faces, faces / "copy")


def check(faces: Path, *arguments: str) -> None:
    check_selection(open_inputs(config(faces, f"pseudo={faces / 'selection'}", *arguments)))


def record(faces: Path, digests: dict[Path, bytes]) -> None:
    """A predictions table that has these digests of pictures, and a selection of ``faces/more`` that names it."""
    common = {"identity": "v1", "source": "s", "probs": [1.0, 0.0, 0.0], "label": CLASSES[0], "confidence": 1.0}
    common |= {"status": "ok", "run": "r", "labelled_at": datetime(2026, 1, 1, tzinfo=UTC)}
    rows = [common | {"uri": str(path), "digest": digest} for path, digest in digests.items()]
    uri = str(faces / "predictions")
    table = create_table(uri, CLASSES)
    file = write_file(uri, "m", pa.Table.from_pylist(rows, schema=FILE_SCHEMA), "r")
    Committer(table, "m", "r").commit([file])
    info = Path(write_selection(faces / "selection", faces / "more")) / "selection.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"table": uri, "model": "m"}))


def test_what_is_validated_on_has_no_pseudo_label(faces: Path) -> None:
    write_selection(faces / "selection", faces / "halves")
    check(faces)
    halves = faces / "halves" / "manifest.csv"
    message = f"pseudo={faces}/selection: 12 of 12 pseudo-labels are of pictures of the validation set, the first: "
    advice = f"{faces}/halves/anger-0.png; select anew with selection.exclude=[{faces / PLACES['val']},{halves}]"
    with pytest.raises(UserError, match=f"^{re.escape(message + advice)}$"):
        check(faces, f"feedback_val={halves}")


def test_nor_has_its_copy(faces: Path) -> None:
    copy = faces / "more" / "as-if-new.png"
    shutil.copy(faces / "val" / "anger-0.png", copy)
    write_selection(faces / "selection", faces / "more")
    with pytest.raises(UserError, match=rf"1 of 13 pseudo-labels are of .*, the first: {copy};"):
        check(faces)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs of what is read from now on to compare it."""
    read = list[str]()

    def watched(items: Iterable[Item], max_bytes: int) -> Iterator[Read]:
        kept = list(items)
        read.extend(item.uri for item in kept)
        return read_objects(kept, max_bytes)

    monkeypatch.setattr("ray_fer.data.digests.read_objects", watched)
    return read


def test_the_table_says_what_may_be_a_copy(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = faces / "more" / "as-if-new.png"
    shutil.copy(faces / "val" / "anger-0.png", copy)
    pictures = sorted((faces / "more").glob("*.png"))
    record(faces, {path: xxhash.xxh3_128_digest(path.read_bytes()) for path in pictures})
    read = watch(monkeypatch)
    with pytest.raises(UserError, match=rf"1 of 13 pseudo-labels are of .*, the first: {copy};"):
        check(faces)
    assert [uri for uri in read if Path(uri).parent.name == "more"] == [str(copy)]
    copy.write_bytes((faces / "more" / "anger-1.png").read_bytes())  # it has been overwritten since
    check(faces)


@pytest.mark.parametrize("rows", [0, 12])
def test_a_selection_of_nothing_is_named(rows: int, faces: Path) -> None:
    """Nothing was accepted, or nothing of it can be drawn."""
    file = Path(write_selection(faces / "selection", faces / "more")) / "selection.parquet"
    table = pq.read_table(file).slice(0, rows)
    weights = pa.array([0.0] * rows, pa.float32())
    pq.write_table(table.set_column(table.column_names.index("weight"), "weight", weights), file)
    with pytest.raises(UserError, match=rf"^pseudo={faces}/selection: the selection is empty$"):
        check(faces)


def test_a_validation_picture_that_cannot_be_read_opens_no_guard(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is surely gone is in no validation; of what may be there, a copy might be trained on."""
    write_selection(faces / "selection", faces / "more")
    (faces / "val" / "anger-0.png").unlink()
    (faces / "val" / "anger-0.png").mkdir()
    message = rf"^val: 1 of \d+ pictures cannot be read, the first: {faces}/val/anger-0.png \(unreadable: .*take it out"
    with pytest.raises(UserError, match=message):
        check(faces)
    with pytest.raises(UserError, match=message):
        unlabeled(faces, faces / "more")
    warn_of_copies(open_inputs(config(faces)))
    assert f"val: 1 of 12 pictures cannot be read, the first: {faces}/val/anger-0.png" in caplog.text
    gone = [Read(Item(uri, "", 0), "", None, "missing", "not there") for uri in ("s3://b/a.png", "s3://b/f.tar!/a.png")]
    for read, opens in zip(gone, (False, True), strict=True):
        inputs = open_inputs(config(faces))
        inputs.__dict__["val_contents"] = Contents({}, frozenset(), (read,))
        if opens:
            with pytest.raises(UserError, match=r"the first: s3://b/f.tar!/a.png \(missing: not there\)"):
                inputs.held_out()
        else:
            assert inputs.held_out() is inputs.val_contents


def test_a_link_to_a_validation_picture_is_found_by_what_it_holds(faces: Path) -> None:
    link = faces / "more" / "link.png"
    link.symlink_to(faces / "val" / "anger-1.png")
    write_selection(faces / "selection", faces / "more")
    with pytest.raises(UserError, match=rf"1 of 13 pseudo-labels are of .*, the first: {link};"):
        check(faces)
    assert "link.png" not in unlabeled(faces, faces / "more")


def test_another_face_of_a_validation_picture_has_no_pseudo_label(faces: Path) -> None:
    """Also where the picture held something else when it was labelled, so that no digest tells."""
    record(faces, dict.fromkeys((faces / "more").glob("*.png"), b"0" * 16))
    file = faces / "selection" / "selection.parquet"
    table = pq.read_table(file)
    photo = faces / "val" / "anger-0.png"
    uris = [Face(9.0, 9.0, 5.0, 0.0).uri_in(str(photo)), *table["uri"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "uri", pa.array(uris)), file)
    manifest = faces / "val" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("anger-0.png", '"./anger-0.png#face=9.0,9.0,8.0,0.0"'))
    with pytest.raises(UserError, match=rf"1 of 12 pseudo-labels are of .*, the first: {re.escape(uris[0])};"):
        check(faces)


def test_members_and_rows_are_looked_for_where_they_lie(faces: Path) -> None:
    """Of manifests, however they spell the shard and the table around a picture."""
    train = sorted((faces / "train").glob("*.png"))
    (faces / "faces.tar").write_bytes(tar_of([(f"./{path.name}", path.read_bytes()) for path in train]))
    (faces / "faces.parquet").write_bytes(parquet_of({"image": [path.read_bytes() for path in train]}))
    labels = [path.name.partition("-")[0] for path in train]
    cells = [f"../train/../faces.tar!/./{path.name}" for path in train]
    rows = [f"{faces}//faces.parquet#column=image&row={number}" for number in range(len(train))]
    for given in (cells, rows, [path.as_uri() for path in train]):
        lines = [f"{cell},{label}" for cell, label in zip(given, labels, strict=True)]
        (faces / "train" / "manifest.csv").write_text("\n".join(["path,label", *lines]))
        inputs = open_inputs(config(faces))
        assert (len(inputs.labeled), inputs.config.image_size) == (12, 32)
        assert len(inputs.labeled_contents.digests) == 12
    lines[0] = f"../faces.tar!/{train[0].name},{labels[0]}"
    (faces / "train" / "manifest.csv").write_text("\n".join(["path,label", *lines]))
    with pytest.raises(
        UserError, match=rf"labeled: 1 of 12 pictures are not there, the first: {faces}/faces.tar!/anger-0"
    ):
        open_inputs(config(faces))


def test_labelled_copies_of_validation_faces_are_told(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warn() -> list[str]:
        caplog.clear()
        warn_of_copies(open_inputs(config(faces, f"feedback_val={faces / 'halves' / 'manifest.csv'}")))
        return caplog.messages

    assert warn() == []
    shutil.copy(faces / "val" / "anger-3.png", faces / "train" / "anger-2.png")
    shutil.copy(faces / "halves" / "anger-0.png", faces / "train" / "anger-3.png")
    assert warn() == [
        f"val: 2 of 12 pictures of labeled have the bytes of one of val, the first: "
        f"{faces}/train/anger-2.png and {faces}/val/anger-3.png; the score is too good by that"
    ]
