import io
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_fer.data.sources import list_sources
from ray_fer.labeling import isolation
from ray_fer.labeling.isolation import decode_isolated
from ray_fer.labeling.unit import Decoded, decode_items
from ray_fer.labeling.worker import for_teacher
from tests.images import deadly_picture, write_deadly_decoder, write_pictures

LIMITS: dict[str, Any] = {"image_sizes": [32], "max_pixels": 1 << 20, "max_bytes": 1 << 20}


def children(monkeypatch: pytest.MonkeyPatch) -> list[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """The child processes that are started from now on, and with what."""
    started = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = Popen(*args, **options)
        started.append((child, options))
        return child

    Popen = subprocess.Popen
    monkeypatch.setattr(isolation.subprocess, "Popen", start)
    return started


def test_only_the_object_that_kills_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    write_pictures(source, range(4))
    (source / "bad.jpg").write_bytes(b"no picture")
    keys = pa.concat_tables(list_sources([str(source)], Counter()))
    (expected,) = decode_items(keys, batch_size=100, **LIMITS)
    assert decode_isolated(keys, **LIMITS).rows == expected.rows
    assert np.array_equal(decode_isolated(keys, **LIMITS).pixels[32], expected.pixels[32])

    monkeypatch.syspath_prepend(write_deadly_decoder(tmp_path / "deadly"))
    victims = [keys["uri"][index].as_py() for index in (0, 2)]
    for uri in victims:
        Path(uri).write_bytes(deadly_picture())
    started = children(monkeypatch)
    batch = decode_isolated(keys, **LIMITS)
    # All; the first alone; all behind it; the third alone; all behind that. What a child hands over is not done again.
    assert len(started) == 5
    assert [row.uri for row in batch.rows] == keys["uri"].to_pylist()
    crashed = {row.uri: row.error for row in batch.rows if row.status == "crashed"}
    assert crashed == dict.fromkeys(victims, "kills the process that decodes it (signal 9)")
    assert len(batch.pixels[32]) == sum(row.status == "ok" for row in batch.rows)


def test_an_object_is_not_blamed_for_what_kills_a_process_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    write_pictures(source, range(3))
    keys = pa.concat_tables(list_sources([str(source)], Counter()))
    monkeypatch.syspath_prepend(write_deadly_decoder(tmp_path / "deadly", once=True))
    Path(keys["uri"][1].as_py()).write_bytes(deadly_picture())
    assert [row.status for row in decode_isolated(keys, **LIMITS).rows] == ["ok"] * 3


def test_what_kills_is_a_row_of_the_teachers_that_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    write_pictures(source, range(1))
    monkeypatch.syspath_prepend(write_deadly_decoder(tmp_path / "deadly"))
    keys = pa.concat_tables(list_sources([str(source)], Counter())).append_column(
        "teachers", pa.array([2], pa.uint32())
    )
    keys = keys.append_column("attempts", pa.array([[1, 3]], pa.list_(pa.int32(), 2)))
    Path(keys["uri"][0].as_py()).write_bytes(deadly_picture())
    sizes = [24, 32]
    batch = decode_isolated(keys, **LIMITS | {"image_sizes": sizes})
    assert [len(for_teacher(batch, teacher, sizes)[0]) for teacher in range(2)] == [0, 1]
    assert [for_teacher(batch, teacher, sizes)[1].shape for teacher in range(2)] == [(0, 24, 24, 3), (0, 32, 32, 3)]
    (row,), _ = for_teacher(batch, 1, sizes)
    assert (row.status, row.attempt) == ("crashed", 3)


def test_a_child_that_fails_by_itself_is_no_objects_fault(tmp_path: Path) -> None:
    """It would blame every object after another."""
    write_pictures(tmp_path / "in", range(1))
    keys = pa.concat_tables(list_sources([str(tmp_path / "in")], Counter()))
    with pytest.raises(RuntimeError, match=r"^isolated decoding failed with exit status 1$"):
        decode_isolated(keys, **LIMITS | {"no_such_setting": 1})


def test_an_interrupted_child_ends_and_has_had_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(child: subprocess.Popen[bytes]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(isolation, "_results", interrupted)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.syspath_prepend("")
    started = children(monkeypatch)
    keys = pa.table({"uri": ["a"], "identity": ["v1"], "source": ["s"]})
    with pytest.raises(KeyboardInterrupt):
        decode_isolated(keys, **LIMITS)
    ((child, options),) = started
    assert child.returncode == -9
    assert options["env"]["AWS_PROFILE"] == "mine"
    assert options["env"]["PYTHONPATH"].split(os.pathsep) == [path for path in sys.path if path]


def test_what_a_child_was_killed_over_is_no_result() -> None:
    written = pickle.dumps(Decoded([{"uri": "a", "status": "ok"}], [1], {2: np.zeros((1, 2, 2, 3), np.uint8)}))
    for length in range(len(written)):
        child = SimpleNamespace(stdout=io.BytesIO(written + written[:length]))
        assert [batch.rows for batch in isolation._results(child)] == [[{"uri": "a", "status": "ok"}]]


def test_what_a_library_prints_does_not_lie_among_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "in", range(2))
    keys = pa.concat_tables(list_sources([str(tmp_path / "in")], Counter()))
    (tmp_path / "chatty").mkdir()
    (tmp_path / "chatty" / "sitecustomize.py").write_text(
        "import os, simplejpeg\n"
        "header = simplejpeg.decode_jpeg_header\n"
        "def decode_jpeg_header(data):\n"
        "    print('a warning', flush=True)\n"
        "    os.write(1, b'from C')\n"
        "    return header(data)\n"
        "simplejpeg.decode_jpeg_header = decode_jpeg_header\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "chatty"))
    assert [row.status for row in decode_isolated(keys, **LIMITS).rows] == ["ok", "ok"]
