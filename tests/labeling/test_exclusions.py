"""No picture to validate on becomes a pseudo-label, however it is spelled. One that cannot be read ends the job."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from ray_fer.config import load_config
from ray_fer.data.sources.parquet import Row
from ray_fer.data.uris import Face
from ray_fer.errors import UserError
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.jobs.self_train import _Loop, self_train
from ray_fer.labeling.exclusions import name_exclusions, read_exclusions
from ray_fer.selection.config import SelectionConfig
from ray_fer.storage import write_json
from tests.images import picture, tiny_model
from tests.shards import hugging_face, parquet_of, tar_of
from tests.system.jobs import refusal


def selection(*manifests: Path | str, **more: Any) -> SelectionConfig:
    job = load_config("select_pseudo_labels", ["table=t", "teacher=m", "out=o"])
    config: SelectionConfig = job.selection
    return config.model_copy(update={"exclude": [str(each) for each in manifests], **more})


def manifest(folder: Path, *cells: str, header: str = "path,label", name: str = "val.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *cells]) + "\n")
    return folder / name


def digest(seed: int) -> bytes:
    return xxhash.xxh3_128_digest(picture(seed))


def spellings(folder: Path) -> dict[str, bytes]:
    """Ways to name pictures that are there, with their digests."""
    (folder / "my faces").mkdir(parents=True)
    (folder / "my faces" / "a%20b!.jpg").write_bytes(picture(1))
    (folder / "f.tar").write_bytes(tar_of({"./a/0.jpg": picture(2), "a//../1.jpg": picture(3)}))
    (folder / "t.parquet").write_bytes(parquet_of({"image": hugging_face([picture(4), picture(5)])}))
    plain = folder / "my faces" / "a%20b!.jpg"
    row = Row("./x/../t.parquet", "image", 1).uri
    return {
        "my faces/a%20b!.jpg": digest(1),
        "./my faces//x/../a%20b!.jpg": digest(1),
        str(plain): digest(1),
        f"/{plain}": digest(1),
        plain.as_uri(): digest(1),
        plain.as_uri().replace("file:///", "file:/"): digest(1),
        plain.as_uri().replace("file:///", "file://localhost/"): digest(1),
        "f.tar!/./a/0.jpg": digest(2),
        "./f.tar!/./a/0.jpg": digest(2),
        f"{folder}/../{folder.name}/f.tar!/a//../1.jpg": digest(3),
        (folder / "f.tar").as_uri() + "!/./a/0.jpg": digest(2),
        row: digest(5),
        Face(9.0, 9.0, 8.0, 0.0).uri_in("./f.tar!/./a/0.jpg"): digest(2),
    }


def test_every_spelling_excludes_by_content(tmp_path: Path) -> None:
    for cell, wanted in spellings(tmp_path / "set").items():
        found = read_exclusions(selection(manifest(tmp_path / "set", f'"{cell}",anger')))
        assert found.digests == {wanted}, cell


@pytest.mark.parametrize("label", ["anger", "1", "", "of another set"])
def test_labels_do_not_matter(label: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / f"{seed}.jpg").write_bytes(picture(seed))
    found = read_exclusions(selection(manifest(tmp_path, f"1.jpg,{label}", "1.jpg,sad", "2.jpg,")))
    assert found.digests == {digest(1), digest(2)}
    assert found.uris == {f"{tmp_path}/1.jpg", f"{tmp_path}/2.jpg"}
    assert read_exclusions(selection(manifest(tmp_path, "1.jpg", header="path"))).digests == {digest(1)}


def test_a_folder_excludes_its_pictures_at_any_depth(tmp_path: Path) -> None:
    for seed, name in enumerate(("0.jpg", "train/sad/1.jpg", "a/b/2.jpg", "a/.cache/3.jpg", "a/._0.jpg")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(seed))
    assert read_exclusions(selection(tmp_path / "set")).digests == {digest(seed) for seed in range(3)}


def test_every_face_of_an_excluded_picture_is_meant(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(picture(1))
    face = Face(9.0, 9.0, 8.0, 0.0)
    found = read_exclusions(selection(manifest(tmp_path, f'"{face.uri_in("photo.jpg")}",anger')))
    photo = f"{tmp_path}/photo.jpg"
    assert (found.uris, found.digests) == ({photo, face.uri_in(photo)}, {digest(1)})


def test_a_link_is_another_name_of_the_same_content(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(picture(1))
    os.symlink(tmp_path / "real", tmp_path / "link")
    found = read_exclusions(selection(manifest(tmp_path, "link/a.jpg,sad")))
    assert found.uris == {f"{tmp_path}/link/a.jpg"}
    assert found.digests == read_exclusions(selection(manifest(tmp_path, "real/a.jpg,sad"))).digests


def unreadable(folder: Path) -> dict[str, str]:
    """Cells that name no picture that can be read, and why."""
    (folder / "f.tar").write_bytes(tar_of({"./a/0.jpg": picture(2)}))
    (folder / "cut.tar").write_bytes(b"no tar at all" * 100)
    (folder / "t.parquet").write_bytes(parquet_of({"image": hugging_face([picture(4), None])}))
    (folder / "folder").mkdir()
    (folder / "notes.txt").write_text("no picture")
    return {
        "gone.jpg": "missing: not there",
        "~gone.jpg": "missing: not there",
        "f.tar!/a/0.jpg": "missing: no such member",
        "gone.tar!/a/0.jpg": "missing: not there",
        "cut.tar!/a/0.jpg": "missing: no such member",
        "t.parquet#column=image&row=7": "missing: its table has 2 rows now",
        "t.parquet#column=image&row=1": "undecodable: the row holds null",
        "gone.parquet#column=image&row=1": "missing: not there",
        "folder": "unreadable: IsADirectoryError",
        "f.tar": "undecodable: no picture",
        "notes.txt": "undecodable: no picture",
        "a.jpg#face=1,2,3,4": "missing: not there",
    }


def test_what_cannot_be_read_is_an_error_unless_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    for cell, why in unreadable(tmp_path).items():
        val = manifest(tmp_path, "a.jpg,anger", f'"{cell}",anger')
        said = f"selection.exclude={val}: 1 of 2 pictures cannot be read, the first: {tmp_path}/{cell} ({why}"
        with pytest.raises(UserError, match=f"^{re.escape(said)}") as refused:
            read_exclusions(selection(val))
        assert "\n" not in str(refused.value)
        caplog.clear()
        found = read_exclusions(selection(val, exclude_unreadable="skip"))
        assert found.digests == {digest(1)}
        assert f"{tmp_path}/{cell}" in found.uris
        assert said in caplog.text
        assert "copies of them are not excluded" in caplog.text


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a.jpg,sad", "http://host/a.jpg,sad"], "row 3: http://host/a.jpg: not a local path and not an s3://"),
        (["s3://bucket,sad"], "row 2: 's3://bucket' names no object"),
        (["file://host/a.jpg,sad"], "row 2: file://host/a.jpg: not a local path"),
        ([",sad"], "row 2: empty path"),
        ([], "the manifest is empty"),
    ],
)
def test_what_can_be_no_picture_is_named(cells: list[str], message: str, tmp_path: Path) -> None:
    val = manifest(tmp_path, *cells)
    for check in (lambda: name_exclusions([str(val)]), lambda: read_exclusions(selection(val))):
        with pytest.raises(UserError, match=rf"^selection.exclude={val}: {re.escape(message)}"):
            check()


def test_a_folder_without_pictures_excludes_nothing_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^selection.exclude={tmp_path}: no picture in the folder$"):
        name_exclusions([str(tmp_path)])


def test_a_picture_may_be_called_anything(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(picture(1))
    assert read_exclusions(selection(manifest(tmp_path, "odd,sad"))).digests == {digest(1)}


@pytest.mark.parametrize("name", ["faces.tar", "in/part-0.PARQUET"])
def test_a_folder_with_pictures_that_it_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=rf"^selection.exclude={tmp_path}: holds {name}, whose pictures only a manifest"
    ):
        name_exclusions([str(tmp_path)])


def test_jobs_say_so_before_they_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(picture(1))
    val = manifest(tmp_path, "gone.jpg,anger")
    model = tiny_model(str(tmp_path / "m")).uri
    places = [f"source={tmp_path}/in", f"table={tmp_path}/t", f"teacher={model}", f"selection.exclude=[{val}]"]
    message = f"selection.exclude={val}: 1 of 1 pictures cannot be read, the first: {tmp_path}/gone.jpg"
    assert message in refusal("pseudo_label", pseudo_label, [*places, f"select={tmp_path}/s"], caplog)
    assert not (tmp_path / "t").exists()
    loop = [f"labeled={val}", f"val={val}", f"source={tmp_path}/in", f"out={tmp_path}/loop"]
    assert message in refusal("self_train", self_train, loop, caplog)
    assert not (tmp_path / "loop").exists()


def test_the_loop_goes_on_without_where_it_is_told_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    val = manifest(tmp_path, "a.jpg,anger", "gone.jpg,anger")
    job = [f"labeled={val}", f"val={val}", f"source={tmp_path}", f"out={tmp_path}/loop"]
    loop = _Loop(load_config("self_train", job))
    with pytest.raises(UserError, match=r"selection.exclude_unreadable=skip goes on without$"):
        loop.check_exclusions()
    _Loop(load_config("self_train", [*job, "selection.exclude_unreadable=skip"])).check_exclusions()
    assert caplog.text.count("1 of 2 pictures cannot be read") == 1
    write_json(f"{tmp_path}/loop/round-2/round.json", {})
    loop.check_exclusions()  # a finished loop answers whatever has become of its pictures


def test_an_exclusion_that_is_no_manifest_is_refused_whether_or_not_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(picture(1))
    model = tiny_model(str(tmp_path / "m")).uri
    (tmp_path / "val.parquet").write_bytes(parquet_of({"image": pa.array([b""])}))
    places = [f"source={tmp_path}/in", f"table={tmp_path}/t", f"teacher={model}"]
    job = [*places, f"selection.exclude=[{tmp_path}/val.parquet]"]
    said = refusal("pseudo_label", pseudo_label, job, caplog)
    assert said == f"selection.exclude={tmp_path}/val.parquet: no column `path` (has: image)"
