"""manifests: what is read, and the one line that tells what is wrong."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from ray_fer.data.manifests import (
    Manifest,
    check_disjoint,
    read_image_folder,
    read_manifest,
)
from ray_fer.errors import UserError


def csv(folder: Path, text: str, name: str = "m.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


def names(manifest: Manifest) -> list[str | None]:
    return [manifest.classes[label] if label >= 0 else None for label in manifest.labels.tolist()]


def error(uri: str, classes: Sequence[str] | None = None, split: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(uri, classes, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_csv(tmp_path: Path) -> None:
    text = "path,label,note\na.png,Happy,x\nsub/b.png,neutral,\ns3://bucket/c.png,happiness,y\n/abs/d.png,,z\n"
    manifest = read_manifest(csv(tmp_path, text))
    assert manifest.uris == [f"{tmp_path}/a.png", f"{tmp_path}/sub/b.png", "s3://bucket/c.png", "/abs/d.png"]
    assert manifest.classes == ("neutral", "happiness")
    assert manifest.labels.dtype == np.int64
    assert manifest.labels.tolist() == [1, 0, 1, -1]
    assert (manifest.subjects, manifest.videos, manifest.frames, manifest.groups) == (None, None, None, None)
    assert len(manifest) == 4
    assert manifest.counts().tolist() == [1, 2]


def test_labeled_and_take_keep_columns_together(tmp_path: Path) -> None:
    text = "path,label,subject,video,frame,group\na,sad,s1,v,3,g1\nb,,s2,v,,g2\nc,fear,,w,5,\n"
    manifest = read_manifest(csv(tmp_path, text)).labeled()
    assert manifest.uris == [f"{tmp_path}/a", f"{tmp_path}/c"]
    assert names(manifest) == ["sadness", "fear"]
    assert (manifest.subjects, manifest.videos) == (["s1", ""], ["v", "w"])
    assert (manifest.frames, manifest.groups) == ([3, 5], ["g1", ""])
    assert manifest.take(np.array([1, 1])).frames == [5, 5]


def test_missing_frames_are_minus_one(tmp_path: Path) -> None:
    assert read_manifest(csv(tmp_path, "path,label,frame\na,sad,\nb,sad,007\n")).frames == [-1, 7]


def test_declared_classes_set_the_order(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label\na,happy\nb,2\nc,-1\nd,Meh\n")
    manifest = read_manifest(uri, ["Happy", "meh", "anger"])
    assert manifest.classes == ("happiness", "meh", "anger")
    assert names(manifest) == ["happiness", "anger", None, "meh"]


def test_all_splits_share_the_classes(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label,split\na,sad,train\nb,happy,train\nc,fear,val\n")
    train, val = read_manifest(uri, split="train"), read_manifest(uri, split="val")
    assert train.classes == val.classes == ("fear", "happiness", "sadness")
    assert (names(train), names(val)) == (["sadness", "happiness"], ["fear"])
    assert len(read_manifest(uri)) == 3


def test_byte_order_mark_windows_lines_and_spaces(tmp_path: Path) -> None:
    manifest = read_manifest(csv(tmp_path, "\ufeffpath,label\r\na.png , sad\r\n"))
    assert (manifest.uris, names(manifest)) == ([f"{tmp_path}/a.png"], ["sadness"])


def test_blanks_belong_to_paths_in_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pa.table({"path": [" a.png", "a.png"], "label": ["sad ", "happy"]}), tmp_path / "m.parquet"
    )
    manifest = read_manifest(str(tmp_path / "m.parquet"))
    assert (manifest.uris, names(manifest)) == ([f"{tmp_path}/ a.png", f"{tmp_path}/a.png"], ["sadness", "happiness"])


def test_numbers_as_paths_stay_text(tmp_path: Path) -> None:
    assert read_manifest(csv(tmp_path, "path,label\n007,sad\n1e3,sad\nnull,sad\n")).uris == [
        f"{tmp_path}/{name}" for name in ("007", "1e3", "null")
    ]


def test_unlabeled_manifest_has_no_classes(tmp_path: Path) -> None:
    manifest = read_manifest(csv(tmp_path, "path,label\na,\n"))
    assert (manifest.classes, manifest.labels.tolist(), len(manifest.labeled())) == ((), [-1], 0)


def test_parquet_names_and_gaps(tmp_path: Path) -> None:
    numbers = pa.array([1.0, float("nan"), None])
    uri = parquet(tmp_path, **{"Path ": pa.array(["a", "b", "c"]), "LABEL": numbers, "subject": numbers})
    manifest = read_manifest(uri, ["sad", "happy"])
    assert (names(manifest), manifest.subjects) == (["happiness", None, None], ["1", "", ""])
    schema = pa.schema([("path", pa.string()), ("label", pa.string()), ("path", pa.string())])
    pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, schema=schema), uri)
    assert error(uri) == f"{uri}: two columns `path`"


def parquet(folder: Path, **columns: pa.Array) -> str:
    pyarrow.parquet.write_table(pa.table(columns), folder / "m.parquet")
    return str(folder / "m.parquet")


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["sad", None, "happy"]),
        pa.array(["sad", None, "happy"]).dictionary_encode(),
        pa.array(["sad", "", "happy"], pa.large_string()),
        pa.array([1, None, 0], pa.int32()),
        pa.array([1.0, None, 0.0]),
        pa.array([1, -1, 0], pa.int8()),
    ],
)
def test_parquet(tmp_path: Path, labels: pa.Array) -> None:
    uri = parquet(tmp_path, path=pa.array(["a", "b", "c"]), label=labels, image=pa.array([b"", b"", b""]))
    assert names(read_manifest(uri, ["happiness", "sadness"])) == ["sadness", None, "happiness"]


def test_parquet_errors(tmp_path: Path) -> None:
    uri = parquet(tmp_path, path=pa.array(["a", "b"]), label=pa.array(["sad", "foo"]))
    assert error(uri).startswith(f"{uri}: row 2: unknown class 'foo'")
    uri = parquet(tmp_path, path=pa.array(["a"]), label=pa.array([0.5]))
    assert error(uri, ["sad"]) == f"{uri}: column `label` is double, not text"
    uri = parquet(tmp_path, path=pa.array(["a"]), x=pa.array([1]))
    assert error(uri) == f"{uri}: no column `label` (has: path, x)"
    uri = parquet(tmp_path, path=pa.array([], pa.string()), label=pa.array([], pa.string()))
    assert error(uri) == f"{uri}: the manifest is empty"
    (tmp_path / "m.parquet").write_bytes(b"no parquet")
    assert error(uri).startswith(f"{uri}: ")


def test_csv_errors(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path;label\na;sad\n")
    assert error(uri) == f"{uri}: no column `path` (has: path;label)"
    assert error(csv(tmp_path, "path,class\na,sad\n")) == f"{uri}: no column `label` (has: path, class)"
    assert error(csv(tmp_path, "path,label,path\na,sad,b\n")) == f"{uri}: two columns `path`"
    assert error(csv(tmp_path, "path,label\n")) == f"{uri}: the manifest is empty"
    assert error(csv(tmp_path, "")).startswith(f"{uri}: ")
    assert "3" in error(csv(tmp_path, "path,label\na,sad\nb,sad,c\n"))
    assert error(csv(tmp_path, "path,label\na,sad\n,sad\n")) == f"{uri}: row 3: empty path"
    assert error(csv(tmp_path, "path,label,frame\na,sad,x\n")) == f"{uri}: row 2: frame 'x' is not a number"
    (tmp_path / "m.csv").write_bytes("path,label\nä,sad\n".encode("utf-16"))
    assert error(uri).startswith(f"{uri}: ")


def test_unknown_class_names_the_row_and_what_is_known(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label\na,sad\nb,foo\nc,foo\n")
    known = "neutral, anger, disgust, fear, happiness, sadness, surprise, contempt, other"
    assert error(uri) == f"{uri}: row 3: unknown class 'foo' (known: {known})"
    assert error(uri, ["sad", "happy"]) == f"{uri}: row 3: unknown class 'foo' (known: sadness, happiness)"


def test_a_class_outside_the_declared_ones_is_an_error(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label\na,sad\nb,contempt\n")
    assert error(uri, ["sad"]) == f"{uri}: row 3: unknown class 'contempt' (known: sadness)"


def test_index_labels_need_declared_classes(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label\na,0\nb,2\n")
    assert error(uri) == f"{uri}: row 2: label 0 is an index: declare the classes that it counts"
    assert error(uri, ["sad", "happy"]) == f"{uri}: row 3: label 2 is beyond the 2 classes sadness, happiness"


def test_row_numbers_are_the_editors(tmp_path: Path) -> None:
    uri = csv(tmp_path, 'path,label\n\na,sad\n"b\nb",sad\n\n\nc,foo\nd,sad\n')
    assert error(uri).startswith(f"{uri}: row 8: unknown class 'foo'")


def test_duplicates(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label\na,sad\nb,sad\n./a,happy\n")
    assert error(uri) == f"{uri}: row 4: {tmp_path}/a has another label than in row 2"
    assert len(read_manifest(csv(tmp_path, "path,label\na,sad\na,sad\n"))) == 2
    assert len(read_manifest(csv(tmp_path, "path,label,frame\na.mp4,sad,1\na.mp4,happy,2\n"))) == 2


def test_one_picture_has_one_label_however_it_is_spelled(tmp_path: Path) -> None:
    face = "#face=1.0,2.0,3.0,4.0"
    for one, other, uri in (
        ("a.png", "../{name}/a.png", "{folder}/a.png"),
        ("{folder}/a.png", "{folder}//a.png", "{folder}/a.png"),
        ("/{folder}/a.png", "{folder}/b/../a.png", "{folder}/a.png"),
        ("a b.png", "file://{folder}/a%20b.png", "{folder}/a b.png"),
        ("file:{folder}/a.png", "file://localhost{folder}/./a.png", "{folder}/a.png"),
        ("f.tar!/./a.png", "./f.tar!/./a.png", "{folder}/f.tar!/./a.png"),
        ("t.parquet#column=a&row=1", ".//t.parquet#column=%61&row=01", "{folder}/t.parquet#column=a&row=1"),
        (f"a.png{face}", f"{{folder}}/./a.png{face}", f"{{folder}}/a.png{face}"),
    ):
        one, other, uri = (each.format(folder=tmp_path, name=tmp_path.name) for each in (one, other, uri))
        rows = f'path,label\n"{one}",sad\n"{other}",happy\n'
        where = csv(tmp_path, rows)
        assert error(where) == f"{where}: row 3: {uri} has another label than in row 2"
        assert read_manifest(csv(tmp_path, rows.replace("happy", "sad"))).uris == [uri, uri]
    # A member of another name is another picture.
    assert len(set(read_manifest(csv(tmp_path, "path,label\nf.tar!/a.png,sad\nf.tar!/./a.png,happy\n")).uris)) == 2


def test_what_can_be_no_path_is_named_with_its_row(tmp_path: Path) -> None:
    for cell, message in (
        ("http://host/a.png", "http://host/a.png: not a local path and not an s3://bucket/key URI"),
        ("s3a://bucket/a.png", "s3a://bucket/a.png: not a local path and not an s3://bucket/key URI"),
        ("file://host/a.png", "file://host/a.png: not a local path and not an s3://bucket/key URI"),
        ("s3://bucket", "'s3://bucket' names no object"),
    ):
        uri = csv(tmp_path, f"path,label\nb.png,sad\n{cell},sad\n")
        assert error(uri) == f"{uri}: row 3: {message}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path,label\nä,sad\n".encode("utf-16"), "row 1: the text is UTF-16 or UTF-32; save the file as UTF-8"),
        ("path,label\nä,sad\n".encode("utf-32"), "row 1: the text is UTF-16 or UTF-32; save the file as UTF-8"),
        ("path,label\na,sad\n".encode("utf-16-le"), "row 1: a NUL byte; save the file as UTF-8"),
        (
            "path,label\r\na,sad\r\n\r\nä,sad\r\n".encode("latin-1"),
            "row 4: not UTF-8 (byte 0xe4); save the file as UTF-8",
        ),
        ("path,label\ra,sad\rä,sad\r".encode("cp1252"), "row 3: not UTF-8 (byte 0xe4); save the file as UTF-8"),
        (b"path,label\na,sad\nb\0.png,sad\n", "row 3: a NUL byte; save the file as UTF-8"),
        (b"path,label\na,sad\n\n\nb,sad,c\n", "row 5: Expected 2 columns, got 3: b,sad,c"),
        (b'path,label\n\n"a,sad\nb,sad\n', 'row 3: Expected 2 columns, got 1: "a,sad b,sad'),
        (b"Path, PATH ,label\na,b,sad\n", "two columns `path`"),
        (b"a.png,sad\nb.png,sad\n", "no column `path` (has: a.png, sad)"),
        (b'"pa\nth",label\na,sad\n', "no column `path` (has: pa th, label)"),
        (b"\x89PNG\r\n\x1a\n\0\0", "row 1: not UTF-8 (byte 0x89); save the file as UTF-8"),
    ],
)
def test_what_programs_save_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    assert error(f"{tmp_path}/m.csv") == f"{tmp_path}/m.csv: {message}"


@pytest.mark.parametrize(
    "data",
    [
        "path,label\rä b.png,sad\r".encode(),
        b"\xef\xbb\xbf" + "path,label\nä b.png,sad".encode(),
        "\n\n Path ,LABEL,note,note\n\nä b.png,sad,1,2\n".encode(),
        '"label","path"\r\n"sad","ä b.png"\r\n'.encode(),
    ],
)
def test_what_programs_save_is_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    manifest = read_manifest(f"{tmp_path}/m.csv")
    assert (manifest.uris, names(manifest)) == ([f"{tmp_path}/ä b.png"], ["sadness"])


def test_a_row_after_a_long_field_has_its_number(tmp_path: Path) -> None:
    uri = csv(tmp_path, f"path,label,embedding\na,sad,{'1 ' * 100_000}\nb,foo,1\n")
    assert error(uri).startswith(f"{uri}: row 3: unknown class 'foo'")


def test_whole_numbers_with_a_decimal_point(tmp_path: Path) -> None:
    text = (
        "path,label,frame,subject,group,video\na,1.0,3.0,12.0,1.0,v\nb,,,,1.5,w\nc,-1.0,4.,7.0,2.0,1.0\nd,0,5,1.0,,\n"
    )
    manifest = read_manifest(csv(tmp_path, text), ["sad", "happy"])
    assert names(manifest) == ["happiness", None, None, "sadness"]
    assert manifest.frames == [3, -1, 4, 5]
    assert manifest.subjects == ["12", "", "7", "1"], "a column with gaps, as pandas writes it"
    assert (manifest.groups, manifest.videos) == (["1.0", "1.5", "2.0", ""], ["v", "w", "1.0", ""]), "no whole numbers"
    assert read_manifest(csv(tmp_path, "path,label\n1.0,sad\n2.0,sad\n")).uris == [f"{tmp_path}/{n}.0" for n in (1, 2)]


@pytest.mark.parametrize("cell", ["nan", "1e3", "2.5", "inf", "-0.5", "1_000", "0x1", "1,0", "9" * 30])
def test_numbers_that_are_not_whole_are_refused(tmp_path: Path, cell: str) -> None:
    uri = csv(tmp_path, f'path,label,frame\na,0,1\nb,"{cell}",1\n')
    assert error(uri, ["sad", "happy"]) == f"{uri}: row 3: unknown class {cell!r} (known: sadness, happiness)"
    uri = csv(tmp_path, f'path,label,frame\na,0,1\nb,0,"{cell}"\n')
    assert error(uri, ["sad", "happy"]) == f"{uri}: row 3: frame {cell!r} is not a number"


def test_an_index_beyond_the_classes_is_named_as_it_stands(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label\na,2.0\n")
    assert error(uri, ["sad", "happy"]) == f"{uri}: row 2: label 2.0 is beyond the 2 classes sadness, happiness"
    assert error(uri) == f"{uri}: row 2: label 2.0 is an index: declare the classes that it counts"


def test_split_errors(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label,split\na,sad,train\nb,sad,test\n")
    assert error(uri, split="val") == f"{uri}: no row of split 'val' (there are: test, train)"
    uri = csv(tmp_path, "path,label\na,sad\n")
    assert error(uri, split="val") == f"{uri}: split 'val' is wanted, but there is no column `split`"


def test_class_set_errors(tmp_path: Path) -> None:
    uri = csv(tmp_path, "path,label\na,sad\n")
    assert error(uri, ["sad", "sadness"]) == "classes: sadness is there twice"
    assert error(uri, []) == "classes: none"


def test_what_is_not_there(tmp_path: Path) -> None:
    assert error(f"{tmp_path}/no.csv") == f"{tmp_path}/no.csv: cannot read the manifest (FileNotFoundError)"
    assert error(f"{tmp_path}/no") == f"{tmp_path}/no: no .csv or .parquet file and no folder"


def test_a_folder_is_an_image_folder(tmp_path: Path) -> None:
    for name in ("Happy/a.png", "sad/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    manifest = read_manifest(str(tmp_path))
    assert manifest.uris == [f"{tmp_path}/Happy/a.png", f"{tmp_path}/sad/b.jpg"]
    assert names(manifest) == ["happiness", "sadness"]


def test_every_column_is_read(tmp_path: Path) -> None:
    uri = csv(tmp_path, 'path,label,subject,split,frame\n"x/a,b.png",neutral,s,train,4\n/elsewhere/b.png,,,val,-1\n')
    manifest = read_manifest(uri, ("sadness", "neutral"))
    assert (manifest.uris, manifest.subjects, manifest.frames) == (
        [f"{tmp_path}/x/a,b.png", "/elsewhere/b.png"],
        ["s", ""],
        [4, -1],
    )
    np.testing.assert_array_equal(manifest.labels, [1, -1])


def test_keys_are_literal(tmp_path: Path) -> None:
    uris = [f"{tmp_path}/f.tar!/./a.png", f"{tmp_path}/~/b.png", "s3://b/c//../d.png", f"{tmp_path}/a#1%20.png"]
    assert read_manifest(csv(tmp_path, "path,label\n" + "".join(f"{uri},sad\n" for uri in uris))).uris == uris


def side(**columns: list[str] | None) -> Manifest:
    uris = columns.pop("uris", None) or ["x"]
    return Manifest(uris, np.zeros(len(uris), np.int64), ("neutral",), **columns)  # type: ignore[arg-type]


def test_check_disjoint() -> None:
    check_disjoint(side(uris=["a"], subjects=["s"]), side(uris=["b"], subjects=["t"]))
    check_disjoint(side(uris=["a"], subjects=[""]), side(uris=["b"], subjects=[""]))
    check_disjoint(side(uris=["a"], subjects=["s"]), side(uris=["b"]))
    for column, word in (("subjects", "subject"), ("videos", "video"), ("groups", "group")):
        train = side(uris=["a", "b", "c"], **{column: ["p", "q", "r"]})
        val = side(uris=["d", "e"], **{column: ["r", "q"]})
        with pytest.raises(UserError, match=re.escape(f"{word} q and 1 more in both training and validation")):
            check_disjoint(train, val)
    with pytest.raises(UserError, match="picture a in both"):
        check_disjoint(side(uris=["a"]), side(uris=["a"]))
    faces = [f"a#face={side}.0,2.0,3.0,4.0" for side in (1, 2)]
    for ours, theirs in ((faces[0], faces[1]), ("a", faces[1])):
        with pytest.raises(UserError, match="picture a in both"):
            check_disjoint(side(uris=[ours]), side(uris=[theirs]))


def test_a_large_manifest(tmp_path: Path) -> None:
    rows = "".join(f"faces/{i:06d}.png,sad\n" for i in range(100_000))
    assert len(read_manifest(csv(tmp_path, "path,label\n" + rows))) == 100_000


# ---- folder per class


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def pairs(manifest: Manifest, root: str = "/images") -> list[tuple[str, str | None]]:
    """(path under root, class name) per row."""
    labels = [manifest.classes[label] if label >= 0 else None for label in manifest.labels.tolist()]
    return [(uri.removeprefix(f"{root}/"), label) for uri, label in zip(manifest.uris, labels, strict=True)]


def test_image_folder(tmp_path: Path) -> None:
    for name in (
        "Happy/b.png",
        "Happy/deeper/a.JPG",
        "angry/1.webp",
        "angry/notes.txt",
        ".cache/x.png",
        "Happy/.ipynb_checkpoints/b.png",
        "Happy/deeper/.b.png",
        "angry/._1.webp",
        "angry/__MACOSX/1.webp",
        "README.md",
        "cover.png",
    ):
        write(tmp_path / name)
    manifest = read_image_folder(str(tmp_path))
    assert manifest.classes == ("anger", "happiness")
    assert pairs(manifest, str(tmp_path)) == [
        ("Happy/b.png", "happiness"),
        ("Happy/deeper/a.JPG", "happiness"),
        ("angry/1.webp", "anger"),
    ]
    declared = read_image_folder(str(tmp_path), ["sad", "happy", "angry"])
    assert declared.classes == ("sadness", "happiness", "anger")
    assert [label for _, label in pairs(declared)] == ["happiness", "happiness", "anger"]


def test_image_folder_with_splits(tmp_path: Path) -> None:
    for name in ("train/sad/a.png", "test/sad/b.png", "test/fear/c.png"):
        write(tmp_path / name)
    manifest = read_image_folder(str(tmp_path), split="test")
    assert pairs(manifest, f"{tmp_path}/test") == [("fear/c.png", "fear"), ("sad/b.png", "sadness")]
    with pytest.raises(UserError, match=r"has the splits test, train: name one of them"):
        read_image_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"/val: no folder with images"):
        read_image_folder(str(tmp_path), split="val")


def test_image_folder_custom_classes(tmp_path: Path) -> None:
    for name in ("Awe/a.png", "0/b.png"):
        write(tmp_path / name)
    with pytest.raises(UserError, match=r"folder '0' is no class \(known: neutral"):
        read_image_folder(str(tmp_path))
    assert pairs(read_image_folder(str(tmp_path), ["0", "awe"]), str(tmp_path)) == [
        ("0/b.png", "0"),
        ("Awe/a.png", "awe"),
    ]
    with pytest.raises(UserError, match=r"folder 'Awe' is no class \(known: 0, sadness\)"):
        read_image_folder(str(tmp_path), ["0", "sad"])
