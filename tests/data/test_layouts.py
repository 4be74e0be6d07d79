"""layouts: a golden folder per published set, read through `read_manifest` and asserted by name."""

import io
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import EndpointConnectionError
from PIL import Image

from ray_fer.config import load_config
from ray_fer.data import layout_readers
from ray_fer.data.crop import decode_uri
from ray_fer.data.decode import decode
from ray_fer.data.layouts import LAYOUTS, normalise_argument
from ray_fer.data.manifests import Manifest, named_pictures, read_manifest
from ray_fer.data.uris import split_face
from ray_fer.errors import UserError
from ray_fer.expressions import ABAW, EXPRESSIONS, SEVEN
from ray_fer.jobs.backbone_inputs import open_inputs
from ray_fer.labeling.exclusions import name_exclusions
from ray_fer.training.run_folder import absolute
from tests.images import picture


def write(path: Path, text: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def pairs(manifest: Manifest, root: str) -> list[tuple[str, str | None]]:
    """(path under root, class name) per row."""
    labels = [manifest.classes[label] if label >= 0 else None for label in manifest.labels.tolist()]
    return [(uri.removeprefix(f"{root}/"), label) for uri, label in zip(manifest.uris, labels, strict=True)]


# ----------------------------------------------------------------------------------------------------------- AffectNet

AFFECTNET_NAMES = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]


def affectnet(folder: Path, codes: range = range(11), images: str = "Manually_Annotated_Images") -> str:
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    write(folder / "training.csv", header + "".join(f"{c}/{c}.jpg,1,2,3,4,1;2;3,{c},0.5,-2\n" for c in codes))
    write(folder / "validation.csv", header + "11/val.jpg,1,2,3,4,1;2;3,6,0.5,-2\n")
    (folder / images).mkdir(exist_ok=True)
    return f"affectnet:{folder}"


def test_affectnet(tmp_path: Path) -> None:
    uri, images = affectnet(tmp_path), f"{tmp_path}/Manually_Annotated_Images"
    manifest = read_manifest(uri, split="train")
    assert manifest.classes == EXPRESSIONS[:8]
    train = [(f"{code}/{code}.jpg", name) for code, name in enumerate(AFFECTNET_NAMES)]
    assert pairs(manifest, images) == train
    assert pairs(read_manifest(f"{uri}#val"), images) == [("11/val.jpg", "anger")]
    assert pairs(read_manifest(uri), images) == [*train, ("11/val.jpg", "anger")]
    assert len(named_pictures(uri)) == 12, "those without a class too"


def test_affectnet_onto_other_class_sets(tmp_path: Path) -> None:
    uri, images = affectnet(tmp_path), f"{tmp_path}/Manually_Annotated_Images"
    assert [name for _, name in pairs(read_manifest(f"{uri}#train", SEVEN), images)] == AFFECTNET_NAMES[:7]
    assert [name for _, name in pairs(read_manifest(f"{uri}#train", ABAW), images)] == AFFECTNET_NAMES[:7]


def test_a_set_whose_store_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> bool:
        raise EndpointConnectionError(endpoint_url=uri)

    monkeypatch.setattr(layout_readers.storage, "exists", refuse)
    with pytest.raises(UserError, match=r'^s3://b/RAF-DB: cannot be read \(Could not connect .* "s3://b/RAF-DB/EmoLab'):
        read_manifest("rafdb:s3://b/RAF-DB")


def test_affectnet_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.csv: row 13: label 11 is not one of 0 to 10"):
        read_manifest(affectnet(tmp_path, range(12)))
    with pytest.raises(UserError, match="no row is left"):
        read_manifest(affectnet(tmp_path, range(8, 11)), split="train")
    write(tmp_path / "training.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match=r"no column `subDirectory_filePath` \(has: a, b\)"):
        read_manifest(f"affectnet:{tmp_path}")
    (tmp_path / "training.csv").unlink()
    with pytest.raises(UserError, match=rf"^{tmp_path}: there is no training\.csv or .*/training\.csv in it$"):
        read_manifest(f"affectnet:{tmp_path}")


# -------------------------------------------------------------------------------------------------------------- RAF-DB

RAF_NAMES = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
RAF_LINES = "".join(f"train_0000{code}.jpg {code}\n" for code in range(1, 8)) + "test_0001.jpg 5\n"


def raf_db(folder: Path, lines: str = RAF_LINES, kind: str = "aligned") -> str:
    write(folder / "basic" / "EmoLabel" / "list_patition_label.txt", lines)
    (folder / "basic" / "Image" / kind).mkdir(parents=True, exist_ok=True)
    return f"rafdb:{folder}"


def test_raf_db(tmp_path: Path) -> None:
    uri, images = raf_db(tmp_path), f"{tmp_path}/basic/Image/aligned"
    train = [(f"train_0000{code}_aligned.jpg", name) for code, name in enumerate(RAF_NAMES, start=1)]
    assert pairs(read_manifest(uri, split="train"), images) == train
    assert pairs(read_manifest(f"{uri}#train"), images) == train
    assert len(read_manifest(uri)) == 8
    original = raf_db(tmp_path / "b", kind="original")
    assert pairs(read_manifest(f"{original}#test"), f"{tmp_path}/b/basic/Image/original") == [
        ("test_0001.jpg", "sadness")
    ]
    with pytest.raises(UserError, match=r"row 1: label 0 is not one of 1 to 7"):
        read_manifest(raf_db(tmp_path, "train_1.jpg 0\n"))
    with pytest.raises(UserError, match=r"row 2: 1 fields instead of 2"):
        read_manifest(raf_db(tmp_path, "train_1.jpg 1\ntrain_2.jpg\n"))


# ----------------------------------------------------------------------------------------------------- FER2013, FERPlus

FER_NAMES = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]


def fer2013(folder: Path) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (7, 48, 48), dtype=np.uint8)
    usages = ["Training"] * 5 + ["PublicTest", "PrivateTest"]
    rows = [
        f"{code},{' '.join(map(str, images[code].ravel().tolist()))},{usage}\n" for code, usage in enumerate(usages)
    ]
    write(folder / "fer2013.csv", "emotion,pixels,Usage\n" + "".join(rows))
    return images


def test_fer2013(tmp_path: Path) -> None:
    images, folder = fer2013(tmp_path), f"{tmp_path}/fer2013-pictures"
    manifest = read_manifest(f"fer2013:{tmp_path}")
    assert manifest.classes == SEVEN
    assert pairs(manifest, folder) == [(f"fer000000{i}.png", name) for i, name in enumerate(FER_NAMES)]
    np.testing.assert_array_equal(
        np.stack([decode(Path(uri).read_bytes(), 48)[..., 0] for uri in manifest.uris]), images
    )
    assert [len(read_manifest(f"fer2013:{tmp_path}#{split}")) for split in ("train", "val", "test")] == [5, 1, 1]
    assert pairs(read_manifest(f"fer2013:{tmp_path}#val"), folder) == [("fer0000005.png", "surprise")]
    assert pairs(read_manifest(f"{folder}/manifest.csv", split="val"), folder) == [("fer0000005.png", "surprise")]


def test_the_pictures_of_fer2013_are_written_once_and_to_their_end(tmp_path: Path) -> None:
    fer2013(tmp_path)
    uri, folder = f"fer2013:{tmp_path}", tmp_path / "fer2013-pictures"
    read_manifest(uri)
    (tmp_path / "fer2013.csv").unlink()
    assert len(read_manifest(uri)) == 7
    fer2013(tmp_path)
    (folder / "manifest.csv").unlink()  # as after an interruption
    (folder / "fer0000006.png").unlink()
    assert all(Path(uri).exists() for uri in read_manifest(uri).uris)


@pytest.mark.parametrize("pixels", ["1 2 3", " ".join(["256"] * 2304), " ".join(["x"] * 2304), ""])
def test_fer2013_errors(tmp_path: Path, pixels: str) -> None:
    write(tmp_path / "fer2013.csv", f"emotion,pixels,Usage\n0,{pixels},Training\n")
    with pytest.raises(UserError, match="row 2: pixels are not 2304 numbers from 0 to 255"):
        read_manifest(f"fer2013:{tmp_path}")


def test_ferplus(tmp_path: Path) -> None:
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    names = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"]
    winners = [[7 if column == row else 0 for column in range(10)] for row in range(10)]
    tie, close, not_a_face = [5, 5] + [0] * 8, [4, 3, 3] + [0] * 7, [0] * 9 + [10]
    text = header
    for row, votes in enumerate([*winners, tie, close]):
        text += f"Training,fer{row:07d}.png,{','.join(map(str, votes))}\n"
    text += f"Training,,{','.join(map(str, not_a_face))}\nPublicTest,fer0000099.png,{','.join(map(str, winners[1]))}\n"
    write(tmp_path / "fer2013new.csv", text)
    fer2013(tmp_path)
    uri, folder = f"ferplus:{tmp_path}", f"{tmp_path}/fer2013-pictures"
    expected = [(f"fer{row:07d}.png", name) for row, name in enumerate(names)]
    close_row = ("fer0000011.png", "neutral")
    assert pairs(read_manifest(uri, split="train"), folder) == [*expected, close_row]
    assert pairs(read_manifest(uri, SEVEN, "train"), folder) == [*expected[:7], close_row]
    assert pairs(read_manifest(uri, split="val"), folder) == [("fer0000099.png", "happiness")]
    unlabeled = [f"fer{row:07d}.png" for row in (8, 9, 10)]
    assert named_pictures(f"{uri}#train") == [
        f"{folder}/{name}" for name in [*(name for name, _ in expected), *unlabeled, close_row[0]]
    ]


# ---------------------------------------------------------------------------------------------------------------- ExpW

EXPW_LINES = "".join(f"some name_{code}.jpg {code} 10 2{code} 60 30 95.5 {code}\n" for code in range(7))


def test_expw(tmp_path: Path) -> None:
    write(tmp_path / "label.lst", EXPW_LINES)
    (tmp_path / "origin").mkdir()
    manifest = read_manifest(f"expw:{tmp_path}")
    pictures = [(split_face(uri)[0].removeprefix(f"{tmp_path}/origin/"), name) for uri, name in pairs(manifest, "-")]
    assert pictures == [(f"some name_{code}.jpg", name) for code, name in enumerate(FER_NAMES)]
    faces = [face for uri in manifest.uris if (face := split_face(uri)[1])]
    # The boxes are (left, top, right, bottom) = (20 + code, 10, 60, 30).
    assert [(face.cx, face.cy, face.side, face.angle) for face in faces] == [
        (40 + code / 2, 20.0, 40.0 - code, 0.0) for code in range(7)
    ]
    assert [name for _, name in pairs(read_manifest(f"expw:{tmp_path}", ["sad"]), "-")] == ["sadness"]
    write(tmp_path / "label.lst", "a.jpg 0 10 20 20 10 90 3\n")
    with pytest.raises(UserError, match=r"label\.lst: row 1: its face is 0 x 0 pixels"):
        read_manifest(f"expw:{tmp_path}")


def test_the_faces_of_expw_are_cut_out_of_their_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[10:30, 20:40] = [10, 200, 30]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "group.png").write_bytes(buffer.getvalue())
    write(tmp_path / "label.lst", "group.png 0 10 20 40 30 90 3\ngroup.png 1 0 0 10 10 90 6\n")
    manifest = read_manifest(f"expw:{tmp_path}")
    assert [name for _, name in pairs(manifest, "-")] == ["happiness", "neutral"]
    assert manifest.groups == ["group", "group"]
    green, black = (decode_uri(uri, buffer.getvalue(), 10) for uri in manifest.uris)
    assert (green[2:-2, 2:-2] == [10, 200, 30]).all()
    assert (black[:8, :8] == 0).all()


# ----------------------------------------------------------------------------------------------------------- Aff-Wild2

HEADER = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"


def affwild2(folder: Path, header: str = HEADER) -> tuple[str, str]:
    annotations, crops = folder / "annotations", folder / "cropped_aligned"
    write(annotations / "Train_Set" / "4-30-1920x1080.txt", header + "".join(f"{code}\n" for code in (-1, *range(8))))
    write(annotations / "Train_Set" / "7_left.txt", header + "4\n4\n4\n")
    write(annotations / "Train_Set" / "no_crops.txt", header + "4\n")
    write(annotations / "Train_Set" / "readme.md")
    write(annotations / "Validation_Set" / "8.txt", header + "1\n")
    for frame in (1, 2, 3, 5, 6, 7, 8, 9, 10):  # frame 4 has no crop, frame 10 no label
        write(crops / "4-30-1920x1080" / f"{frame:05d}.jpg")
    write(crops / "7_left" / "00003.jpg")
    write(crops / "8" / "00001.jpg")
    return f"affwild2:{folder}", str(crops)


def test_affwild2(tmp_path: Path) -> None:
    uri, crops = affwild2(tmp_path)
    manifest = read_manifest(uri, split="train")
    assert manifest.classes == ABAW
    # Line i is frame i from 1: frame 1 is -1, frame f is class f - 2, and the hole at frame 4 shifts nothing.
    first = [(f"4-30-1920x1080/{frame:05d}.jpg", ABAW[frame - 2]) for frame in (2, 3, 5, 6, 7, 8, 9)]
    assert pairs(manifest, crops) == [*first, ("7_left/00003.jpg", "happiness")]
    assert manifest.frames == [2, 3, 5, 6, 7, 8, 9, 3]
    assert manifest.videos == ["4-30-1920x1080"] * 7 + ["7_left"]
    assert manifest.groups == ["4-30-1920x1080"] * 7 + ["7"]
    assert pairs(read_manifest(f"{uri}#val"), crops) == [("8/00001.jpg", "anger")]
    assert len(read_manifest(uri)) == 9


def test_affwild2_uses_the_files_own_header(tmp_path: Path) -> None:
    uri, crops = affwild2(tmp_path, "Other,Surprise,Sadness,Happiness,Fear,Disgust,Anger,Neutral\n")
    names = [name for _, name in pairs(read_manifest(f"{uri}#train", SEVEN), crops)]
    assert names == ["surprise", "happiness", "fear", "disgust", "anger", "neutral", "fear"]


def test_affwild2_errors(tmp_path: Path) -> None:
    uri, _ = affwild2(tmp_path)
    left = tmp_path / "annotations" / "Train_Set" / "7_left.txt"
    write(left, HEADER + "4\n9\n")
    with pytest.raises(UserError, match=r"7_left\.txt: row 3: label 9 is not one of 0 to 7"):
        read_manifest(uri)
    write(left, HEADER + "4\nx\n")
    with pytest.raises(UserError, match=r"7_left\.txt: row 3: 'x' is not a whole number"):
        read_manifest(uri)
    (tmp_path / "cropped_aligned").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"there is no cropped_aligned or .*crops in it"):
        read_manifest(uri)


# ------------------------------------------------------------------------------------------------------- what jobs name


@pytest.mark.parametrize(
    ("uri", "split", "message"),
    [
        (
            "rafbd:/data/RAF-DB",
            None,
            f"no layout is called rafbd (known: {', '.join(LAYOUTS)})",
        ),
        ("rafbd:s3://bucket/RAF-DB", None, "no layout is called rafbd (known: affectnet"),
        ("rafdb:/data/RAF-DB#val", None, "rafdb has no split 'val' (there are: train, test)"),
        ("rafdb:/data/RAF-DB", "val", "rafdb has no split 'val' (there are: train, test)"),
        ("expw:/data/ExpW#train", None, "expw has no split 'train' (there are: none)"),
        ("rafdb:/data/RAF-DB#train", "test", "split 'test' is wanted of it; name one of them"),
    ],
)
def test_what_is_no_layout_or_no_split_is_an_error(uri: str, split: str | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_manifest(uri, split=split)
    assert str(error.value).startswith(f"{uri}: {message}")
    assert "\n" not in str(error.value)


def test_other_uris_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set:1" / "m.csv", "path,label\na.png,sad\n")
    assert len(read_manifest("set:1/m.csv")) == 1
    assert len(read_manifest(f"file:{tmp_path}/set:1/m.csv")) == 1
    assert normalise_argument("labeled", "set:1/m.csv") == f"{tmp_path}/set:1/m.csv"


def test_a_layout_keeps_its_name_and_split_where_its_folder_is_normalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise_argument("val", "rafdb:/data/RAF-DB#train") == "rafdb:/data/RAF-DB#train"
    assert normalise_argument("val", "RAFDB:./RAF-DB/") == f"rafdb:{tmp_path}/RAF-DB"
    assert normalise_argument("val", "ferplus:s3://b/x/#test") == "ferplus:s3://b/x#test"
    with pytest.raises(UserError, match=r"^val=rafbd:/x: no layout is called rafbd"):
        normalise_argument("val", "rafbd:/x")
    assert sorted(LAYOUTS) == sorted(["affectnet", "rafdb", "fer2013", "ferplus", "expw", "affwild2"])


def test_a_job_takes_both_splits_of_a_set(tmp_path: Path) -> None:
    lines = "".join(f"{split}_{code}{n}.jpg {code}\n" for split in ("train", "test") for code in (1, 2) for n in (0, 1))
    uri = raf_db(tmp_path, lines)
    for number, line in enumerate(lines.splitlines()):
        name = line.split(" ")[0].replace(".jpg", "_aligned.jpg")
        (tmp_path / "basic" / "Image" / "aligned" / name).write_bytes(picture(number))
    arguments = [f"labeled={uri}#train", f"val={uri}#test", f"out={tmp_path}/out", "classes=[surprise,fear]"]
    config = absolute(load_config("train_backbone", arguments), "labeled", "val", "out")
    assert (config.labeled, config.val) == (f"{uri}#train", f"{uri}#test")
    inputs = open_inputs(config)
    assert (len(inputs.labeled), len(inputs.val), inputs.labeled.classes) == (4, 4, ("surprise", "fear"))
    assert all("/train_" in each for each in inputs.labeled.uris)
    with pytest.raises(UserError, match=r"picture .* in both training and validation"):
        open_inputs(load_config("train_backbone", [f"labeled={uri}", *arguments[1:]]))
    assert len(name_exclusions([uri, f"{uri}#train"])[f"{uri}#train"]) == 4
    evaluated = load_config("evaluate", [f"data={uri}", "split=test", "model=m", "out=o"])
    assert len(read_manifest(evaluated.data, split=evaluated.split)) == 4
