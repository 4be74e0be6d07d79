from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from PIL import Image

from ray_fer.config import load_config
from ray_fer.data.crop import decode_uri
from ray_fer.data.decode import decode_into_each
from ray_fer.data.sources import list_sources
from ray_fer.data.uris import split_face
from ray_fer.labeling.table import FILE_SCHEMA, PERMANENT
from ray_fer.labeling.unit import Decoded, Row, decode_items, joined
from ray_fer.labeling.work import DecodedUnit, image_statuses, unit_stats
from ray_fer.labeling.worker import Labeller, Plan, for_teacher, infer, to_table
from ray_fer.models.engines import Flipped, make_engine
from ray_fer.models.softmax import softmax
from ray_fer.models.torch_engine import TorchEngine
from tests.images import CLASSES, picture, tiny_model, write_pictures
from tests.models.test_face_detector import installed
from tests.photos import ONE, THREE, photo

LIMITS = {"max_pixels": 1 << 20, "max_bytes": 1 << 20}


def through_a_block(batch: Decoded, sizes: list[int]) -> Decoded:
    """What arrives of ``batch`` where it is sent."""
    return DecodedUnit.from_block(DecodedUnit(7, batch, 0.5).to_block(), sizes).batch


def keys_of(folder: Path) -> pa.Table:
    return pa.concat_tables(list_sources([str(folder)], Counter()))


def test_every_object_becomes_one_row(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(7))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a picture")
    (tmp_path / "in" / "big.png").write_bytes(bytes(2 << 20))
    (tmp_path / "in" / "gone.jpg").write_bytes(picture(9))
    keys = keys_of(tmp_path / "in")
    (tmp_path / "in" / "gone.jpg").unlink()
    artifact = tiny_model(str(tmp_path / "model"))
    engine = TorchEngine(artifact)
    rows = []
    for batch in decode_items(keys, image_sizes=[32], batch_size=4, **LIMITS):
        rows += infer(*for_teacher(batch, 0, [32]), engine, CLASSES, 4)
    table = to_table(rows, "run-1")
    assert table.schema == FILE_SCHEMA
    assert sorted(table["uri"].to_pylist()) == sorted(keys["uri"].to_pylist())
    assert Counter(table["status"].to_pylist()) == {"ok": 7, "undecodable": 1, "too_large": 1, "missing": 1}
    for row in table.to_pylist():
        if row["status"] == "ok":
            data = Path(row["uri"]).read_bytes()
            assert row["digest"] == xxhash.xxh3_128_digest(data)
            assert abs(sum(row["probs"]) - 1) < 1e-6
            assert row["label"] == CLASSES[int(np.argmax(row["probs"]))]
            assert row["confidence"] == max(row["probs"])
        else:
            assert row["probs"] is None
            assert row["error"]


def test_the_batching_does_not_change_the_predictions(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(9))
    artifact = tiny_model(str(tmp_path / "model"))
    keys = keys_of(tmp_path / "in")
    found = []
    for size in (2, 16):
        engine = make_engine(artifact, "openvino", batch_size=size, device="cpu", precision="float32")
        probs = {}
        for batch in decode_items(keys, image_sizes=[32], batch_size=size, **LIMITS):
            rows = infer(*for_teacher(batch, 0, [32]), engine, CLASSES, size)
            probs |= {row.uri: row.probs for row in rows}
        found.append(np.array([probs[uri] for uri in keys["uri"].to_pylist()]))
    assert np.abs(found[0] - found[1]).max() < 1e-5


def test_an_overwritten_object_is_recorded_as_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(picture(1))
    keys = keys_of(tmp_path)
    path.write_bytes(picture(2) + b"\0")
    (batch,) = decode_items(keys, image_sizes=[32], batch_size=4, **LIMITS)
    (row,) = infer(*for_teacher(batch, 0, [32]), TorchEngine(tiny_model(str(tmp_path / "model"))), CLASSES, 4)
    assert row.identity == keys_of(tmp_path)["identity"][0].as_py()
    assert row.identity != keys["identity"][0].as_py()
    listed = keys["identity"][0].as_py()
    assert row.listed_identity == listed
    assert unit_stats([row], CLASSES).read_otherwise == [(str(path), listed, row.identity)]
    assert to_table([row], "run").schema == FILE_SCHEMA


def test_a_decoded_unit_survives_its_block(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(3))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a picture")
    (batch,) = decode_items(keys_of(tmp_path / "in"), image_sizes=[32], batch_size=9, **LIMITS)
    block = DecodedUnit(7, batch, 0.5).to_block()
    assert block.num_rows == 1
    unit = DecodedUnit.from_block(block, [32])
    other = unit.batch
    assert (unit.number, unit.seconds, other.rows, other.teachers) == (7, 0.5, batch.rows, batch.teachers)
    assert other.pixels[32].shape == (3, 32, 32, 3)
    assert (other.pixels[32] == batch.pixels[32]).all()


def test_engines_agree(tmp_path: Path) -> None:
    artifact = tiny_model(str(tmp_path / "model"))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    torch_probs = softmax(TorchEngine(artifact)(pixels))
    openvino = make_engine(artifact, "openvino", batch_size=8, device="cpu", precision="float32")
    openvino_probs = softmax(openvino(pixels))
    assert np.abs(torch_probs - openvino_probs).max() < 1e-5
    assert (torch_probs.argmax(1) == openvino_probs.argmax(1)).all()


# --- several teachers ---


def asked(keys: pa.Table, teachers: list[int]) -> pa.Table:
    """``keys`` with the bits of the teachers that lack each."""
    return keys.append_column("teachers", pa.array(teachers, pa.uint32()))


def tried(keys: pa.Table, attempts: list[list[int]]) -> pa.Table:
    """``keys`` with the number of each teacher's try."""
    return keys.append_column("attempts", pa.array(attempts, pa.list_(pa.int32(), len(attempts[0]))))


def test_every_row_says_which_try_of_its_teacher_it_is(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(1))
    for name in ("bad", "gone", "overwritten"):
        (tmp_path / "in" / f"{name}.jpg").write_bytes(b"not a picture")
    keys = keys_of(tmp_path / "in").sort_by("uri")  # bad, gone, overwritten, the picture
    (tmp_path / "in" / "gone.jpg").unlink()
    (tmp_path / "in" / "overwritten.jpg").write_bytes(b"another")
    for attempts, expected in (([[2], [3], [4], [5]], ([2, 3, 1, 5],)), ([[2, 1]] * 4, ([2, 2, 1, 2], [1] * 4))):
        sizes = [32] * len(attempts[0])
        # A slice, as units are.
        twice = pa.concat_tables([tried(keys, attempts)] * 2).combine_chunks().slice(4)
        (batch,) = decode_items(twice, image_sizes=sizes, batch_size=9, **LIMITS)
        batch = through_a_block(batch, sizes)
        for teacher, wanted in enumerate(expected):
            rows, _ = for_teacher(batch, teacher, sizes)
            assert to_table(rows, "run")["attempt"].to_pylist() == wanted


def test_every_teacher_gets_what_it_lacks_in_its_own_size(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(5))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a picture")
    keys = keys_of(tmp_path / "in").sort_by("uri")  # bad, part-0: 0 3, part-1: 1 4, part-2: 2
    sizes = [32, 24, 32]
    keys = asked(keys, [0b111, 0b111, 0b001, 0b100, 0b010, 0b011])
    (batch,) = decode_items(keys, image_sizes=sizes, batch_size=9, **LIMITS)
    assert {size: pixels.shape for size, pixels in batch.pixels.items()} == {32: (4, 32, 32, 3), 24: (3, 24, 24, 3)}
    uris = keys["uri"].to_pylist()
    for teacher, mine in enumerate(([0, 1, 2, 5], [0, 1, 4, 5], [0, 1, 3])):
        rows, pixels = for_teacher(batch, teacher, sizes)
        assert [row.uri for row in rows] == [uris[index] for index in mine]
        for index, crop in zip(mine[1:], pixels, strict=True):
            data = Path(uris[index]).read_bytes()
            wanted = np.empty((sizes[teacher], sizes[teacher], 3), np.uint8)
            decode_into_each(data, [wanted], 32)
            assert (crop == wanted).all()


def test_one_teacher_s_predictions_are_not_another_s(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(4))
    (batch,) = decode_items(keys_of(tmp_path / "in"), image_sizes=[32, 32], batch_size=9, **LIMITS)
    engines = [TorchEngine(tiny_model(str(tmp_path / f"model-{seed}"), seed)) for seed in range(2)]
    first, second = (infer(*for_teacher(batch, t, [32, 32]), engine, CLASSES, 9) for t, engine in enumerate(engines))
    for rows, engine in ((first, engines[0]), (second, engines[1])):
        np.testing.assert_array_equal([row.probs for row in rows], softmax(engine(batch.pixels[32])))
    assert all(row.probs is None for row in batch.rows)


def test_what_several_teachers_want_survives_its_block_and_its_joining(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(5))
    keys = asked(keys_of(tmp_path / "in"), [1, 1, 2, 3, 2])
    sizes = [24, 32]
    (whole,) = decode_items(keys, image_sizes=sizes, batch_size=9, **LIMITS)
    parts = joined(list(decode_items(keys, image_sizes=sizes, batch_size=1, **LIMITS)), sizes)
    unpacked = through_a_block(whole, sizes)
    for other in (parts, unpacked):
        assert (other.rows, other.teachers) == (whole.rows, whole.teachers)
        for teacher in range(2):
            np.testing.assert_array_equal(for_teacher(other, teacher, sizes)[1], for_teacher(whole, teacher, sizes)[1])


@installed
def test_every_face_becomes_a_row_and_every_picture_has_one(tmp_path: Path) -> None:
    for name, drawn in (("a", THREE), ("b", ()), ("c", ONE), ("d", THREE)):
        (tmp_path / f"{name}.jpg").write_bytes(photo(drawn))
    (tmp_path / "e.jpg").write_bytes(b"not a picture")
    (tmp_path / "f.jpg").write_bytes(photo(THREE)[:-5000])  # its faces may be whole
    keys = keys_of(tmp_path).sort_by("uri")
    sizes = [24, 32]
    # The second teacher lacks a, the first one c; both lack the others.
    keys = keys.append_column("teachers", pa.array([1, 3, 2, 3, 3, 3], pa.uint32()))
    batches = list(decode_items(keys, image_sizes=sizes, batch_size=3, faces=True, **LIMITS))
    assert [len(batch.rows) for batch in batches] == [3, 5, 2]
    rows = [row for batch in batches for row in batch.rows]
    names = [Path(split_face(row.uri)[0]).stem for row in rows]
    assert names == ["a", "a", "a", "b", "c", "d", "d", "d", "e", "f"]
    statuses = [row.status for row in rows]
    assert statuses == ["ok"] * 3 + ["no_face"] + ["ok"] * 4 + ["undecodable"] * 2
    assert image_statuses(rows) == {"ok": 3, "no_face": 1, "undecodable": 2}
    assert all((split_face(row.uri)[1] is not None) == (row.status == "ok") for row in rows)
    assert len({row.uri for row in rows}) == 10
    batch = joined(batches, sizes)
    for teacher, wanted in enumerate(("aaabdddef", "bcdddef")):
        mine, pixels = for_teacher(batch, teacher, sizes)
        assert "".join(Path(split_face(row.uri)[0]).stem for row in mine) == wanted
        good = [row for row in mine if row.status == "ok"]
        seen = [decode_uri(row.uri, Path(split_face(row.uri)[0]).read_bytes(), sizes[teacher]) for row in good]
        assert np.array_equal(pixels, np.stack(seen))
    assert through_a_block(batch, sizes).rows == batch.rows


@installed
def test_an_overwritten_photo_is_recorded_once_under_its_own_uri(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(photo(ONE))
    keys = keys_of(tmp_path)
    path.write_bytes(photo(THREE))
    (batch,) = decode_items(keys, image_sizes=[32], batch_size=9, faces=True, **LIMITS)
    rows = infer(*for_teacher(batch, 0, [32]), TorchEngine(tiny_model(str(tmp_path / "model"))), CLASSES, 4)
    stats = unit_stats(rows, CLASSES)
    assert stats.read_otherwise == [(str(path), keys["identity"][0].as_py(), keys_of(tmp_path)["identity"][0].as_py())]
    assert stats.statuses == {"ok": 1}
    assert np.sum(stats.confidence) == 3
    assert to_table(rows, "run").schema == FILE_SCHEMA


# --- outputs that are not finite ---


def per_brightness(pixels: np.ndarray) -> np.ndarray:
    """Logits (B, 3) of a net that divides by the brightest pixel: NaN for black."""
    with np.errstate(invalid="ignore"):
        scaled = (
            pixels.reshape(len(pixels), -1)[:, : len(CLASSES)].astype(np.float32) / pixels.max(axis=(1, 2, 3))[:, None]
        )
    return np.asarray(scaled, np.float32)


def test_a_picture_without_a_finite_output_is_a_row_and_the_others_stay() -> None:
    rows = [Row(str(number), "ok", attempts=[1, 1], digest=b"0") for number in range(4)]
    rows.insert(2, Row("bad", "undecodable", error="no picture"))
    pixels = np.random.default_rng(0).integers(1, 256, (4, 8, 8, 3), np.uint8)
    pixels[1] = 0
    for engine in (per_brightness, Flipped(per_brightness)):
        for batch_size in (1, 3, 9):
            found = infer([replace(row) for row in rows], pixels, engine, CLASSES, batch_size)
            assert [row.status for row in found] == ["ok", "not_finite", "undecodable", "ok", "ok"]
            assert found[1].error == "the model puts out NaN for every class"
            assert found[1].probs is found[1].label is found[1].confidence is None
            assert found[2].error == "no picture"
            table = to_table(found, "run")
            assert [probs is None for probs in table["probs"].to_pylist()] == [False, True, True, False, False]
            stats = unit_stats(found, CLASSES)
            assert stats.statuses == {"ok": 3, "not_finite": 1, "undecodable": 1}
            assert np.sum(stats.confidence) == 3
    assert "not_finite" in PERMANENT


def test_confidences_of_one_and_of_nothing_are_counted() -> None:
    rows = [Row("a", "ok", digest=b"0"), Row("b", "ok", digest=b"1")]
    logits = np.array([[3e38, 0, 0], [-np.inf, 1, 1]], np.float32)
    found = infer(rows, np.zeros((2, 8, 8, 3), np.uint8), lambda pixels: logits, CLASSES, 2)
    assert [row.confidence for row in found] == [1, 0.5]
    assert np.sum(unit_stats(found, CLASSES).confidence) == 2


def test_an_image_that_fails_one_of_several_teachers_counts_as_failed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", range(3))
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "black.png")
    (batch,) = decode_items(keys_of(tmp_path / "in"), image_sizes=[32, 32], batch_size=9, **LIMITS)
    labeller = Labeller.__new__(Labeller)  # without the files of its teachers
    labeller.engines = [lambda pixels: np.zeros((len(pixels), 3), np.float32), per_brightness]
    labeller.classes = CLASSES
    config = load_config("pseudo_label", ["source=in", "teacher=[a,b]", f"table={tmp_path / 't'}"])
    labeller.plan = Plan(config, "run", ("a", "b"), "cpu", "float32", 1, (32, 32))
    done = labeller.finish(0, iter([batch]), 0.0)
    assert done.statuses == {"ok": 3, "not_finite": 1}
    assert [done.stats[model].statuses for model in ("a", "b")] == [{"ok": 4}, {"ok": 3, "not_finite": 1}]
