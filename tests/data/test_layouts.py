"""layouts: a golden file per format, asserted by name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_fer.data.decode import decode
from ray_fer.data.layouts import (
    convert_fer2013,
    crop_faces,
    read_affectnet,
    read_affwild2,
    read_expw,
    read_fer2013,
    read_ferplus,
    read_image_folder,
    read_raf_db,
    write_abaw_submission,
)
from ray_fer.data.manifests import Manifest, read_manifest
from ray_fer.errors import UserError
from ray_fer.expressions import ABAW, EXPRESSIONS, SEVEN


def write(path: Path, text: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def pairs(manifest: Manifest, root: str = "/images") -> list[tuple[str, str | None]]:
    """(path under root, class name) per row."""
    labels = [manifest.classes[label] if label >= 0 else None for label in manifest.labels.tolist()]
    return [(uri.removeprefix(f"{root}/"), label) for uri, label in zip(manifest.uris, labels, strict=True)]


# ---------------------------------------------------------------------------------------------------- folder per class


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


# ----------------------------------------------------------------------------------------------------------- AffectNet

AFFECTNET_NAMES = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]


def affectnet(folder: Path, codes: range = range(11)) -> str:
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    return write(folder / "a.csv", header + "".join(f"{c}/{c}.jpg,1,2,3,4,1;2;3,{c},0.5,-2\n" for c in codes))


def test_affectnet(tmp_path: Path) -> None:
    manifest = read_affectnet(affectnet(tmp_path), "/images")
    assert manifest.classes == EXPRESSIONS[:8]
    assert pairs(manifest) == [(f"{code}/{code}.jpg", name) for code, name in enumerate(AFFECTNET_NAMES)]


def test_affectnet_onto_other_class_sets(tmp_path: Path) -> None:
    uri = affectnet(tmp_path)
    assert [name for _, name in pairs(read_affectnet(uri, "/images", SEVEN))] == AFFECTNET_NAMES[:7]
    assert [name for _, name in pairs(read_affectnet(uri, "/images", ABAW))] == AFFECTNET_NAMES[:7]
    mapped = read_affectnet(uri, "/images", ABAW, contempt_as_other=True)
    assert [name for _, name in pairs(mapped)] == [*AFFECTNET_NAMES[:7], "other"]


def test_affectnet_errors(tmp_path: Path) -> None:
    uri = affectnet(tmp_path, range(12))
    with pytest.raises(UserError, match=r"a\.csv: row 13: label 11 is not one of 0 to 10"):
        read_affectnet(uri, "/images")
    with pytest.raises(UserError, match="no row is left"):
        read_affectnet(affectnet(tmp_path, range(8, 11)), "/images")
    with pytest.raises(UserError, match=r"no column `subDirectory_filePath` \(has: a, b\)"):
        read_affectnet(write(tmp_path / "b.csv", "a,b\n1,2\n"), "/images")
    with pytest.raises(UserError, match=r"c\.csv: no such file"):
        read_affectnet(str(tmp_path / "c.csv"), "/images")


# -------------------------------------------------------------------------------------------------------------- RAF-DB

RAF_NAMES = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]


def test_raf_db(tmp_path: Path) -> None:
    lines = "".join(f"train_0000{code}.jpg {code}\n" for code in range(1, 8)) + "test_0001.jpg 5\n"
    uri = write(tmp_path / "list_patition_label.txt", lines)
    train = [(f"train_0000{code}_aligned.jpg", name) for code, name in enumerate(RAF_NAMES, start=1)]
    assert pairs(read_raf_db(uri, "/images", split="train")) == train
    assert pairs(read_raf_db(uri, "/images", split="test", aligned=False)) == [("test_0001.jpg", "sadness")]
    assert len(read_raf_db(uri, "/images")) == 8
    with pytest.raises(UserError, match=r"row 1: label 0 is not one of 1 to 7"):
        read_raf_db(write(tmp_path / "x.txt", "train_1.jpg 0\n"), "/images")
    with pytest.raises(UserError, match=r"row 2: 1 fields instead of 2"):
        read_raf_db(write(tmp_path / "x.txt", "train_1.jpg 1\ntrain_2.jpg\n"), "/images")


# ----------------------------------------------------------------------------------------------------- FER2013, FERPlus

FER_NAMES = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]


def fer2013(folder: Path) -> tuple[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (7, 48, 48), dtype=np.uint8)
    usages = ["Training"] * 5 + ["PublicTest", "PrivateTest"]
    rows = [
        f"{code},{' '.join(map(str, images[code].ravel().tolist()))},{usage}\n" for code, usage in enumerate(usages)
    ]
    return write(folder / "fer2013.csv", "emotion,pixels,Usage\n" + "".join(rows)), images


def test_fer2013(tmp_path: Path) -> None:
    uri, images = fer2013(tmp_path)
    data = read_fer2013(uri)
    np.testing.assert_array_equal(data.images, images)
    assert [data.classes[label] for label in data.labels] == FER_NAMES
    assert data.splits == ["train"] * 5 + ["val", "test"]


def test_convert_fer2013(tmp_path: Path) -> None:
    uri, images = fer2013(tmp_path)
    converted = convert_fer2013(uri, f"{tmp_path}/out")
    manifest = read_manifest(f"{tmp_path}/out/manifest.csv")
    assert manifest.uris == converted.uris
    assert manifest.classes == SEVEN
    assert pairs(manifest, f"{tmp_path}/out") == [
        (f"images/fer000000{i}.png", name) for i, name in enumerate(FER_NAMES)
    ]
    np.testing.assert_array_equal(decode(Path(manifest.uris[3]).read_bytes(), 48)[..., 0], images[3])
    assert pairs(read_manifest(f"{tmp_path}/out/manifest.csv", split="val"), f"{tmp_path}/out") == [
        ("images/fer0000005.png", "surprise")
    ]


@pytest.mark.parametrize("pixels", ["1 2 3", " ".join(["256"] * 2304), " ".join(["x"] * 2304), ""])
def test_fer2013_errors(tmp_path: Path, pixels: str) -> None:
    uri = write(tmp_path / "f.csv", f"emotion,pixels,Usage\n0,{pixels},Training\n")
    with pytest.raises(UserError, match="row 2: pixels are not 2304 numbers from 0 to 255"):
        read_fer2013(uri)


def test_ferplus(tmp_path: Path) -> None:
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    names = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"]
    winners = [[7 if column == row else 0 for column in range(10)] for row in range(10)]
    tie, close, not_a_face = [5, 5] + [0] * 8, [4, 3, 3] + [0] * 7, [0] * 9 + [10]
    text = header
    for row, votes in enumerate([*winners, tie, close]):
        text += f"Training,fer{row:07d}.png,{','.join(map(str, votes))}\n"
    text += f"Training,,{','.join(map(str, not_a_face))}\nPublicTest,fer0000099.png,{','.join(map(str, winners[1]))}\n"
    uri = write(tmp_path / "fer2013new.csv", text)
    expected = [(f"fer{row:07d}.png", name) for row, name in enumerate(names)]
    close_row = ("fer0000011.png", "neutral")
    assert pairs(read_ferplus(uri, "/images", split="train")) == [*expected, close_row]
    assert pairs(read_ferplus(uri, "/images", split="train", min_votes=6)) == expected
    assert pairs(read_ferplus(uri, "/images", SEVEN, split="train", min_votes=6)) == expected[:7]
    assert pairs(read_ferplus(uri, "/images", split="val")) == [("fer0000099.png", "happiness")]
    kept = pairs(read_ferplus(uri, "/images", SEVEN, split="train", keep_unlabeled=True))
    unlabeled = [(f"fer{row:07d}.png", None) for row in (7, 8, 9, 10)]
    assert kept == [*expected[:7], *unlabeled, close_row]


# ---------------------------------------------------------------------------------------------------------------- ExpW

EXPW_LINES = "".join(f"some name_{code}.jpg {code} 10 2{code} 60 30 95.5 {code}\n" for code in range(7))


def test_expw(tmp_path: Path) -> None:
    uri = write(tmp_path / "label.lst", EXPW_LINES + "low.jpg 0 1 2 3 4 12.0 3\n")
    manifest, boxes = read_expw(uri, "/images", min_confidence=50)
    assert pairs(manifest) == [(f"some name_{code}.jpg", name) for code, name in enumerate(FER_NAMES)]
    assert boxes.tolist() == [[20 + code, 10, 60, 30] for code in range(7)]
    sad, box = read_expw(uri, "/images", ["sad"])
    assert (pairs(sad), box.tolist()) == ([("some name_4.jpg", "sadness")], [[24, 10, 60, 30]])


def test_crop_faces(tmp_path: Path) -> None:
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[10:30, 20:40] = [10, 200, 30]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "group.png").write_bytes(buffer.getvalue())
    uri = write(tmp_path / "label.lst", "group.png 0 10 20 40 30 90 3\ngroup.png 1 0 0 10 10 90 6\n")
    manifest, boxes = read_expw(uri, str(tmp_path))
    crops = crop_faces(manifest, boxes, f"{tmp_path}/crops")
    assert crops.groups == ["group", "group"]
    again = read_manifest(f"{tmp_path}/crops/manifest.csv", SEVEN)
    assert pairs(again, f"{tmp_path}/crops/images") == [("00000000.png", "happiness"), ("00000001.png", "neutral")]
    assert again.groups == crops.groups
    assert (decode(Path(again.uris[0]).read_bytes(), 20) == [10, 200, 30]).all()
    assert (decode(Path(again.uris[1]).read_bytes(), 10) == 0).all()
    wide = crop_faces(manifest, boxes, f"{tmp_path}/wide", margin=0.5)
    assert Image.open(wide.uris[0]).size == (40, 40)
    face = np.asarray(Image.open(wide.uris[0]))
    assert (face[10:30, 10:30] == [10, 200, 30]).all()
    assert face.sum() == 20 * 20 * 240


# ----------------------------------------------------------------------------------------------------------- Aff-Wild2

HEADER = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"


def affwild2(folder: Path, header: str = HEADER) -> tuple[str, str]:
    write(folder / "ann" / "4-30-1920x1080.txt", header + "".join(f"{code}\n" for code in (-1, *range(8))))
    write(folder / "ann" / "7_left.txt", header + "4\n4\n4\n")
    write(folder / "ann" / "no_crops.txt", header + "4\n")
    write(folder / "ann" / "readme.md")
    for frame in (1, 2, 3, 5, 6, 7, 8, 9, 10):  # frame 4 has no crop, frame 10 no label
        write(folder / "crops" / "4-30-1920x1080" / f"{frame:05d}.jpg")
    write(folder / "crops" / "7_left" / "00003.jpg")
    return f"{folder}/ann", f"{folder}/crops"


def test_affwild2(tmp_path: Path) -> None:
    annotations, crops = affwild2(tmp_path)
    manifest = read_affwild2(annotations, crops)
    assert manifest.classes == ABAW
    # Line i is frame i from 1: frame 1 is -1, frame f is class f - 2, and the hole at frame 4 shifts nothing.
    first = [(f"4-30-1920x1080/{frame:05d}.jpg", ABAW[frame - 2]) for frame in (2, 3, 5, 6, 7, 8, 9)]
    assert pairs(manifest, crops) == [*first, ("7_left/00003.jpg", "happiness")]
    assert manifest.frames == [2, 3, 5, 6, 7, 8, 9, 3]
    assert manifest.videos == ["4-30-1920x1080"] * 7 + ["7_left"]
    assert manifest.groups == ["4-30-1920x1080"] * 7 + ["7"]


def test_affwild2_uses_the_files_own_header(tmp_path: Path) -> None:
    annotations, crops = affwild2(tmp_path, "Other,Surprise,Sadness,Happiness,Fear,Disgust,Anger,Neutral\n")
    manifest = read_affwild2(annotations, crops, SEVEN)
    names = [name for _, name in pairs(manifest)]
    assert names == ["surprise", "happiness", "fear", "disgust", "anger", "neutral", "fear"]


def test_affwild2_errors(tmp_path: Path) -> None:
    annotations, crops = affwild2(tmp_path)
    write(tmp_path / "ann" / "7_left.txt", HEADER + "4\n9\n")
    with pytest.raises(UserError, match=r"7_left\.txt: row 3: label 9 is not one of 0 to 7"):
        read_affwild2(annotations, crops)
    write(tmp_path / "ann" / "7_left.txt", HEADER + "4\nx\n")
    with pytest.raises(UserError, match=r"7_left\.txt: row 3: 'x' is not a whole number"):
        read_affwild2(annotations, crops)
    with pytest.raises(UserError, match="no labelled frame with a crop under /nowhere"):
        read_affwild2(annotations.replace("ann", "other"), "/nowhere")


def test_submission(tmp_path: Path) -> None:
    uri = f"{tmp_path}/predictions.txt"
    write_abaw_submission(uri, ["v1", "v1", "v2_left"], [1, 2, 17], ["neutral", "other", "happiness"])
    assert Path(uri).read_text() == (
        "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"
        "v1/00001.jpg,0\nv1/00002.jpg,7\nv2_left/00017.jpg,4\n"
    )
    with pytest.raises(UserError, match="v1 frame 1: 'contempt' is no class of the challenge"):
        write_abaw_submission(uri, ["v1"], [1], ["contempt"])
